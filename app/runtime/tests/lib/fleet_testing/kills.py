# SPDX-License-Identifier: MIT
"""Counts what is lost when consumers are killed at any instant.

Small consumers, each a process, take messages as fast as they come, and settle none. Others have a loop, as a
node has one: they have room for one message, take more in advance, and write down what they acknowledge.
Several run at a time, and each is killed (SIGKILL) within milliseconds of a message. In the end, each message
must be in its queue, or recorded as held: in one place, and not in both; or somebody has written it down.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from fleet_runtime.transport.channel import Channel
from fleet_runtime.transport.transports import Transport
from fleet_runtime.transport.tuning import PREFETCH_PER_SLOT
from fleet_runtime.worker.bootsteps import own_keys
from kombu import Connection, Consumer, Exchange, Producer, Queue
from kombu.asynchronous import Hub

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

GROUP = 8  # consumers at a time
NODES = [f"killed-{number}@localhost" for number in range(GROUP)]
QUEUES = ("default", "email")
PRIORITIES = (0, 3, 6, 9)
LISTS = [f"{queue}\x06\x16{step}" if step else queue for queue in QUEUES for step in PRIORITIES]
BEFORE, AFTER = 3, 2  # messages that are sent as consumers take them, and once all were killed
LATEST = 0.004  # seconds from the messages to the kill
PATIENCE = 60.0  # seconds for a consumer to begin


class Server(Protocol):
    """A redis-server and how to reach it."""

    def client(self, user: str) -> Any:
        """Return a connection of Redis's own client."""

    def url(self, user: str) -> str:
        """Return the URL of a component."""


@dataclass(frozen=True)
class Count:
    """What became of the messages."""

    transport: str
    kills: int
    sent: int
    held: int
    done: int
    lost: int
    doubled: int


def run(broker: Server, name: str, kills: int, seed: int, notes: Path) -> Count:
    """Kill so many consumers of a kind, and count.

    Raises:
        RuntimeError: It cannot be counted.
    """
    admin, url = broker.client("admin"), broker.url("worker")
    admin.flushdb()
    chance = random.Random(seed)
    processes = multiprocessing.get_context("fork")
    sent: list[str] = []
    with Connection(url) as connection:
        producer = Producer(connection)
        for queue in queues():
            queue(connection.default_channel).declare()
        for first in range(0, kills, GROUP):
            begun = [processes.Event() for _ in range(min(GROUP, kills - first))]
            consumers = [
                processes.Process(target=CONSUMERS[name], args=(url, node, event, notes), daemon=True)
                for node, event in zip(NODES, begun, strict=False)
            ]
            for consumer in consumers:
                consumer.start()
            if not all(event.wait(PATIENCE) for event in begun):
                raise RuntimeError("A consumer does not begin.")
            for consumer in consumers:
                sent += publish(producer, chance, BEFORE)
                time.sleep(chance.uniform(0, LATEST))
                consumer.kill()
            sent += publish(producer, chance, AFTER)
            for consumer in consumers:
                consumer.join()
    queued = [number(json.loads(text)) for key in LISTS for text in admin.lrange(key, 0, -1)]
    held = [
        number(json.loads(text)[0]) for node in NODES for text in admin.hvals(own_keys(node)["unacked_key"])
    ]
    found, done = [*queued, *held], set(notes.read_text().split()) if notes.exists() else set()
    if {*found, *done} - set(sent):
        raise RuntimeError("There are messages that nobody sent.")
    lost, doubled = len(set(sent) - set(found) - done), len(found) - len(set(found))
    return Count(name, kills, len(sent), len(held), len(done), lost, doubled)


def take(transport: Any, url: str, node: str, ready: Any, _: Path) -> None:
    """Take messages as fast as possible, and settle none."""
    with Connection(url, transport=transport, transport_options=own_keys(node)) as connection:
        channel = connection.channel()
        Consumer(channel, list(queues()), on_message=lambda message: None).consume()
        with suppress(OSError):  # there is none, and it waits
            connection.drain_events(timeout=0.01)
        ready.set()
        while True:
            connection.drain_events()


def work(url: str, node: str, ready: Any, notes: Path) -> None:
    """Run messages one by one, with a loop, and prefetch as many as a fast node does."""
    setattr(Channel, "_prefetch_target", lambda *_: PREFETCH_PER_SLOT)  # noqa: B010 (mypy takes no other way)
    file = os.open(notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    hub = Hub()

    def begin(message: Any) -> None:
        hub.call_later(random.uniform(0, LATEST / 2), done, message)

    def done(message: Any) -> None:
        os.write(file, f"{message.properties['correlation_id']}\n".encode())
        message.ack()

    with Connection(url, transport=Transport, transport_options=own_keys(node)) as connection:
        channel = connection.channel()
        channel.basic_qos(0, 1, False)
        Consumer(channel, list(queues()), on_message=begin).consume()
        connection.register_with_event_loop(hub)
        until = time.monotonic() + 0.01
        while True:
            hub.call_later(0.01, int)
            hub.run_once()
            if time.monotonic() > until:
                ready.set()


# By the transport that they use.
CONSUMERS: dict[str, Callable[[str, str, Any, Path], None]] = {
    "kombu's": partial(take, None),
    "the runtime's": partial(take, Transport),
    "the runtime's, in a loop, some in advance": work,
}


def queues() -> Iterator[Queue]:
    """Yield the queues."""
    for name in QUEUES:
        yield Queue(name, Exchange(name), name)


def publish(producer: Producer, chance: random.Random, count: int) -> list[str]:
    """Send messages to any queue, with any priority; return what they are known by."""
    queue, names = chance.choice(QUEUES), []
    for _ in range(count):
        names.append(f"{chance.getrandbits(64):016x}")
        producer.publish(
            {},
            exchange=queue,
            routing_key=queue,
            priority=chance.choice(PRIORITIES),
            correlation_id=names[-1],
        )
    return names


def number(message: Any) -> str:
    """Return what a message is known by."""
    return str(message["properties"]["correlation_id"])
