# SPDX-License-Identifier: MIT
"""What goes on when Redis has no room: nodes take what is there, and keep their leases, so that it gets some.

A Redis at its memory limit refuses each command that may need memory. That is all commands by which a message
is moved, and a fleet that moves none would never make room.
"""

from __future__ import annotations

from redis.exceptions import OutOfMemoryError, ResponseError


def is_full(error: ResponseError) -> bool:
    """Return whether Redis refuses for want of memory, or of a disk that it can write to (MISCONF)."""
    return isinstance(error, OutOfMemoryError) or str(error).startswith("MISCONF")
