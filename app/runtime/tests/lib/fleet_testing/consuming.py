# SPDX-License-Identifier: MIT
"""Takes messages by a connection of kombu."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from fleet_testing.commands import PATIENCE

if TYPE_CHECKING:
    from kombu import Connection


def receive(connection: Connection, got: list[Any], count: int) -> None:
    """Deliver messages until there are so many, and what else comes at once."""
    until = time.monotonic() + PATIENCE
    while len(got) < count:
        assert time.monotonic() < until, f"of {count} messages, {len(got)} came"
        drain(connection, 0.05)
    drain(connection)


def drain(connection: Connection, seconds: float = 0.3) -> None:
    """Deliver what comes in a time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            connection.drain_events(timeout=0.05)
        except OSError:
            continue
