# SPDX-License-Identifier: MIT
"""When a channel may fetch next."""

from __future__ import annotations

import random
from math import inf

from fleet_runtime.transport import tuning


class Backoff:
    """Delays fetches that found nothing, and pauses on a Redis that refuses writes.

    Times are of the monotonic clock.

    Attributes:
        not_before: No fetch before this time.
        paused_until: No command at all before this time.
        misses: Notifications in a row that led to no message.
    """

    def __init__(self) -> None:
        """Start without a delay."""
        self.not_before = self.paused_until = -inf
        self.misses = 0
        self._logged_at = -inf

    def record_fetch(self, *, found: bool, was_notified: bool, nodes: int) -> float:
        """Record the reply to a fetch.

        Args:
            found: Whether there was a message.
            was_notified: Whether the fetch followed a notification.
            nodes: How many nodes may have been notified.

        Returns:
            Seconds to wait before the next fetch: random, so that the nodes do not come together again.
        """
        if found or not was_notified:
            self.misses = 0
            return 0.0
        self.misses = min(self.misses + 1, tuning.BACKOFF_MAX_DOUBLINGS)
        longest = tuning.BACKOFF_BASE_S * min(2**self.misses, nodes, tuning.BACKOFF_MAX_NODES)
        return random.uniform(0, longest)

    def delay(self, seconds: float, now: float) -> None:
        """Fetch no earlier than in some seconds."""
        self.not_before = now + seconds

    def pause(self, now: float) -> bool:
        """Send nothing for `OOM_RETRY_S`. Returns whether a log line about it is due."""
        self.not_before = self.paused_until = now + tuning.OOM_RETRY_S
        if now <= self._logged_at + tuning.OOM_LOG_INTERVAL_S:
            return False
        self._logged_at = now
        return True
