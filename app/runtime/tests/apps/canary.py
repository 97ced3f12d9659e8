# SPDX-License-Identifier: MIT
"""An app that writes down all that is in each log record, as a handler of its own for JSON may."""

import logging
import os
import time
from contextlib import suppress
from typing import Any

from celery import Celery
from celery.exceptions import Reject
from celery.signals import after_setup_logger


class Everything(logging.Formatter):
    """Makes a line of all that a record has, its parameters included."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        return repr({**vars(record), "text": super().format(record)})


@after_setup_logger.connect
def add(logger: logging.Logger, **_: Any) -> None:
    """Have each record in a file."""
    handler = logging.FileHandler(os.environ["EVERYTHING"])
    handler.setFormatter(Everything())
    logger.addHandler(handler)


app = Celery("canary")
app.conf.task_default_queue = "default"


@app.task
def keep(secret: str) -> str:
    """Return what it got."""
    return secret


@app.task
def fail(secret: str) -> None:
    """Fail for good."""
    raise LookupError("out of stock")


@app.task(bind=True, default_retry_delay=0)
def again(self: Any, secret: str) -> str:
    """Retry once."""
    if not self.request.retries:
        raise self.retry(exc=LookupError("out of stock"))
    return secret


@app.task
def reject(secret: str) -> None:
    """Want no more of it."""
    raise Reject("no", requeue=False)


@app.task(soft_time_limit=1, time_limit=2)
def linger(secret: str) -> None:
    """Take too long, whatever is said."""
    while True:
        with suppress(Exception):
            time.sleep(5)


@app.task
def die(secret: str) -> None:
    """Take the process along."""
    os._exit(1)


@app.task
def end() -> None:
    """Do nothing."""


if secret := os.environ.get("SCHEDULED"):
    app.conf.beat_schedule = {
        "sent": {"task": keep.name, "schedule": 1.0, "args": (secret,)},
        "too many": {"task": keep.name, "schedule": 1.0, "args": (secret, secret)},
    }
