# SPDX-License-Identifier: MIT
"""URL schemes of the runtime's transports. Imports nothing, since every process of the fleet reads it."""

from __future__ import annotations

#: Prefix of a scheme that stands for the runtime's transport in place of kombu's.
PREFIX = "fleet-"


def without_prefix(url: str) -> str:
    """Return a broker's URL with the scheme that kombu knows."""
    return url.removeprefix(PREFIX)
