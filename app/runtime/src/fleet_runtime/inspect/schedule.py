# SPDX-License-Identifier: MIT
"""Reads RedBeat's keys: whether a Beat is active, and which entry is due next."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from fleet_runtime.broker.errors import explained
from fleet_runtime.broker.keys import REDBEAT_LOCK, REDBEAT_PREFIX

if TYPE_CHECKING:
    from celery import Celery


# The entry that Celery adds to each schedule.
CLEANUP = "celery.backend_cleanup"


@dataclass(frozen=True)
class Schedule:
    """The state of the lock and of the schedule.

    Attributes:
        seconds: Seconds for which the lock is held if its holder dies now; None if no Beat holds it.
        entry: Name of the entry that is due next; None if the schedule is empty.
        due: When it is due, in UTC as ISO 8601.
        late: Seconds since it was due; 0 if it is not due yet.
        entries: Number of entries.
    """

    seconds: float | None
    entry: str | None
    due: str | None
    late: float = 0.0
    entries: int = 0

    def __str__(self) -> str:
        """Return two sentences for an operator."""
        holder = "No Beat holds the lock." if self.seconds is None else (
            f"A Beat holds the lock, for {self.seconds:.0f} s more if it dies now."
        )  # fmt: skip
        if not self.entry:
            return f"{holder} The schedule is empty: Beat has nothing to send."
        following = f"Next: {self.entry} at {self.due}."
        if (self.entry, self.entries) == (CLEANUP, 1):
            following += " This is Celery's own entry, and the only one: the app has none."
        return f"{holder} {following}"


def add_commands(pipeline: Any) -> None:
    """Add the commands to a pipeline whose replies `parse` needs."""
    pipeline.pttl(REDBEAT_LOCK)
    # Entries that have ended have a score of -1.
    pipeline.zrange(f"{REDBEAT_PREFIX}:schedule", 0, "+inf", byscore=True, offset=0, num=1, withscores=True)
    pipeline.zcard(f"{REDBEAT_PREFIX}:schedule")
    pipeline.time()


def parse(
    left: int, first: list[tuple[bytes | str, float]], entries: int, clock: tuple[int, int]
) -> Schedule:
    """Return the state of the schedule from the replies to `add_commands`."""
    entry, due, late = None, None, 0.0
    if first:
        key, score = first[0]
        entry = (key.decode() if isinstance(key, bytes) else key).removeprefix(REDBEAT_PREFIX)
        due = datetime.fromtimestamp(score, UTC).isoformat(timespec="seconds")
        late = max(0.0, round(clock[0] - score, 1))
    # PTTL is -2 without the key, and -1 for a key without an expiry, which RedBeat does not create.
    return Schedule(left / 1000 if left >= 0 else None, entry, due, late, entries)


def read(app: Celery) -> Schedule:
    """Return the state of RedBeat's lock and schedule.

    Raises:
        FleetError: The broker is away, or refuses a command.
    """
    with explained("The schedule cannot be read"), app.connection_for_read() as connection:
        pipeline = connection.default_channel.client.pipeline(transaction=False)
        add_commands(pipeline)
        return parse(*pipeline.execute())
