# SPDX-License-Identifier: MIT
"""Records when the loop of Beat turned."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class Turns:
    """Wraps the methods of the scheduler that run at each turn, and for each task that is sent.

    Attributes:
        last: When one of the methods last began or ended, on the monotonic clock; None before the first turn,
            which is when Beat waits for the lock of another Beat.
        longest_sleep: Seconds that the loop sleeps at most between two turns.
    """

    def __init__(self, scheduler: Any) -> None:
        """Wrap the methods of a scheduler of Celery."""
        self.last: float | None = None
        self.longest_sleep = float(scheduler.max_interval)
        for name in ("tick", "apply_async"):
            setattr(scheduler, name, self._recorded(getattr(scheduler, name)))

    def silence(self) -> float | None:
        """Return the seconds since the last turn beyond the longest sleep; None before the first turn."""
        return None if self.last is None else time.monotonic() - self.last - self.longest_sleep

    def _recorded(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """Return a method of the scheduler that records when it began and when it ended."""

        def recorded(*args: Any, **kwargs: Any) -> Any:
            self.last = time.monotonic()
            try:
                return method(*args, **kwargs)
            finally:
                self.last = time.monotonic()

        return recorded
