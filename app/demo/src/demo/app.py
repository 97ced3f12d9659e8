# SPDX-License-Identifier: MIT
"""The Celery app: where its tasks go, and what it does by itself."""

from celery import Celery

from demo.settings import settings

app = Celery("demo", broker=settings.redis_url, backend=settings.redis_url, include=["demo.tasks"])

app.conf.update(
    task_default_queue="default",
    task_routes={
        "demo.tasks.send_letter": {"queue": "email"},
        "demo.tasks.count_primes": {"queue": "heavy"},
        "demo.tasks.digest": {"queue": "io"},
    },
    beat_schedule={
        "tick": {
            "task": "demo.tasks.tick",
            "schedule": settings.tick_seconds,
            # A tick that no node ran in time is not run later.
            "options": {"expires": settings.tick_seconds},
        },
    },
)
