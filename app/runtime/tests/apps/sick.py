# SPDX-License-Identifier: MIT
"""An app whose nodes look well: what they do, BREAK says."""

import os
import time
from pathlib import Path
from typing import Any

from celery import Celery, signals
from celery.loaders.app import AppLoader

broken = os.environ.get("BREAK", "").split()


class Loader(AppLoader):
    """Has a word before each task of any kind, the proof of a node included."""

    def on_task_init(self, task_id: str, task: Any) -> None:
        """Let no task begin in time, or no process live through one."""
        if "tasks" in broken and task.name != "sick.wait":
            time.sleep(12)
        if "long" in broken:
            time.sleep(600)
        if "processes" in broken and not Path(os.environ.get("CURE", "/nowhere")).exists():
            os._exit(1)


app = Celery("sick", loader=Loader)
app.conf.task_default_queue = "default"


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


@app.task
def wait(seconds: float) -> None:
    """Take time, and say when that begins."""
    print("It waits.")
    time.sleep(seconds)
