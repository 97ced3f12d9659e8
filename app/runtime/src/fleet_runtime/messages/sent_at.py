# SPDX-License-Identifier: MIT
"""Notes in each message when it was sent, so that the age of a queue can be told.

Neither Celery nor kombu says so: a message has only the time at which it may run at the earliest.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from celery.signals import before_task_publish

if TYPE_CHECKING:
    from collections.abc import Mapping

# Property of a message: seconds since 1970, by the clock of who sent it. Not a header, because a task finds
# those that are not Celery's own in `request.headers`. Messages of older releases have it as one.
SENT = "fleet_sent"


def stamp_messages() -> None:
    """Note the time in every message that this process sends."""
    before_task_publish.connect(_stamp, dispatch_uid="fleet_runtime.messages.sent_at")


def sent_at(message: Mapping[str, Any]) -> float | None:
    """Return when a message was sent; None if its sender does not run this runtime."""
    for part in (message.get("properties"), message.get("headers")):
        sent = part.get(SENT) if isinstance(part, dict) else None
        if isinstance(sent, (int, float)):
            return float(sent)
    return None


def _stamp(properties: dict[str, Any], **_: Any) -> None:
    """Note the time in one."""
    properties[SENT] = round(time.time(), 3)
