# SPDX-License-Identifier: MIT
"""Ends tasks at their time limits, with one timer for all tasks that have the same limits."""

from __future__ import annotations

import threading
from time import monotonic
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class Deadlines:
    """The deadlines of the tasks that run.

    Celery creates a timer for each task, and a cancelled timer stays in memory until its time: with a limit
    of an hour and a thousand tasks a second, more than three million of them.
    """

    def __init__(self, hub: Any, on_passed: Callable[[int, Any, Any], object]) -> None:
        """Start with no tasks.

        Args:
            hub: The loop of the node.
            on_passed: Called when a deadline has passed, with the job id, and its soft and hard limit.
        """
        self._hub, self._on_passed = hub, on_passed
        self._ends: dict[tuple[Any, Any], dict[int, float]] = {}
        self._timers: dict[tuple[Any, Any], Any] = {}
        self._lock = threading.Lock()  # as a node stops, a thread runs its timers

    def begin(self, job: int, limits: tuple[Any, Any]) -> None:
        """Start the deadline of a job.

        Args:
            job: Id of the job.
            limits: Soft and hard limit in seconds. The soft one counts, or the hard one if there is no other.
        """
        seconds = limits[0] or limits[1]
        if not seconds:
            return
        with self._lock:
            self._ends.setdefault(limits, {})[job] = monotonic() + seconds
            self._arm(limits)

    def end(self, job: int, limits: tuple[Any, Any]) -> None:
        """Cancel the deadline of a job."""
        with self._lock:
            if ends := self._ends.get(limits):
                ends.pop(job, None)

    def arm(self) -> None:
        """Replace all timers: Celery has cancelled or forgotten some of them if the connection was lost."""
        with self._lock:
            for timer in self._timers.values():
                timer.cancel()
            for limits in self._ends:
                self._arm(limits)

    def _arm(self, limits: tuple[Any, Any]) -> None:
        """Start a timer for the first deadline of these limits, unless there is one."""
        timer, ends = self._timers.get(limits), self._ends[limits]
        if ends and (timer is None or timer.canceled):
            seconds = max(0.0, next(iter(ends.values())) - monotonic())  # the oldest is the first
            self._timers[limits] = self._hub.call_later(seconds, self._check, limits)

    def _check(self, limits: tuple[Any, Any]) -> None:
        """Report the deadlines that have passed."""
        with self._lock:
            ends, now = self._ends[limits], monotonic()
            passed = [job for job, end in ends.items() if end <= now]
            for job in passed:
                del ends[job]
                self._hub.call_later(0, self._on_passed, job, *limits)  # each alone: one of them may fail
            self._timers.pop(limits, None)
            self._arm(limits)
            if not ends:
                del self._ends[limits]
