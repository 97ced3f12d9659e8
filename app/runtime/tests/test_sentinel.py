# SPDX-License-Identifier: MIT
"""The transport by Sentinel: a node takes messages from whatever Redis is the master."""

from __future__ import annotations

import shutil
import subprocess
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import pytest
import redis
from fleet_runtime.bootstrap import plugins
from fleet_runtime.worker.bootsteps import own_keys
from kombu import Connection, Consumer, Producer, Queue

from fleet_testing.broker import HOST, free_port
from fleet_testing.commands import PATIENCE, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OPTIONS = {"master_name": "fleet", "socket_timeout": 5}


class Set:
    """Two servers, one of which copies the other, and two Sentinels that agree on which."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        """Start all."""
        self.folder, self.stack = folder, stack
        self.servers = [free_port(), free_port()]
        self.sentinels = [free_port(), free_port()]
        self.processes = {port: self.start(port, f"port {port}\nsave ''\n") for port in self.servers}
        master = self.servers[0]
        wait_until(lambda: self.answers(self.servers[1]) and self.answers(master))
        redis.Redis(HOST, self.servers[1]).replicaof(HOST, master)
        for port in self.sentinels:
            lines = f"monitor fleet {HOST} {master} 2", "down-after-milliseconds fleet 1000"
            text = "".join(f"sentinel {line}\n" for line in lines)
            self.processes[port] = self.start(port, f"port {port}\n{text}", "--sentinel")
        wait_until(lambda: all(self.is_ready(port) for port in self.sentinels))

    @property
    def url(self) -> str:
        """The URL of both Sentinels."""
        return ";".join(f"sentinel://{HOST}:{port}" for port in self.sentinels)

    def start(self, port: int, config: str, *words: str) -> subprocess.Popen[bytes]:
        """Start a server."""
        file = self.folder / f"{port}.conf"
        file.write_text(f"bind {HOST}\ndir {self.folder}\nlogfile {port}.log\n{config}")
        program = shutil.which("redis-server")
        assert program
        process = subprocess.Popen([program, str(file), *words])
        self.stack.callback(process.wait, 10)
        self.stack.callback(process.terminate)
        return process

    def answers(self, port: int) -> bool:
        """Return whether a server answers."""
        with suppress(redis.ConnectionError):
            return bool(redis.Redis(HOST, port).ping())
        return False

    def is_ready(self, port: int) -> bool:
        """Return whether a Sentinel knows the others."""
        if not self.answers(port):
            return False
        said = redis.Redis(HOST, port, decode_responses=True).sentinel_master("fleet")
        return bool(said["num-slaves"] == said["num-other-sentinels"] == 1)

    def master(self) -> int:
        """Return the master's port, as the first Sentinel sees it."""
        found = redis.Redis(HOST, self.sentinels[0]).sentinel_get_master_addr_by_name("fleet")
        return int(found[1])


@pytest.fixture
def sentinels(tmp_path: Path) -> Iterator[Set]:
    """A set of servers."""
    with ExitStack() as stack:
        yield Set(tmp_path, stack)


def test_messages_come_from_whatever_is_the_master(sentinels: Set) -> None:
    """Also once the first one has died, with what was held then."""
    url, _ = plugins.select_transport(sentinels.url)
    with Connection(url, transport_options={**OPTIONS, **own_keys("one")}) as connection:
        got = consume(connection)
        send(sentinels, "first")
        receive(connection, got, "first")
        wait_until(lambda: redis.Redis(HOST, sentinels.servers[1]).hlen("unacked:one") == 1)
        sentinels.processes[sentinels.servers[0]].kill()
        wait_until(lambda: sentinels.master() == sentinels.servers[1])
        with pytest.raises(connection.connection_errors):
            connection.drain_events(timeout=PATIENCE)
    with Connection(url, transport_options={**OPTIONS, **own_keys("one")}) as connection:
        got = consume(connection)
        send(sentinels, "second")
        receive(connection, got, "second")
        # The first one went back as its connection was closed, or is held still: recovery would find it.
        master = redis.Redis(HOST, sentinels.servers[1])
        assert master.hlen("unacked:one") + master.llen("default") == 2


def send(sentinels: Set, text: str) -> None:
    """Send a message with kombu's own transport."""
    with Connection(sentinels.url, transport_options=OPTIONS) as connection:
        Producer(connection).publish({"text": text}, routing_key="default", declare=[Queue("default")])


def consume(connection: Connection) -> list[Any]:
    """Consume, and return what comes."""
    got: list[Any] = []
    Consumer(connection.default_channel, [Queue("default")], on_message=got.append).consume()
    with suppress(TimeoutError):
        connection.drain_events(timeout=0.5)
    return got


def receive(connection: Connection, got: list[Any], text: str) -> None:
    """Wait for a message with this text."""
    until = time.monotonic() + PATIENCE
    while text not in [message.payload["text"] for message in got]:
        assert time.monotonic() < until, "nothing came"
        with suppress(TimeoutError):
            connection.drain_events(timeout=0.5)
