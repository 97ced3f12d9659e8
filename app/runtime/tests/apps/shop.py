"""An app that knows nothing of the fleet: it names a broker of its own, which does not exist."""

import os
import signal
import time
from pathlib import Path

from celery import Celery

app = Celery("shop", broker="redis://localhost:1/7", backend="redis://localhost:1/7")
app.conf.task_default_queue = "default"


@app.task
def add(x: int, y: int) -> int:
    """Add."""
    return x + y


@app.task
def die_once(mark: str) -> str:
    """Kill the process that runs this, the first time."""
    if not Path(mark).exists():
        Path(mark).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


die_once.default_retry_delay = 0


@app.task
def order(mark: str) -> str:
    """Say that this runs, wait until the broker is gone, and send another task; return its id."""
    Path(mark).touch()
    while Path(mark).exists():
        time.sleep(0.05)
    return str(add.delay(1, 1).id)
