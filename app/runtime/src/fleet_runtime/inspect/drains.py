# SPDX-License-Identifier: MIT
"""The hosts that are drained, for `fleet status`. A marker file on each host keeps its nodes stopped."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fleet_runtime.broker import keys
from fleet_runtime.broker.errors import explained

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from celery import Celery


@dataclass(frozen=True)
class Drained:
    """A drained host.

    Attributes:
        host: Name of the host.
        since: Seconds since it was drained.
        why: The reason that the operator gave.
    """

    host: str
    since: float
    why: str


@contextmanager
def client(app: Celery) -> Iterator[Any]:
    """Yield a client of the broker of an app.

    Raises:
        FleetError: The broker is away, or refuses a command.
    """
    with explained("The broker cannot be asked"), app.connection_for_write() as connection:
        yield connection.default_channel.client


def mark(redis: Any, host: str, why: str) -> bool:
    """Record that a host is drained; return whether that changed anything."""
    text = redis.hget(keys.DRAINED, host)
    record = json.loads(text) if text else {"at": time.time(), "why": None}
    if record["why"] == why:
        return False
    redis.hset(keys.DRAINED, host, json.dumps({**record, "why": why}))
    return True


def unmark(redis: Any, host: str) -> bool:
    """Record that a host is no longer drained; return whether that changed anything."""
    return bool(redis.hdel(keys.DRAINED, host))


def parse(entries: Mapping[bytes, bytes]) -> list[Drained]:
    """Return the drained hosts from the hash `keys.DRAINED`."""
    hosts, now = [], time.time()
    for host, text in sorted(entries.items()):
        record = json.loads(text)
        hosts.append(Drained(host.decode(), max(0.0, round(now - record["at"], 1)), record["why"]))
    return hosts
