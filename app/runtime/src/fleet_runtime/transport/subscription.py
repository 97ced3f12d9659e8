# SPDX-License-Identifier: MIT
"""Whether the queues may have messages, and whether Redis will notify of the next one (CLIENT TRACKING)."""

from __future__ import annotations

from math import inf

from fleet_runtime.transport import tuning


class Subscription:
    """What is known of the queues between two fetches.

    Redis notifies once of a change to a tracked list. A fetch ends the tracking of the lists that it reads.

    Attributes:
        may_have_messages: Whether to fetch. False once a check found all queues empty.
        is_active: Whether Redis will notify of the next message.
        is_notified: Whether Redis has notified of a message since the last fetch.
        generation: Counts the changes of the consumed queues: a reply to a command of before a change is of
            no use.
        fell_short: Whether the last fetch found fewer messages than it asked for, so that the queues are
            probably empty now.
    """

    def __init__(self) -> None:
        """Start with queues of which nothing is known."""
        self.may_have_messages, self.is_active, self.is_notified = True, False, False
        self.generation = 0
        self.fell_short = False
        self._subscribed_at = -inf

    def reset(self) -> None:
        """Forget what is known: the consumed queues have changed, or the connection is lost."""
        self.generation += 1
        self.may_have_messages, self.is_active = True, False

    def on_invalidate(self) -> None:
        """Handle a notification."""
        self.may_have_messages, self.is_active, self.is_notified = True, False, True

    def on_fetch(self) -> None:
        """Note that a fetch was sent."""
        self.may_have_messages, self.is_active = False, False

    def on_subscribe(self, now: float) -> None:
        """Note that the lists were tracked, and checked for messages, at a time of the monotonic clock."""
        self.is_active, self._subscribed_at = True, now

    def on_checked(self, count: int, generation: int) -> None:
        """Record how many lists were not empty, by a check of some generation."""
        if generation == self.generation:
            self.may_have_messages = count > 0

    def is_due(self, now: float) -> bool:
        """Return whether to track the lists: nothing would notify, or the last notification is long ago."""
        if not (self.may_have_messages or self.is_active):
            return True
        return now > self._subscribed_at + tuning.POLL_INTERVAL_S
