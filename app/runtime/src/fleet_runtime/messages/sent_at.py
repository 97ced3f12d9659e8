# SPDX-License-Identifier: MIT
"""Records in each message when it was published, so that the age of a queue is known.

Messages of Celery and kombu do not have this time; they have only the earliest time at which they may run.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from celery.signals import before_task_publish

if TYPE_CHECKING:
    from collections.abc import Mapping

# Property of a message: seconds since 1970, by the clock of the sender. It is not a header, because a task
# finds unknown headers in `request.headers`. Messages of older releases have it as a header.
SENT = "fleet_sent"


def record_publish_time() -> None:
    """Record the time in every message that this process publishes."""
    before_task_publish.connect(_set_publish_time, dispatch_uid="fleet_runtime.messages.sent_at")


def sent_at(message: Mapping[str, Any]) -> float | None:
    """Return when a message was published; None if its sender does not use this runtime."""
    for part in (message.get("properties"), message.get("headers")):
        sent = part.get(SENT) if isinstance(part, dict) else None
        if isinstance(sent, (int, float)):
            return float(sent)
    return None


def _set_publish_time(properties: dict[str, Any], **_: Any) -> None:
    """Record the time in a message."""
    properties[SENT] = round(time.time(), 3)
