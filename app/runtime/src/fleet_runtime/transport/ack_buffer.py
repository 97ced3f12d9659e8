# SPDX-License-Identifier: MIT
"""Acknowledgements that wait to be sent together."""

from __future__ import annotations

from collections import deque
from math import inf
from typing import TYPE_CHECKING

from fleet_runtime.transport import tuning

if TYPE_CHECKING:
    from collections.abc import Iterable


class AckBuffer:
    """Delivery tags of settled messages, until a command acknowledges them.

    A tag waits for others for `ACK_LINGER_S`. Times are of the monotonic clock.

    Attributes:
        has_timer: Whether the loop will look again when the tags are due.
    """

    def __init__(self) -> None:
        """Start empty."""
        self.has_timer = False
        self._tags: deque[str] = deque()
        self._since = inf

    def __len__(self) -> int:
        """Return how many tags wait."""
        return len(self._tags)

    @property
    def tags(self) -> list[str]:
        """The tags, the oldest first."""
        return list(self._tags)

    @property
    def due_at(self) -> float:
        """When the tags have waited for long enough. Only of use if there are any."""
        return self._since + tuning.ACK_LINGER_S

    def add(self, tag: str, now: float) -> None:
        """Add the tag of a message that was settled just now."""
        if not self._tags:
            self._since = now
        self._tags.append(tag)

    def flush_soon(self) -> None:
        """Let the tags wait for no others."""
        self._since = -inf

    def take(self) -> tuple[str, ...]:
        """Remove and return the tags for one command, at most `ACK_BATCH`."""
        tags = self._tags
        return tuple(tags.popleft() for _ in range(min(len(tags), tuning.ACK_BATCH)))

    def restart(self, now: float) -> None:
        """Let the tags that are left wait anew, after a command was sent."""
        self._since, self.has_timer = now, False

    def put_back(self, tags: Iterable[str]) -> None:
        """Put tags back in front of the others: their command failed, or its reply was lost."""
        self._tags.extendleft(reversed(tuple(tags)))
