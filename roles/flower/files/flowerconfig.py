# SPDX-License-Identifier: MIT
"""What no option of Flower's can say; its options are in flower.env. Flower runs this file as it starts.

It adds to the page of queues what the nodes say: how many consume each queue, and how many of its messages
they hold. Flower itself knows the length of a queue only, with Redis.

It replaces the loop that receives the nodes' heartbeats and events, which has three faults. It doubles the
pause between two attempts to reach the broker, without a bound: after an outage of an hour, the pages stay as
they were for up to another hour. And it only ever reads: where a connection dies without a word (a host lost
its power, a firewall forgot), it listens on for hours. And what is no event, which whoever may publish can
send, ends it until it tries again, or stays among its tasks and ends each event to come.

A name here that is also an option's would set that option, so modules such as logging are not imported whole.
"""

from collections import Counter
from json import loads
from logging import getLogger
from time import sleep
from typing import Any

from celery.events import EventReceiver
from flower.events import Events
from flower.utils.broker import RedisBase
from redis.exceptions import NoPermissionError

PAUSE = 5  # seconds between two attempts
SILENCE = 60  # seconds without a heartbeat of any node, after which the connection is taken for dead

# The facts of each node, and the end of its lease, as fleet_runtime.broker.keys has them.
NODES, LEASES = "fleet:nodes", "fleet:leases"

# The types of an event's parts, where it has them, and those that it must have.
NUMBER = (int, float)
TYPES: dict[str, Any] = {
    "type": str,
    "hostname": str,
    "clock": int,
    "timestamp": NUMBER,
    "utcoffset": NUMBER,
    "freq": NUMBER,
    "uuid": str,
    "name": (str, type(None)),
    "runtime": NUMBER,
}
NEEDED = {"type", "hostname", "timestamp"}
LARGEST = 2**53  # beyond which a clock would go on for ever, and numbers have no texts

lengths_only = RedisBase.queues


class Receiver(EventReceiver):
    """Receives events, and drops what is none; the runtime drops what is no message."""

    dropped = 0

    def _receive(self, body: Any, message: Any, **_: Any) -> None:
        """Hand over the events of a message."""
        given = body if isinstance(body, list) else [body]
        events = [event for event in given if is_event(event)]
        if len(events) < len(given):
            if self.dropped == 0:
                getLogger("flower.events").warning("What is no event is dropped, from now on without a word.")
            self.dropped += len(given) - len(events)
        super()._receive(events, message)


def is_event(body: Any) -> bool:
    """Return whether this is what nodes and clients send."""
    if not isinstance(body, dict) or not body.keys() >= NEEDED:
        return False
    parts = [(body[name], kind) for name, kind in TYPES.items() if name in body]
    if not all(isinstance(part, kind) for part, kind in parts):
        return False
    if any(kind in {int, NUMBER} and not -LARGEST < part < LARGEST for part, kind in parts):
        return False
    return "uuid" in body or not body["type"].startswith("task-")


def receive_for_ever(events: Events) -> None:
    """Receive events; when the broker is gone, try again until it is back."""
    while True:
        try:
            with events.capp.connection() as connection:
                receiver = Receiver(connection, handlers={"*": events.on_event}, app=events.capp)
                receiver.capture(limit=None, timeout=SILENCE, wakeup=True)
        except TimeoutError:
            getLogger("flower.events").info("No node was heard for %d seconds. Connecting anew.", SILENCE)
        except Exception as error:  # whatever it is, this thread has to go on
            getLogger("flower.events").error(
                "Failed to receive events: %s. Trying again in %d seconds.", error, PAUSE
            )
            sleep(PAUSE)


async def queues_with_nodes(broker: RedisBase, names: list[str]) -> list[dict[str, Any]]:
    """Return the queues, each with its messages: those that wait, and those that nodes hold (as of 10 s ago).

    Redis whose rules are older than this file lets Flower see the lengths only.
    """
    try:
        async with broker.redis.pipeline(transaction=False) as pipeline:
            said, leases, (now, _unused) = (
                await pipeline.hgetall(NODES).zrange(LEASES, 0, -1, withscores=True).time().execute()
            )
    except NoPermissionError as error:
        getLogger("flower.broker").warning("Consumers of queues are not known: %s", error)
        lengths: list[dict[str, Any]] = await lengths_only(broker, names)
        return lengths
    alive = {node for node, end in leases if end > now}
    consumers: Counter[str] = Counter()
    held: Counter[str] = Counter()
    for node, text in said.items():
        facts = loads(text)
        held.update(facts.get("held", {}))
        if node in alive:
            consumers.update(facts.get("queues", ()))
    return [
        {
            "name": queue["name"],
            "messages": queue["messages"] + held[queue["name"]],
            "messages_ready": queue["messages"],
            "messages_unacknowledged": held[queue["name"]],
            "consumers": consumers[queue["name"]],
        }
        for queue in await lengths_only(broker, names)
    ]


Events.run = receive_for_ever
RedisBase.queues = queues_with_nodes
