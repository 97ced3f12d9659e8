# SPDX-License-Identifier: MIT
"""A datagram socket in place of the journal's, and nodes that write to it."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from fleet_testing.commands import CELERY, ENTRY, PATIENCE, Daemon

FLAGS = ("--hostname=p-1@test", "--queues=default", "--concurrency=1", "--without-gossip", "--without-mingle")
SECRET = "4111-1111"


class Journal:
    """A socket that takes records as the journal does."""

    def __init__(self, folder: Path) -> None:
        """Listen."""
        self.address = folder / "journal"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(self.address))

    def records(self, seconds: float = 0.5) -> list[dict[str, str]]:
        """Return the records that come until there is silence for so long."""
        self.socket.settimeout(seconds)
        found: list[dict[str, str]] = []
        while True:
            try:
                data, descriptors, _, _ = socket.recv_fds(self.socket, 1 << 20, 1)
            except TimeoutError:
                return found
            found.append(parse(data or read(descriptors[0])))

    def until(self, message: str) -> list[dict[str, str]]:
        """Return all records up to one with a text in its message."""
        found: list[dict[str, str]] = []
        deadline = time.monotonic() + PATIENCE
        while not any(message in record["MESSAGE"] for record in found):
            assert time.monotonic() < deadline, found
            found += self.records()
        return found


def read(descriptor: int) -> bytes:
    """Return the content of a file that was sent along, which is sealed."""
    with os.fdopen(descriptor, "rb") as file:
        with pytest.raises(PermissionError):
            os.pwrite(descriptor, b"x", 0)
        return os.pread(descriptor, os.fstat(file.fileno()).st_size, 0)


def parse(data: bytes) -> dict[str, str]:
    """Return the fields of a record."""
    fields = {}
    while data:
        line, _, data = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            length = int.from_bytes(data[:8], "little")
            value, data = data[8 : 8 + length], data[8 + length + 1 :]
        fields[name.decode()] = value.decode()
    return fields


class JournalDaemon(Daemon):
    """A node that takes a file for the journal's stream; whether it is ready, the journal knows."""

    def __init__(self, words: list[str], environment: dict[str, str], stream: Path) -> None:
        """Start it."""
        with stream.open("wb") as file:
            status = os.fstat(file.fileno())
            identity = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
            self.process = subprocess.Popen(
                [CELERY, *ENTRY, *words], env={**environment, **identity}, stdout=file, stderr=file
            )

    def __enter__(self) -> Any:
        """Do not wait."""
        return self
