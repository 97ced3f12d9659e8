# SPDX-License-Identifier: MIT
"""The two kinds of Redis that are measured with: as it comes, and as the fleet has it."""

from __future__ import annotations

import subprocess
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Protocol

import redis

from fleet_testing import kills
from fleet_testing.broker import HOST, Broker, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PLAIN = "plain"
FLEET = "TLS + ACL + AOF"
PATIENCE = 10.0  # seconds for a server to answer


class Server(kills.Server, Protocol):
    """A redis-server that can be stopped."""

    def stop(self) -> None:
        """Stop the server."""


class Plain:
    """A redis-server without TLS, users and files: each client has all rights."""

    def __init__(self, program: str, folder: Path) -> None:
        """Start it, and wait until it serves.

        Raises:
            RuntimeError: It does not.
        """
        self.port = free_port()
        words = ["--bind", HOST, "--port", str(self.port), "--dir", str(folder)]
        with (folder / "redis.log").open("ab") as log:
            self.process = subprocess.Popen([program, *words, "--save", "", "--appendonly", "no"], stdout=log)
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self.client("admin").ping()
                return
            except redis.ConnectionError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((folder / "redis.log").read_text()) from None
                time.sleep(0.05)

    def client(self, user: str) -> Any:
        """Return a connection of Redis's own client, for any component."""
        return redis.Redis(host=HOST, port=self.port, decode_responses=True)

    def url(self, user: str) -> str:
        """Return the URL, for any component."""
        return f"redis://{HOST}:{self.port}/0"

    def stop(self) -> None:
        """Stop the server."""
        self.process.terminate()
        self.process.wait(PATIENCE)


@contextmanager
def servers() -> Iterator[Mapping[str, Server]]:
    """Run both. The one that is not measured costs nothing, since nobody asks it anything."""
    with ExitStack() as stack:
        fleet = Broker(Path(stack.enter_context(TemporaryDirectory())))
        stack.callback(fleet.stop)
        plain = Plain(fleet.program, Path(stack.enter_context(TemporaryDirectory())))
        stack.callback(plain.stop)
        yield {PLAIN: plain, FLEET: fleet}
