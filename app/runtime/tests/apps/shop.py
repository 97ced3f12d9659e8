# SPDX-License-Identifier: MIT
"""An app that knows nothing of the fleet: it names a broker of its own, which does not exist."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from celery import Celery

app = Celery("shop", broker="redis://localhost:1/7", backend="redis://localhost:1/7")
app.conf.task_default_queue = "default"


@app.task
def add(x: int, y: int) -> int:
    """Add."""
    return x + y


@app.task(rate_limit="6/m")
def seldom() -> None:
    """Run seldom."""


@app.task
def total(numbers: list[int]) -> int:
    """Add them all."""
    return sum(numbers)


@app.task(bind=True, default_retry_delay=0)
def die_once(self: Any, mark: str) -> int:
    """Kill the process that runs this, the first time; then return how often this was retried."""
    if not Path(mark).exists():
        Path(mark).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return int(self.request.retries)


@app.task
def sleep(seconds: float) -> None:
    """Sleep."""
    time.sleep(seconds)


@app.task
def order(mark: str) -> str:
    """Say that this runs, wait until the broker is gone, and send another task; return its id."""
    Path(mark).touch()
    while Path(mark).exists():
        time.sleep(0.05)
    return str(add.delay(1, 1).id)


@app.task
def note(file: str, name: str, gate: str = "") -> None:
    """Write that this starts, wait until the gate is gone if there is one, and write that it is done."""
    with Path(file).open("a") as notes:
        notes.write(f"{name} starts\n")
    while gate and Path(gate).exists():
        time.sleep(0.05)
    with Path(file).open("a") as notes:
        notes.write(f"{name} ends\n")


# Naming a task binds it, before the fleet has a word in it.
app.conf.beat_schedule = {"daily": {"task": die_once.name, "schedule": 86400, "args": ("/dev/null",)}}
