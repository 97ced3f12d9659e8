# SPDX-License-Identifier: MIT
"""Memory that child processes share with the node."""

from __future__ import annotations

import gc
from contextlib import suppress
from functools import cache

from billiard.util import get_pdeathsig
from celery import signals


def share_memory() -> None:
    """Let child processes share the memory of the app and all that it imports.

    Python's garbage collector writes to each object that it visits, so that each process would soon have its
    own copy: 44 MB of an app of 60 MB, and 6 MB without these writes.
    """
    freeze = signals.worker_before_create_process
    freeze.connect(lambda **_: _freeze_once(), weak=False, dispatch_uid="fleet.freeze")


@cache  # once, because later calls would also keep garbage
def _freeze_once() -> None:
    """Exclude all objects that exist now from garbage collection.

    Each child process asks the kernel to end with its parent. If the app has cffi, as cryptography does, this
    imports a parser of C (billiard 4.3, set_pdeathsig). The call here imports it before the first child.
    """
    with suppress(OSError):  # only the import matters
        get_pdeathsig()
    gc.collect()
    gc.freeze()
