# SPDX-License-Identifier: MIT
"""An app that counts the tasks of its signals, and each traced task, as monitors do."""

import os
from functools import wraps
from pathlib import Path
from typing import Any

from celery import Celery, signals
from celery.app import trace

app = Celery("watched")
app.conf.task_default_queue = "default"
SIGNALS = ("received", "prerun", "postrun", "success", "failure", "retry", "revoked", "rejected", "unknown")


def note(what: str) -> None:
    """Write down what was seen."""
    with Path(os.environ["SEEN"]).open("a") as file:
        file.write(f"{what}\n")


def watch(name: str) -> None:
    """Note the task of each signal."""

    def seen(sender: Any = None, request: Any = None, **_: Any) -> None:
        note(f"{name} {getattr(sender, 'name', None) or getattr(request, 'name', '')}")

    getattr(signals, f"task_{name}").connect(seen, weak=False)


for one in (*SIGNALS, "internal_error"):
    watch(one)

build = trace.build_tracer


@wraps(build)
def build_traced(name: str, task: Any, *args: Any, **options: Any) -> Any:
    """Note each task that is run, around what Celery does to run it, as Sentry does."""
    run = build(name, task, *args, **options)

    def traced(*words: Any, **more: Any) -> Any:
        note(f"traced {name}")
        return run(*words, **more)

    return traced


trace.build_tracer = build_traced


@app.task(bind=True)
def headers(self: Any) -> Any:
    """Return the headers of this task that are not Celery's own."""
    return self.request.headers


@app.task(bind=True, default_retry_delay=0)
def again(self: Any) -> Any:
    """Retry once; then return the headers."""
    if not self.request.retries:
        raise self.retry()
    return self.request.headers
