# SPDX-License-Identifier: MIT
"""An app with tasks whose bodies must not run twice."""

import os
import signal
import time
from pathlib import Path

from celery import Celery
from fleet_runtime import once

app = Celery("single", broker="redis://localhost:1/7", backend="redis://localhost:1/7")
app.conf.task_default_queue = "default"


def write(ledger: str) -> int:
    """Write a line, and return how many there are."""
    with Path(ledger).open("a") as file:
        file.write(f"{os.getpid()}\n")
    return len(Path(ledger).read_text().splitlines())


@app.task
@once("charge:{ledger}", ttl=60, lease=3)
def charge(ledger: str, seconds: float = 0) -> int:
    """Charge, and take longer for it than a lease lasts."""
    number = write(ledger)
    time.sleep(seconds)
    return number


@app.task
@once("die:{ledger}", ttl=60, lease=3)
def charge_and_die(ledger: str) -> int:
    """Die, the first time."""
    number = write(ledger)
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return number
