# SPDX-License-Identifier: MIT
"""Arguments and reply of the script `fetch_and_ack`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from kombu.utils.encoding import bytes_to_str

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class FetchedMessage(NamedTuple):
    """A message that was fetched, and not delivered yet.

    Attributes:
        key: The list that it was in.
        queue: The queue of that list.
        tag: Its delivery tag in Redis.
        item: The bytes that were in the list.
        is_newest: Whether it was fetched as the newest of its list.
    """

    key: str
    queue: str
    tag: str
    item: bytes
    is_newest: bool


class QueueLists:
    """The lists of the consumed queues, and the arguments of the script that depend on them alone.

    Attributes:
        no_ack: Queues whose messages are not acknowledged, and so are not recorded.
    """

    def __init__(self) -> None:
        """Start without a queue."""
        self.no_ack: set[str] = set()
        self._keys: dict[str, list[str]] = {}
        self._cached_for: list[str] | None = None
        self._cached: tuple[list[str], list[Any]] = ([], [])

    def add(self, queue: str, keys: list[str], *, no_ack: bool) -> None:
        """Add a queue, with its lists by priority."""
        (self.no_ack.add if no_ack else self.no_ack.discard)(queue)
        self._keys[queue] = keys
        self._cached_for = None

    def keys(self, queues: Iterable[str]) -> list[str]:
        """Return all lists of some queues."""
        return [key for queue in queues for key in self._keys[queue]]

    def arguments(self, queues: Sequence[str], *, in_turn: bool) -> tuple[list[str], list[Any]]:
        """Return the lists of some queues in the order of the script, and its arguments about the queues.

        Args:
            queues: In the order in which they are to be read. They are mostly those of the last call.
            in_turn: Whether the queues take turns. It never changes for a channel.
        """
        if not queues:
            return [], [0, 0]
        if queues != self._cached_for:
            keys = [key for keys in zip(*map(self._keys.__getitem__, queues), strict=True) for key in keys]
            names = ["" if queue in self.no_ack else queue for queue in queues]
            self._cached_for, self._cached = list(queues), (keys, [int(in_turn), len(queues), *names])
        return self._cached


def parse_reply(
    reply: Sequence[Any], queues: Sequence[str], keys: Sequence[str], oldest: int
) -> list[FetchedMessage]:
    """Return the messages in a reply of the script.

    Args:
        reply: The place of the list, the delivery tag and the item, for each.
        queues: The queues that were named in the command.
        keys: Their lists, by priority, and within a priority by queue.
        oldest: How many of the first messages are the oldest of their lists; the rest are the newest.
    """
    places = map(int, reply[::3])
    return [
        FetchedMessage(keys[place], queues[place % len(queues)], bytes_to_str(tag), item, number >= oldest)
        for number, (place, tag, item) in enumerate(zip(places, reply[1::3], reply[2::3], strict=True))
    ]
