# SPDX-License-Identifier: MIT
"""Tells for how long a node has not listened for control commands.

A node may run tasks and renew its lease while nothing reads its mailbox: with gevent, a greenlet of its own
does. `fleet status` says so then. Nothing is sent for this: the transport notes when a mailbox was last among
what is polled, which is each second or with each turn of the loop, whether commands come or not.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from celery.concurrency import solo

from fleet_runtime.transport.channel import Channel

if TYPE_CHECKING:
    from collections.abc import Iterable


def silence(consumer: Any, since: float) -> float:
    """Return for how many seconds a node has not listened for control commands.

    It is 0 where that is not known, or means nothing: without remote control, with kombu's own transport, and
    in a solo pool, which does not listen while it runs a task.

    Args:
        consumer: The node's.
        since: When the node began, by the monotonic clock: if it has never listened.
    """
    mailbox = _mailbox(getattr(consumer, "steps", ()))
    if mailbox is None or isinstance(consumer.pool, solo.TaskPool):
        return 0.0
    channel = mailbox.node.channel
    if channel is not None and not isinstance(channel, Channel):
        return 0.0
    listened = since if channel is None or channel.listened_at is None else channel.listened_at
    return max(0.0, round(time.monotonic() - listened, 1))


def _mailbox(steps: Iterable[Any]) -> Any:
    """Return what takes control commands in a node, if anything does."""
    return next((step.box for step in steps if hasattr(step, "box")), None)
