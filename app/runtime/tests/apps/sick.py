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
broken = os.environ.get("BREAK", "").split()


def refuse(name: str, *_: Any, **__: Any) -> str:
    """Route only what has a tenant."""
    raise KeyError(f"{name} has no tenant")


if "settings" in broken:
    app.conf.task_routes = (refuse,)
    app.conf.task_annotations = {
        "*": {"acks_late": False, "rate_limit": "1/h", "Request": "celery.worker.request:Request"}
    }
    app.conf.task_serializer = "yaml"


@signals.worker_ready.connect
def never_consume(sender: Any, **_: Any) -> None:
    """Consume nothing."""
    if "consumption" in broken:
        sender.cancel_task_queue("default")
    if "settings" in broken:
        sender.add_task_queue("email")


@signals.task_prerun.connect
def hang(task: Any, **_: Any) -> None:
    """Let no task begin in time."""
    if "tasks" in broken and task.name != "sick.wait":
        time.sleep(12)
    if "long" in broken:
        time.sleep(600)


@signals.task_prerun.connect
def die(**_: Any) -> None:
    """Let no process live through a task."""
    if "processes" in broken and not Path(os.environ.get("CURE", "/nowhere")).exists():
        os._exit(1)


@app.task
def wait(seconds: float) -> None:
    """Take time."""
    time.sleep(seconds)
