# SPDX-License-Identifier: MIT
"""Questions to a channel, or to a message, of kombu's Redis transport that kombu has no public name for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Iterable


def list_of(channel: Any, queue: str, priority: int) -> str:
    """Return the key of the Redis list that has a queue's messages of a priority."""
    return str(channel._q_for_pri(queue, priority))


def priority_of(channel: Any, message: Any) -> int:
    """Return the priority of a message, as a number from 0 to 9; 0 is the most urgent.

    Args:
        channel: A channel of the message's connection.
        message: The message as it is stored, a dictionary.
    """
    return int(channel._get_message_priority(message, reverse=False))


def queues_of(channel: Any, exchange: str, routing_key: str) -> Iterable[str]:
    """Return the queues to which kombu routes a message."""
    return cast("Iterable[str]", channel._lookup(exchange, routing_key))


def stored(message: Any) -> dict[str, Any]:
    """Return a received message as it is stored in Redis."""
    return cast("dict[str, Any]", message._raw)


def decoded_body(message: Any) -> Any:
    """Return the body of a received message if it has been decoded before; else None."""
    return message._decoded_cache
