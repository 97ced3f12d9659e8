# SPDX-License-Identifier: MIT
"""What RedBeat has in Redis: whether a Beat is at work, and what it will send next."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from fleet_runtime.bootstrap.configure import REDBEAT_LOCK, REDBEAT_PREFIX
from fleet_runtime.errors import FleetError

if TYPE_CHECKING:
    from celery import Celery


CLEANUP = "celery.backend_cleanup"  # which Celery adds by itself


@dataclass(frozen=True)
class Schedule:
    """How things stand.

    Attributes:
        seconds: For how long the lock is held, if its holder dies now; None if nobody holds it.
        entry: Name of the entry that is due next; None if the schedule is empty.
        due: When, in UTC as ISO 8601.
        late: Seconds since then; 0 if it is yet to come.
        entries: How many there are.
    """

    seconds: float | None
    entry: str | None
    due: str | None
    late: float = 0.0
    entries: int = 0

    def __str__(self) -> str:
        """Return two sentences for people."""
        holder = "No Beat holds the lock." if self.seconds is None else (
            f"A Beat holds the lock, for {self.seconds:.0f} s more if it dies now."
        )  # fmt: skip
        if not self.entry:
            return f"{holder} The schedule is empty: Beat has nothing to send."
        following = f"Next: {self.entry} at {self.due}."
        if (self.entry, self.entries) == (CLEANUP, 1):
            following += " Celery's own entry is the only one: the schedule has none of the app's."
        return f"{holder} {following}"


def ask(pipeline: Any) -> None:
    """Put what `answer` needs to know into a pipeline."""
    pipeline.pttl(REDBEAT_LOCK)
    # Entries that have ended have -1.
    pipeline.zrange(f"{REDBEAT_PREFIX}:schedule", 0, "+inf", byscore=True, offset=0, num=1, withscores=True)
    pipeline.zcard(f"{REDBEAT_PREFIX}:schedule")
    pipeline.time()


def answer(
    left: int, first: list[tuple[bytes | str, float]], entries: int, clock: tuple[int, int]
) -> Schedule:
    """Return how things stand, from what Redis answered to `ask`."""
    entry, due, late = None, None, 0.0
    if first:
        key, score = first[0]
        entry = (key.decode() if isinstance(key, bytes) else key).removeprefix(REDBEAT_PREFIX)
        due = datetime.fromtimestamp(score, UTC).isoformat(timespec="seconds")
        late = max(0.0, round(clock[0] - score, 1))
    # PTTL: -2 is no such key, -1 one that never ends, which RedBeat does not make
    return Schedule(left / 1000 if left >= 0 else None, entry, due, late, entries)


def look(app: Celery) -> Schedule:
    """Return how RedBeat's lock and schedule stand.

    Raises:
        FleetError: The broker is away, or refuses.
    """
    try:
        with app.connection_for_read() as connection:
            pipeline = connection.default_channel.client.pipeline(transaction=False)
            ask(pipeline)
            return answer(*pipeline.execute())
    except (OperationalError, RedisError, OSError) as error:
        raise FleetError(f"The schedule cannot be read: {error}") from error
