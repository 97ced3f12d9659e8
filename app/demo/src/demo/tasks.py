"""A task for each queue, and the one that the schedule runs."""

# Celery ships no types.
# mypy: disable-error-code="untyped-decorator"
from __future__ import annotations

import hashlib
import tempfile
import time
from datetime import UTC, datetime
from email.message import EmailMessage

from celery.utils.log import get_task_logger

from demo.app import app
from demo.settings import settings

logger = get_task_logger(__name__)

BLOCK = 1024 * 1024


@app.task
def greet(name: str, seconds: float = 0) -> str:
    """Return a greeting after a while. Queue: default."""
    time.sleep(seconds)
    return f"Hello, {name}!"


@app.task
def send_letter(to: str, subject: str, seconds: float = 0.1) -> int:
    """Write a letter, wait as long as a mail server would, and return the letter's size. Queue: email."""
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
