# SPDX-License-Identifier: MIT
"""Keeps messages that are due from waiting behind those that wait for their ETA.

A node that starts with thousands of messages with an ETA takes each of them, holds it, and takes the next. A
message that is due stands behind all of them. Once a node has seen a run of them, it fetches some messages
from the other end of the queue.
"""

from __future__ import annotations

from fleet_runtime.transport import tuning


class EtaRuns:
    """Counts the messages in a row, by queue, whose tasks wait for their ETA.

    Attributes:
        lengths: Length of the present run of each queue that has one.
    """

    def __init__(self) -> None:
        """Start without a run."""
        self.lengths: dict[str, int] = {}
        self._owed = 0  # fetched messages that were not the newest, modulo NEWEST_EVERY

    def add(self, queue: str) -> None:
        """Count a message that waits for its ETA."""
        self.lengths[queue] = self.lengths.get(queue, 0) + 1

    def end(self, queue: str) -> None:
        """End the run of a queue: its oldest message is due."""
        self.lengths.pop(queue, None)

    def clear(self) -> None:
        """End all runs: nothing is left in the queues to stand behind."""
        self.lengths.clear()

    def newest(self, count: int) -> int:
        """Return how many of so many messages to fetch as the newest of their list."""
        if max(self.lengths.values(), default=0) < tuning.ETA_RUN:
            return 0
        newest, self._owed = divmod(self._owed + count, tuning.NEWEST_EVERY)
        return newest
