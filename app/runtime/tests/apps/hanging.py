# SPDX-License-Identifier: MIT
"""An app whose nodes can be made to hang in each of the ways that they may."""

import os
import signal
import time
from typing import Any

from celery import Celery
from celery.signals import worker_ready

try:
    from gevent.monkey import get_original

    blocking_sleep = get_original("time", "sleep")
except ImportError:
    blocking_sleep = time.sleep

app = Celery("hanging", broker="redis://localhost:1/7", backend="redis://localhost:1/7")
app.conf.task_default_queue = "default"


@worker_ready.connect
def obey(**_: Any) -> None:
    """Let a signal hold up the main thread, in which the loop is."""
    signal.signal(signal.SIGUSR2, hang)


def hang(*_: Any) -> None:
    """Block the thread that runs this."""
    time.sleep(1000)


@app.task
def work(seconds: float) -> list[str]:
    """Work for a while; return which of systemd's variables this can see."""
    time.sleep(seconds)
    return sorted({"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & set(os.environ))


@app.task
def block(seconds: float) -> None:
    """Block the thread, with all greenlets that run in it."""
    blocking_sleep(seconds)
