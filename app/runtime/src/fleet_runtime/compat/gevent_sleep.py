# SPDX-License-Identifier: MIT
"""Lets greenlets run while kombu waits."""

from __future__ import annotations

import time

from kombu.utils import functional


def let_run() -> None:
    """Give kombu the `sleep` that gevent has put in its place, where it has.

    gevent's patching touches Celery's lazy attributes, which imports kombu.utils.functional in its midst: it
    keeps the `sleep` of before (celery 5.7, gevent 26). With it a node whose broker is away holds up
    all of its greenlets between two tries to connect, for up to 30 seconds. A task that tries to publish
    meanwhile does the same.
    """
    functional.sleep = time.sleep
