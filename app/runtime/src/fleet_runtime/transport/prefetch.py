# SPDX-License-Identifier: MIT
"""Messages that are fetched before the node has a slot for them.

With one message for each child process, a process waits for Redis between any two tasks, and each task wakes
all of them. A node that has settled many messages lately fetches the next ones along with the last.
"""

from __future__ import annotations

from collections import deque
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any

from redis.exceptions import ResponseError

from fleet_runtime.broker import functions, scripts
from fleet_runtime.broker.oom import is_full
from fleet_runtime.transport import tuning

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fleet_runtime.transport.fetch import FetchedMessage


class RateEstimator:
    """Measures how many messages a node settles in a second.

    Attributes:
        settled: Messages since the last measurement; the channel counts them.
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


class Prefetcher:
    """Keeps prefetched messages for a channel, delivers them when there are slots, or puts them back in time.

    Attributes:
        buffer: The messages.
        rate: How many messages the node settles in a second.
    """

    def __init__(self, channel: Any) -> None:
        """Start empty, for a `Channel`."""
        self.buffer = PrefetchBuffer()
        self.rate = RateEstimator()
        self._channel = channel

    def target(self, now: float) -> int:
        """Return how many messages to hold that there is no slot for yet.

        None for a node that has to ask before each message, that has no loop, and so could not put them back
        in time, or whose Redis is so far away that they would go back as they come.
        """
        channel, rate = self._channel, self.rate.measure(now)
        singly = channel.fetches_singly() or channel.fetch_limit < tuning.FETCH_BATCH or channel.lists.no_ack
        if singly or channel.connection.cycle.loop is None or not self.buffer.is_near:
            return 0
        return target(rate, channel.qos.prefetch_count)

    def keep(self, messages: list[FetchedMessage], sent_at: float) -> None:
        """Keep messages for a while; if the queue of one was cancelled meanwhile, all go back.

        Args:
            messages: The messages.
            sent_at: When their fetch was sent, by the monotonic clock.
        """
        self.buffer.add(messages, sent_at)
        now = monotonic()
        if any(message.queue not in self._channel.queues for message in messages):
            self.put_back()
        elif self.buffer.is_check_due(now):
            self._schedule_check(now)

    def deliver(self, now: float) -> None:
        """Deliver the messages as far as there are slots, or put them back if they are stale."""
        if self.release_stale(now):
            return
        count = min(self._channel.free_slots(), len(self.buffer))
        self._channel.deliver_all(self.buffer.take(count))
        if count:
            self._channel.connection.cycle.go_on()

    def release_stale(self, now: float | None = None) -> bool:
        """Put all messages back if the oldest has waited for too long. Returns whether it did."""
        if not self.buffer.is_stale(monotonic() if now is None else now):
            return False
        self.rate.per_second = 0.0
        self.put_back()
        return True

    def put_back(self) -> None:
        """Put all messages back to the head of their queues; later, if Redis refuses writes."""
        channel, messages = self._channel, self.buffer.messages
        if not messages:
            return
        keys = [channel.unacked_key, channel.unacked_index_key, *(message.key for message in messages)]
        args = [arg for message in messages for arg in (message.tag, message.item)]
        try:
            with channel.conn_or_acquire() as client:
                functions.run(client, scripts.UNPREFETCH, keys, args)
        except ResponseError as error:
            if not is_full(error):
                raise
            self.buffer.keep_longer(monotonic())
            return
        self.buffer.clear()

    def _schedule_check(self, now: float) -> None:
        """Let the loop look again when the oldest message is stale."""
        self._channel.connection.cycle.loop.call_later(self.buffer.schedule_check(now), self._on_check)

    def _on_check(self) -> None:
        """Schedule the next check. The loop calls `on_poll_start` in the same turn."""
        if self.buffer and not self._channel.closed:
            self._schedule_check(monotonic())
