# SPDX-License-Identifier: MIT
"""Messages that are fetched before the node has room for them.

With one message for each child process, a process waits for Redis between any two tasks, and each task wakes
all of them. A node that has settled many messages lately fetches the next ones along with the last.
"""

from __future__ import annotations

from collections import deque
from math import inf
from time import monotonic
from typing import TYPE_CHECKING

from fleet_runtime.transport import tuning

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fleet_runtime.transport.fetch import FetchedMessage


class RateEstimator:
    """Measures how many messages a node settles in a second.

    Attributes:
        settled: Messages since the last measurement; whoever settles one adds it.
        per_second: The rate. It falls at once, and rises by half of the difference.
    """

    def __init__(self) -> None:
        """Start now, with a rate of 0."""
        self.settled, self.per_second = 0, 0.0
        self._since = monotonic()

    def measure(self, now: float) -> float:
        """Return the rate at a time of the monotonic clock, measured anew at most each `RATE_SPAN_S`."""
        elapsed = now - self._since
        if elapsed > tuning.RATE_SPAN_S:
            rate = self.settled / elapsed
            self.per_second = min(rate, (self.per_second + rate) / 2)
            self.settled, self._since = 0, now
        return self.per_second


def target(per_second: float, slots: int) -> int:
    """Return how many messages to prefetch.

    Args:
        per_second: How many the node settles in a second.
        slots: Its prefetch count.
    """
    return min(
        int(per_second * tuning.PREFETCH_WINDOW_S), slots * tuning.PREFETCH_PER_SLOT, tuning.FETCH_BATCH
    )


class PrefetchBuffer:
    """Prefetched messages, which go back to their queues after `PREFETCH_TTL_S`.

    Times are of the monotonic clock.

    Attributes:
        target: How many messages there should be.
        is_near: Whether the last fetch was fast enough for a prefetched message to be delivered in its time.
    """

    def __init__(self) -> None:
        """Start empty."""
        self.target = 0
        self.is_near = True
        self._messages: deque[tuple[float, FetchedMessage]] = deque()
        self._check_at = -inf

    def __len__(self) -> int:
        """Return how many messages there are."""
        return len(self._messages)

    @property
    def messages(self) -> list[FetchedMessage]:
        """The messages, the next one first."""
        return [message for _, message in self._messages]

    def record_fetch(self, sent_at: float, now: float) -> None:
        """Record when a fetch was sent whose reply has just come."""
        self.is_near = now < sent_at + tuning.PREFETCH_TTL_S / 2

    def add(self, messages: Iterable[FetchedMessage], sent_at: float) -> None:
        """Add messages whose fetch was sent at a time.

        Their age counts from there: if the node stood still since, another one may have got them.
        """
        self._messages.extend((sent_at, message) for message in messages)

    def take(self, count: int) -> list[FetchedMessage]:
        """Remove and return the next messages."""
        return [self._messages.popleft()[1] for _ in range(count)]

    def is_stale(self, now: float) -> bool:
        """Return whether the oldest message has waited for too long."""
        return bool(self._messages) and now >= self._messages[0][0] + tuning.PREFETCH_TTL_S

    def keep_longer(self, now: float) -> None:
        """Let all messages wait anew: they could not go back."""
        self._messages = deque((now, message) for _, message in self._messages)

    def clear(self) -> None:
        """Forget the messages, which have gone back."""
        self._messages.clear()

    def is_check_due(self, now: float) -> bool:
        """Return whether no check is scheduled that is still to come."""
        return now > self._check_at

    def schedule_check(self, now: float) -> float:
        """Return in how many seconds to check whether the oldest message is stale, and note it."""
        wait = max(self._messages[0][0] + tuning.PREFETCH_TTL_S - now, tuning.PREFETCH_TTL_S / 5)
        self._check_at = now + wait
        return wait
