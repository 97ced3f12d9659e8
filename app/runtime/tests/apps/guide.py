# SPDX-License-Identifier: MIT
"""An app that uses what Celery's user guide has beyond the ordinary."""

import os
from typing import Any

from celery import Celery, group
from celery.result import GroupResult
from celery.schedules import schedule
from kombu import Queue
from kombu.common import Broadcast
from redbeat import RedBeatSchedulerEntry

app = Celery("guide", broker="redis://localhost:1/7", backend="redis://localhost:1/7")
app.conf.task_default_queue = "default"
app.conf.result_backend_transport_options = {"result_chord_ordered": False}


@app.task
def add(x: int, y: int) -> int:
    """Add."""
    return x + y


@app.task
def total(numbers: list[int]) -> int:
    """Add them all."""
    return sum(numbers)


@app.task
def keep_group() -> list[str]:
    """Send a group, keep its result, and return the ids of what is kept."""
    sent = group(add.s(number, 1) for number in range(2)).apply_async()
    sent.save()
    kept = GroupResult.restore(sent.id, app=app)
    return [result.id for result in kept.results]


@app.task(bind=True)
def grow(self: Any) -> int:
    """Add another task to the chord that this one is of."""
    self.add_to_chord(add.s(5, 5))
    return 1


if os.environ.get("GUIDE_BROADCAST"):
    app.conf.task_queues = [Queue("default"), Broadcast(os.environ["GUIDE_BROADCAST"])]
app.conf.worker_direct = bool(os.environ.get("GUIDE_DIRECT"))
app.conf.beat_enable_remote_control = bool(os.environ.get("GUIDE_BEAT"))


@app.task(bind=True)
def hear(self: Any) -> None:
    """Note which node ran this, under a key of the app's own."""
    app.backend.client.sadd("qo_heard", self.request.hostname)


@app.task(bind=True)
def where(self: Any) -> str:
    """Say which node runs this."""
    return str(self.request.hostname)


@app.task
def lock() -> bool:
    """Take a lock of the app's own, and release it."""
    with app.backend.client.lock("qo_task", timeout=10) as taken:
        return bool(taken.owned())


@app.task
def schedule_entry(name: str) -> str:
    """Have Beat send a task each second."""
    entry = RedBeatSchedulerEntry(name, "guide.hear", schedule(1), options={"queue": "default"}, app=app)
    entry.save()
    return str(entry.key)
