"""An app whose nodes look well: what they do, BREAK says."""

# celery ships no types
# mypy: disable-error-code="untyped-decorator"

import os
import time
from pathlib import Path
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
def hang(task: Any, **_: Any) -> None:
    """Let no task begin in time."""
    if broken == "tasks" and task.name != "sick.wait":
        time.sleep(12)


@signals.task_prerun.connect
def die(**_: Any) -> None:
    """Let no process live through a task."""
    if broken == "processes" and not Path(os.environ.get("CURE", "/nowhere")).exists():
        os._exit(1)


@app.task
def wait(seconds: float) -> None:
    """Take time."""
    time.sleep(seconds)
