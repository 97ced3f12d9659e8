"""An app whose nodes look well: what they do, BREAK says."""

# celery ships no types
# mypy: disable-error-code="untyped-decorator"

import os
import time
from typing import Any

from celery import Celery, signals

app = Celery("sick")
app.conf.task_default_queue = "default"
broken = os.environ.get("BREAK")


@signals.worker_ready.connect
def never_consume(sender: Any, **_: Any) -> None:
    """Consume nothing."""
    if broken == "consumption":
        sender.cancel_task_queue("default")


@signals.task_prerun.connect
def hang(**_: Any) -> None:
    """Let no task begin in time."""
    if broken == "tasks":
        time.sleep(8)


@app.task
def wait(seconds: float) -> None:
    """Take time."""
    time.sleep(seconds)
