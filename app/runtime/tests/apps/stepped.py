# SPDX-License-Identifier: MIT
"""An app whose messages have ten priorities, where kombu has four."""

from celery import Celery

app = Celery("stepped")
app.conf.task_default_queue = "default"
app.conf.broker_transport_options = {"priority_steps": list(range(10))}


@app.task
def name(text: str) -> str:
    """Return it."""
    return text
