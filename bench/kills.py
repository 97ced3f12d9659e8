"""Counts what is lost when who takes messages is killed at any instant: `python -m bench.kills --help`.

Small consumers, each a process, take messages as fast as they come, and settle none. Several do so at a time,
and each is killed (SIGKILL) within milliseconds of a message. In the end, each message must be in its queue,
or recorded as held: in one place, and not in both.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from fleet_runtime.recovery import own_keys
from fleet_runtime.transport import Transport
from kombu import Connection, Consumer, Exchange, Producer, Queue

from bench import ROOT
from bench.servers import PLAIN, servers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.servers import Server

REPORT = ROOT / ".cache" / "bench" / "kills.json"
GROUP = 8  # consumers at a time
NODES = [f"killed-{number}@localhost" for number in range(GROUP)]
QUEUES = ("default", "email")
PRIORITIES = (0, 3, 6, 9)
LISTS = [f"{queue}\x06\x16{step}" if step else queue for queue in QUEUES for step in PRIORITIES]
BEFORE, AFTER = 3, 2  # messages that are sent as consumers take them, and once all were killed
LATEST = 0.004  # seconds from the messages to the kill
PATIENCE = 60.0  # seconds for a consumer to begin
TRANSPORTS: dict[str, Any] = {"kombu's": None, "the runtime's": Transport}  # as Connection wants them


@dataclass(frozen=True)
class Count:
    """What became of the messages."""

    transport: str
    kills: int
    sent: int
    held: int
    lost: int
    doubled: int


def run(broker: Server, name: str, kills: int, seed: int) -> Count:
    """Kill so many consumers that use a transport, and count.

    Raises:
        RuntimeError: It cannot be counted.
    """
    admin, url = broker.client("admin"), broker.url("worker")
    admin.flushdb()
    chance = random.Random(seed)  # noqa: S311 (no secret)
    processes = multiprocessing.get_context("fork")
    sent: list[str] = []
    with Connection(url) as connection:
        producer = Producer(connection)
        for queue in queues():
            queue(connection.default_channel).declare()
        for first in range(0, kills, GROUP):
            begun = [processes.Event() for _ in range(min(GROUP, kills - first))]
            consumers = [
                processes.Process(target=take, args=(url, node, TRANSPORTS[name], event), daemon=True)
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
    found = [*queued, *held]
    if set(found) - set(sent):
        raise RuntimeError("There are messages that nobody sent.")
    lost, doubled = len(set(sent) - set(found)), len(found) - len(set(found))
    return Count(name, kills, len(sent), len(held), lost, doubled)


def take(url: str, node: str, transport: Any, ready: Any) -> None:
    """Take messages as fast as possible, and settle none."""
    with Connection(url, transport=transport, transport_options=own_keys(node)) as connection:
        channel = connection.channel()
        Consumer(channel, list(queues()), on_message=lambda message: None).consume()
        with suppress(OSError):  # there is none, and it waits
            connection.drain_events(timeout=0.01)
        ready.set()
        while True:
            connection.drain_events()


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


def main() -> None:
    """Count for each transport, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m bench.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=400, help="for each transport (default: 400)")
    parser.add_argument("--seed", type=int, default=0, help="of the instants (default: 0)")
    options = parser.parse_args()
    counts = []
    with servers() as running:
        for name in TRANSPORTS:
            print(f"{options.kills} kills with {name} transport", file=sys.stderr)
            # A consumer would spend most of its time on TLS.
            counts.append(run(running[PLAIN], name, options.kills, options.seed))
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(json.dumps([asdict(count) for count in counts], indent=1))
    print("| transport | kills | messages | held | lost | doubled |\n|---|---:|---:|---:|---:|---:|")
    for count in counts:
        print(f"| {' | '.join(str(value) for value in asdict(count).values())} |")


if __name__ == "__main__":
    main()
