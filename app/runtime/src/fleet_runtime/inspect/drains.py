# SPDX-License-Identifier: MIT
"""Which hosts were drained, for whoever asks the fleet how it is: a mark on the host keeps its nodes down."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from fleet_runtime.broker import keys
from fleet_runtime.errors import FleetError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from celery import Celery


@dataclass(frozen=True)
class Drained:
    """A host that was drained.

    Attributes:
        since: Seconds since then.
        why: In its operator's words.
    """

    host: str
    since: float
    why: str


@contextmanager
def client(app: Celery) -> Iterator[Any]:
    """Yield a client of an app's broker.

    Raises:
        FleetError: The broker is away, or refuses.
    """
    try:
        with app.connection_for_write() as connection:
            yield connection.default_channel.client
    except (OperationalError, RedisError, OSError) as error:
        raise FleetError(f"The broker cannot be told: {error}") from error


def mark(redis: Any, host: str, why: str) -> bool:
    """Note that a host is drained, and return whether that is news."""
    known = redis.hget(keys.DRAINED, host)
    said = json.loads(known) if known else {"at": time.time(), "why": None}
    if said["why"] == why:
        return False
    redis.hset(keys.DRAINED, host, json.dumps({**said, "why": why}))
    return True


def unmark(redis: Any, host: str) -> bool:
    """Note that it is not drained any more, and return whether that is news."""
    return bool(redis.hdel(keys.DRAINED, host))


def known(redis: Any) -> list[Drained]:
    """Return the hosts that are drained."""
    return read(redis.hgetall(keys.DRAINED))


def read(told: Mapping[bytes, bytes]) -> list[Drained]:
    """Return all of them, by the hash in Redis."""
    found, now = [], time.time()
    for host, text in sorted(told.items()):
        said = json.loads(text)
        found.append(Drained(host.decode(), max(0.0, round(now - said["at"], 1)), said["why"]))
    return found
