# SPDX-License-Identifier: MIT
"""Memory that child processes share with the node, and how soon the node sees that one has died."""

from __future__ import annotations

import gc
from contextlib import suppress
from functools import cache, wraps
from typing import Any

from billiard.util import get_pdeathsig
from celery import signals
from celery.concurrency.asynpool import AsynPool

from fleet_runtime.compat.surface import may_replace

# Seconds until the first further check of a dying process. Each further one waits twice as long.
FIRST_CHECK_S = 0.02
# Further checks: after these, the pool itself has checked, which it does every 5 seconds.
CHECKS = 8


def share_memory() -> None:
    """Let child processes share the memory of the app and all that it imports.

    Python's garbage collector writes to each object that it visits, so that each process would soon have its
    own copy: 44 MB of an app of 60 MB, and 6 MB without these writes.
    """
    signals.worker_before_create_process.connect(_freeze, weak=False, dispatch_uid="fleet.freeze")


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


def _freeze(**_: Any) -> None:
    """Handle the signal."""
    _freeze_once()


def patch_process_exit() -> None:
    """Check a dying process again, until it is dead.

    A process closes its files before its parent can wait for it. The closed files wake the pool, which checks
    once whether the process has ended (celery 5.7, AsynPool._event_process_exit). In one of three deaths on
    two cores it has not, and the pool notices 5 seconds later. A task whose time limit passes in between
    fails with a timeout, instead of running again, because the pool takes it for running.
    """
    original = may_replace("celery.concurrency.asynpool:AsynPool", "_event_process_exit")
    if original is None:
        return

    @wraps(original)
    def _event_process_exit(pool: Any, hub: Any, process: Any) -> None:
        original(pool, hub, process)
        _check_again(pool, hub, process, FIRST_CHECK_S, CHECKS)

    AsynPool._event_process_exit = _event_process_exit


def _check_again(pool: Any, hub: Any, process: Any, delay: float, checks: int) -> None:
    """Check a process after a delay in seconds, if the pool takes it for alive."""

    def check() -> None:
        pool.maintain_pool()
        _check_again(pool, hub, process, delay * 2, checks - 1)

    if checks and process in pool._pool:
        hub.call_later(delay, check)
