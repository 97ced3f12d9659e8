# SPDX-License-Identifier: MIT
"""An app whose tasks retry often."""

from typing import Any

from celery import Celery

app = Celery("retrying")
app.conf.task_default_queue = "default"


@app.task(bind=True, max_retries=None)
def again(self: Any, times: int) -> int:
    """Retry so many times, and return how often that was."""
    if self.request.retries < times:
        raise self.retry(countdown=0.1)
    return int(self.request.retries)
