# SPDX-License-Identifier: MIT
"""An app with a queue whose messages every node gets, beside those of the inventory."""

from celery import Celery
from kombu import Queue
from kombu.common import Broadcast

app = Celery("loud", broker="redis://localhost:1/7", backend="redis://localhost:1/7")
app.conf.task_default_queue = "heavy"
app.conf.task_queues = [Queue("heavy"), Broadcast("announcements")]
app.conf.task_routes = {"loud.clear": {"queue": "announcements"}}


@app.task
def add(x: int, y: int) -> int:
    """Add."""
    return x + y


@app.task(ignore_result=True)
def clear() -> None:
    """Do nothing, on every node."""
