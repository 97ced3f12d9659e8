# SPDX-License-Identifier: MIT
"""A socket in place of systemd's."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING

import pytest

from fleet_testing.commands import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path


class Systemd:
    """The socket that a node or Beat notifies."""

    def __init__(self, folder: Path) -> None:
        """Listen."""
        self.address = folder / "notify"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(self.address))

    def answers(self, seconds: float) -> list[dict[str, str]]:
        """Return what comes in within some seconds, and forget what came before."""
        self.forget()
        deadline = time.monotonic() + seconds
        return list(iter(lambda: self._receive(deadline - time.monotonic()), {}))

    def wait_for(self, status: str) -> dict[str, str]:
        """Wait until the node says that it does something, and return all that it said then."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            answer = self._receive(deadline - time.monotonic())
            if answer.get("STATUS", "").startswith(status):
                return answer
        pytest.fail(f"the node never said {status!r}")

    def forget(self) -> None:
        """Forget what came in."""
        while self._receive(0.001):
            pass

    def _receive(self, timeout: float) -> dict[str, str]:
        """Return the next notification as variables; none if there is none in time."""
        self.socket.settimeout(max(timeout, 0.001))
        try:
            text = self.socket.recv(4096).decode()
        except TimeoutError:
            return {}
        return dict(line.split("=", 1) for line in text.splitlines())
