"""Notes in each message when it was sent, so that the age of a queue can be told.

Neither Celery nor kombu says so: a message has only the time at which it may run at the earliest.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from celery.signals import before_task_publish

if TYPE_CHECKING:
    from collections.abc import Mapping

# Header of a message: seconds since 1970, by the clock of who sent it.
SENT = "fleet_sent"


def stamp_messages() -> None:
    """Note the time in every message that this process sends."""
    before_task_publish.connect(_stamp, dispatch_uid="fleet_runtime.stamp")


def sent_at(message: Mapping[str, Any]) -> float | None:
    """Return when a message was sent; None if its sender does not run this runtime."""
    headers = message.get("headers")
    sent = headers.get(SENT) if isinstance(headers, dict) else None
    return float(sent) if isinstance(sent, (int, float)) else None


def _stamp(headers: dict[str, Any], **_: Any) -> None:
    """Note the time in one."""
    headers[SENT] = round(time.time(), 3)
