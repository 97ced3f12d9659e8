# SPDX-License-Identifier: MIT
"""A task for each queue, and the one that the schedule runs."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from datetime import UTC, datetime
from email.message import EmailMessage
from typing import TYPE_CHECKING

from celery.utils.log import get_task_logger

from demo.app import app
from demo.settings import settings

if TYPE_CHECKING:
    from celery import Task

logger = get_task_logger(__name__)

BLOCK = 1024 * 1024


@app.task
def greet(name: str, seconds: float = 0) -> str:
    """Return a greeting after a while. Queue: default."""
    time.sleep(seconds)
    return f"Hello, {name}!"


@app.task(bind=True)
def send_letter(self: Task, to: str, subject: str, seconds: float = 0.1, refusals: int = 0) -> int:
    """Write a letter, wait as long as a mail server would, and return the letter's size. Queue: email.

    So many times the mail server is busy first, and the task tries again a second later.
    """
    if self.request.retries < refusals:
        raise self.retry(exc=OSError("the mail server is busy"), countdown=1, max_retries=refusals)
    letter = EmailMessage()
    letter["From"], letter["To"], letter["Subject"] = settings.sender, to, subject
    letter.set_content(f"{subject}, {to}.\n")
    time.sleep(seconds)
    return len(letter.as_bytes())


@app.task
def count_primes(below: int) -> int:
    """Return how many prime numbers there are below a number; this takes CPU and memory. Queue: heavy."""
    sieve = bytearray([1]) * max(below, 2)
    sieve[0:2] = b"\0\0"
    for number in range(2, int(below**0.5) + 1):
        if sieve[number]:
            sieve[number * number :: number] = bytes(len(range(number * number, len(sieve), number)))
    return sum(sieve)


@app.task
def digest(megabytes: int) -> str:
    """Write a file, read it again, and return its SHA-256. Queue: io."""
    total = hashlib.sha256()
    with tempfile.TemporaryFile() as file:
        for number in range(megabytes):
            file.write(bytes([number % 256]) * BLOCK)
        file.seek(0)
        while block := file.read(BLOCK):
            total.update(block)
    return total.hexdigest()


@app.task
def tick() -> str:
    """Say the time. Each run leaves one line in the journal, which is how a test counts them."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    logger.info("tick %s", now)
    return now


@app.task(bind=True, ignore_result=True)
def record(self: Task, name: str, seconds: float = 0) -> None:
    """Add a line to a file when this run starts, and one when it ends, a while later. Any queue.

    A count of runs by these lines depends on no data of Celery.
    """
    note(self, name, "start")
    time.sleep(seconds)
    note(self, name, "end")


def note(task: Task, name: str, event: str) -> None:
    """Add a line to the ledger. It is on the disk when this returns, by one write, so that lines never mix.

    Its time is the time since the host was started, which no clock setting changes.
    """
    request = task.request
    line = {
        "name": name,
        "event": event,
        "at": time.monotonic(),
        "node": request.hostname,
        "delivery": request.properties["delivery_tag"],
        "redelivered": bool(request.delivery_info["redelivered"]),
    }
    file = os.open(settings.ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_DSYNC, 0o660)
    try:
        os.write(file, f"{json.dumps(line)}\n".encode())
    finally:
        os.close(file)
