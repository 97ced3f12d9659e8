# SPDX-License-Identifier: MIT
"""What the processes of a pool share with the node, and when it sees that one has died."""

from __future__ import annotations

import gc
from contextlib import suppress
from functools import cache, wraps
from typing import Any

from billiard.util import get_pdeathsig
from celery import signals
from celery.concurrency.asynpool import AsynPool

from fleet_runtime.compat.surface import may_replace

AGAIN = 0.02  # seconds until the first other look; each further one waits twice as long
LOOKS = 8  # the pool looks by itself every 5 seconds
OTHERWISE = "This node may see the death of one of its processes 5 seconds late."


def share_memory() -> None:
    """Let processes share what is in memory as the first one is made: the app with all that it imports.

    Python's garbage collector writes to each object that it looks at, and so each process would soon have a
    copy of its own: 44 MB of an app of 60, where it takes 6 without.
    """
    signals.worker_before_create_process.connect(_freeze, weak=False, dispatch_uid="fleet.freeze")


@cache  # later it would keep what is garbage by then
def _keep() -> None:
    """Let the garbage collector look at nothing that there is now.

    Each process asks the kernel to end with its parent, and if the app has cffi, as cryptography does, then
    with a parser of C that it imports for this alone (billiard 4.3, set_pdeathsig). So it is there before.
    """
    with suppress(OSError):  # it is of no other use
        get_pdeathsig()
    gc.collect()
    gc.freeze()


def _freeze(**_: Any) -> None:
    """Handle the signal."""
    _keep()


def mend() -> None:
    """Look again at a process that is dying, until it is dead.

    A process closes its files before its parent can wait for it. The pool is woken by the first, and asks
    only once for the second (celery 5.7, AsynPool._event_process_exit): in one of three deaths on two cores
    it finds the process alive, and sees its death 5 seconds later. A task whose time limit ends meanwhile
    fails for that, instead of running again, because it is taken for one that runs.
    """
    original = may_replace("celery.concurrency.asynpool:AsynPool", "_event_process_exit", OTHERWISE)
    if original is None:
        return

    @wraps(original)
    def _event_process_exit(pool: Any, hub: Any, process: Any) -> None:
        original(pool, hub, process)
        _look_again(pool, hub, process, AGAIN, LOOKS)

    AsynPool._event_process_exit = _event_process_exit


def _look_again(pool: Any, hub: Any, process: Any, delay: float, looks: int) -> None:
    """Look at a process later, if the pool takes it for alive."""

    def look() -> None:
        pool.maintain_pool()
        _look_again(pool, hub, process, delay * 2, looks - 1)

    if looks and process in pool._pool:
        hub.call_later(delay, look)
