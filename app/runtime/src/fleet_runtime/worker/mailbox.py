# SPDX-License-Identifier: MIT
"""Measures for how long a node has not listened for control commands.

A node may run tasks and renew its lease while nothing reads its mailbox: with gevent, another greenlet does.
`fleet status` reports that. Nothing is sent for it: the transport records when a mailbox was last polled,
which happens each second or with each turn of the loop, whether commands come or not.
"""

from __future__ import annotations

import time
from typing import Any

from celery.concurrency import solo

from fleet_runtime.transport.channel import Channel


def silence(consumer: Any, since: float) -> float:
    """Return for how many seconds a node has not listened for control commands.

    It is 0 where that is not known or expected: without remote control, with kombu's own transport, and in a
    solo pool, which does not listen while it runs a task.

    Args:
        consumer: The consumer of the node.
        since: When the node started, by the monotonic clock. It counts if the node has never listened.
    """
    boxes = (step.box for step in getattr(consumer, "steps", ()) if hasattr(step, "box"))
    mailbox = next(boxes, None)
    if mailbox is None or isinstance(consumer.pool, solo.TaskPool):
        return 0.0
    channel = mailbox.node.channel
    if channel is not None and not isinstance(channel, Channel):
        return 0.0
    listened = since if channel is None or channel.listened_at is None else channel.listened_at
    return max(0.0, round(time.monotonic() - listened, 1))
