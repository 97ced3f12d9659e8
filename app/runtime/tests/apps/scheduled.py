# SPDX-License-Identifier: MIT
"""An app with a schedule in a time zone of its own."""

from celery import Celery
from celery.schedules import crontab

app = Celery("scheduled", broker="redis://localhost:1/7", backend="redis://localhost:1/7")
app.conf.task_default_queue = "default"
app.conf.timezone = "Europe/Berlin"


@app.task
def note(entry: str) -> None:
    """Do nothing."""


app.conf.beat_schedule = {
    "hourly": {"task": note.name, "schedule": 3600.0, "args": ("hourly",)},
    "yearly": {
        "task": note.name,
        "schedule": crontab(minute=0, hour=12, day_of_month=29, month_of_year=2),
        "args": ("yearly",),
    },
}
