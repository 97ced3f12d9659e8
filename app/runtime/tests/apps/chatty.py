# SPDX-License-Identifier: MIT
"""An app whose tasks say things in every way that there is."""

import logging
import os
from pathlib import Path
from typing import Any

from celery import Celery
from celery.utils.log import get_task_logger
from fleet_runtime.logging import journal

journal.RECORDS = Path(os.environ["TEST_JOURNAL"])

app = Celery("chatty", broker="redis://localhost:1/7", backend="redis://localhost:1/7")
app.conf.task_default_queue = "default"


@app.task(bind=True, max_retries=1, default_retry_delay=0)
def talk(self: Any, secret: str) -> str:
    """Say what the number of retries is, in several ways; fail the first time."""
    if not self.request.retries:
        raise self.retry(exc=LookupError("out of stock"))
    logging.getLogger("chatty.orders").warning("own logger")
    get_task_logger(__name__).info("task logger")
    print("printed")
    return secret


@app.task
def fail(_: str) -> None:
    """Fail for good."""
    raise LookupError("out of stock")


@app.task
def shout(length: int) -> None:
    """Say more than a datagram holds."""
    logging.getLogger("chatty.orders").info("x" * length)
