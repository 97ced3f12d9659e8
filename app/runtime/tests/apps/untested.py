# SPDX-License-Identifier: MIT
"""The app shop, with a version of kombu that the level full does not support, or with a changed kombu."""

import os
from typing import Any

import kombu
from kombu.transport.redis import Channel

from shop import app

__all__ = ["app"]

if os.environ.get("CHANGED"):

    def _connparams(channel: Any, more: bool = False) -> dict[str, Any]:
        """Return nothing of use."""
        return {}

    Channel._connparams = _connparams
else:
    kombu.__version__ = "5.9.0"
