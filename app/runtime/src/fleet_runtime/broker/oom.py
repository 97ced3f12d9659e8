# SPDX-License-Identifier: MIT
"""Behaviour at the memory limit of Redis.

There, Redis refuses every command that may need memory, which includes each command that moves a message. A
fleet that moves no messages would never free memory. So the scripts that fetch, acknowledge and requeue
messages, and those that renew leases, run even then (broker/scripts, `allow-oom`).
"""

from __future__ import annotations

from redis.exceptions import OutOfMemoryError, ResponseError


def is_full(error: ResponseError) -> bool:
    """Return whether Redis refuses a write: it is at its memory limit, or cannot write its disk (MISCONF)."""
    return isinstance(error, OutOfMemoryError) or str(error).startswith("MISCONF")
