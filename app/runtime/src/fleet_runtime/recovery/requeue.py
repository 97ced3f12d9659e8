# SPDX-License-Identifier: MIT
"""Gives back what a dead node held.

Each message moves in one step of Redis, from the hash of what its node holds to its queue, so it does so
once, whoever else tries, and wherever this is interrupted.

Who does it is the node itself when it starts again, or another when its lease has ended (`recovery`); and,
before either can, what its unit runs once its processes are gone: `python -m fleet_runtime.recovery.requeue`.
That needs no app, and so takes a fraction of the time that a node takes to start. It is why this imports no
Celery.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from kombu import Connection
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps, loads
from redis.exceptions import RedisError, ResponseError

from fleet_runtime.broker import functions, keys, scripts
from fleet_runtime.broker.unacked import UnackedRef
from fleet_runtime.messages.headers import RECOVERED
from fleet_runtime.settings import FleetSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

logger = logging.getLogger(__name__)

MOST_BYTES = 1_000_000  # in one step, or one of large messages would keep Redis from all else
# For the unit of a dead node: seconds to wait for Redis, and for all. Its next start waits for this, and
# gives back what is left.
UNIT_WAITS, UNIT_TAKES = 2.0, 5.0


class Message(NamedTuple):
    """A message that goes back to its queues."""

    tag: str
    text: str
    queues: list[str]


def forget(client: Any, node: str, *, if_dead: bool) -> bool:
    """Remove all keys of a node that holds nothing; return whether that is so."""
    names = [keys.LEASES, keys.NODES]
    names += [keys.unacked(node), keys.unacked_index(node), keys.unacked_mutex(node), keys.proofs(node)]
    return bool(functions.run(client, scripts.FORGET_NODE, names, [node, int(if_dead)]))


@dataclass
class GiveBack:
    """Gives back what a node held.

    Attributes:
        channel: A channel of kombu's, which knows the queues.
        node: Whose messages.
        step: How many at a time.
        keep: Delivery tags of those that stay.
        if_dead: Stop as soon as the node has a lease.
        died: Say so in the messages, for the count of losses.
        until: When to stop, by the monotonic clock; the rest is for the next time.
        unreadable: What becomes of a record that can go nowhere; by default it stays.
    """

    channel: Any
    node: str
    step: int
    keep: Collection[str] = ()
    if_dead: bool = True
    died: bool = True
    until: float = float("inf")
    unreadable: Callable[[str, bytes, Exception], None] | None = None

    def run(self) -> int:
        """Move the messages, and return how many."""
        moved = 0
        for messages in _steps(self._messages(), self.step):
            now = self._move(messages)
            if now < 0:
                logger.info("%s lives again, and keeps the rest of what it holds.", self.node)
                break
            moved += now
            if time.monotonic() > self.until:
                break
        return moved

    def _messages(self) -> Iterator[Message]:
        """Yield what can go back, as it will."""
        with self.channel.conn_or_acquire() as client:
            cursor = -1
            while cursor:
                cursor, records = client.hscan(keys.unacked(self.node), max(cursor, 0), count=self.step)
                for tag, record in records.items():
                    name = bytes_to_str(tag)
                    if name not in self.keep and (message := self._read(name, record)):
                        yield message

    def _read(self, tag: str, record: bytes) -> Message | None:
        """Return a message; None if it cannot be read, or belongs nowhere."""
        try:
            message, exchange, routing_key = loads(bytes_to_str(record))
            message["headers"]["redelivered"] = True
            message["properties"]["delivery_info"]["redelivered"] = True
            if self.died:
                message["headers"][RECOVERED] = True
            queues = self._queues(message, exchange, routing_key)
            if not queues:
                raise LookupError(f"no queue is bound to {exchange!r} with the routing key {routing_key!r}")
            return Message(tag, dumps(message), queues)
        except (OSError, RedisError):
            raise
        except Exception as error:
            if self.unreadable:
                self.unreadable(tag, record, error)
            return None

    def _queues(self, message: Any, exchange: str, routing_key: str) -> list[str]:
        """Return the keys of the lists in Redis to which a message belongs, as kombu finds them."""
        channel = self.channel
        if exchange and channel.typeof(exchange).type == "fanout":
            return []  # it was for this node only, and not in a list
        priority = channel._get_message_priority(message, reverse=False)
        return [channel._q_for_pri(queue, priority) for queue in channel._lookup(exchange, routing_key)]

    def _move(self, messages: list[Message]) -> int:
        """Move messages in one step, or one by one if Redis refuses one of them."""
        names = [keys.LEASES, keys.unacked(self.node), keys.unacked_index(self.node)]
        words: list[Any] = [self.node, int(self.if_dead)]
        for message in messages:
            names += [queue for queue in message.queues if queue not in names]
            places = [names.index(queue) + 1 for queue in message.queues]
            words += [message.tag, message.text, len(places), *places]
        try:
            with self.channel.conn_or_acquire() as client:
                return int(functions.run(client, scripts.REQUEUE_UNACKED, names, words))
        except ResponseError as error:
            if len(messages) == 1:
                logger.error("What %s held for %s cannot be given back: %s",
                             self.node, ", ".join(messages[0].queues), error)  # fmt: skip
                return 0
        moved = 0
        for message in messages:
            one = self._move([message])
            if one < 0:
                return one
            moved += one
        return moved


def give_back(channel: Any, node: str, finder: str, step: int, **options: Any) -> int:
    """Give back what a node held, and return how many messages; what can go nowhere goes to the dead letters.

    Args:
        channel: A channel that knows the app's exchanges.
        node: Whose messages.
        finder: The node that does it.
        step: How many at a time.
        options: What else `GiveBack` takes.
    """

    def bury(tag: str, record: bytes, error: Exception) -> None:
        """Move a message to the dead letters."""
        # Imported when there is such a message: what the unit of a node runs must start fast.
        from fleet_runtime.dead_letters import store
        from fleet_runtime.dead_letters.model import End, Reason
        from fleet_runtime.logging import redact

        what = redact.described(error)  # no more of it, because the error may quote the record
        logger.error("What %s held as %s goes to the dead letters: %s", node, tag, what)
        held = UnackedRef(keys.unacked(node), keys.unacked_index(node), tag)
        try:
            with channel.conn_or_acquire() as client:
                end = End.of(Reason.UNDECODABLE, error)
                store.bury_raw(client, record, end, node=finder, held=held)
        except ResponseError as refusal:
            logger.error("It cannot be moved there, and stays where it is: %s", refusal)

    return GiveBack(channel, node, step, unreadable=bury, **options).run()


def main() -> None:
    """Give back what the node of this unit held: its processes are gone.

    No more than an attempt: whatever keeps it from that, the node gives back the rest as it starts.
    """
    try:
        node, settings = os.environ["FLEET_NODE"], FleetSettings.from_environment()
        moved = _give_back(node, settings)
    except Exception as error:
        print(f"<4>What this node held goes back to its queues when it starts: {error}")  # for the journal
        return
    if moved:
        print(f"<4>Given back what {node} held when it ended: {moved} messages.")


def _give_back(node: str, settings: FleetSettings) -> int:
    """Give back what a node held, and return how many messages."""
    options = {
        "ack_emulation": False,
        "socket_timeout": UNIT_WAITS,
        "socket_connect_timeout": UNIT_WAITS,
    }
    tls = settings.broker_tls or None
    with Connection(settings.broker_url, ssl=tls, transport_options=options) as connection:
        connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0)
        channel = connection.default_channel
        with channel.conn_or_acquire() as client:
            facts = json.loads(client.hget(keys.NODES, node) or "{}")
        if facts.get("host", "") not in ("", socket.gethostname()):
            return 0  # this unit was refused because another host has a node of its name, which may live
        channel.priority_steps = facts.get("priority_steps", channel.priority_steps)  # as its app has them
        for exchange, kind in facts.get("exchanges", {}).items():
            channel.exchange_declare(exchange, kind)
        until = time.monotonic() + UNIT_TAKES
        return GiveBack(channel, node, settings.give_back_step, if_dead=False, until=until).run()


def _steps(messages: Iterable[Message], most: int) -> Iterator[list[Message]]:
    """Yield messages in lists of so many, or of fewer large ones."""
    step: list[Message] = []
    size = 0
    for message in messages:
        if step and (len(step) >= most or size + len(message.text) > MOST_BYTES):
            yield step
            step, size = [], 0
        step.append(message)
        size += len(message.text)
    if step:
        yield step


if __name__ == "__main__":
    main()
