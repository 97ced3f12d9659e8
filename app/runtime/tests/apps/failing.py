# SPDX-License-Identifier: MIT
"""An app whose tasks fail in every way there is."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from celery import Celery, Task
from celery.exceptions import Reject
from celery.worker.request import Request

app = Celery("failing", broker="redis://localhost:1/7", backend="redis://localhost:1/7")
app.conf.task_default_queue = "default"


class LastWord(Task):
    """A task whose process dies when all is done."""

    def on_success(self, *_: Any) -> None:
        """Die."""
        os.kill(os.getpid(), signal.SIGKILL)


class OwnRequest(Request):
    """A request of the app's own class."""


@app.task
def note(path: str) -> int:
    """Note a run in a file; return how many there are."""
    with Path(path).open("a", encoding="utf-8") as file:
        file.write("run\n")
    return len(Path(path).read_text(encoding="utf-8").splitlines())


@app.task
def fail() -> None:
    """Fail at once."""
    raise ValueError("bröken")


@app.task(ignore_result=True)
def fail_quietly() -> None:
    """Fail, and store nothing."""
    raise ValueError("broken")


@app.task(Request="failing:OwnRequest")
def fail_by_own_request() -> None:
    """Fail, and be asked for by a class of the app's."""
    raise ValueError("broken")


@app.task(acks_late=False)
def fail_early() -> None:
    """Fail when the message is acknowledged."""
    raise ValueError("broken")


@app.task(bind=True, max_retries=2, default_retry_delay=0)
def fail_again(self: Any, path: str) -> None:
    """Note a run, and fail each time."""
    note(path)
    raise self.retry(exc=ValueError("broken"))


@app.task(bind=True, max_retries=1, default_retry_delay=0)
def fail_until(self: Any, mark: str) -> int:
    """Fail until there is a file; then return how often this was retried."""
    if not Path(mark).exists():
        raise self.retry(exc=ValueError("broken"))
    return int(self.request.retries)


@app.task
def reject() -> None:
    """Reject the message."""
    raise Reject("unwanted", requeue=False)


@app.task(time_limit=1)
def hang() -> None:
    """Exceed the time limit."""
    time.sleep(60)


def hang_and_note(path: str) -> None:
    """Take long, and note what is raised meanwhile."""
    note(path)
    try:
        time.sleep(60)
    except Exception as error:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(f"{type(error).__name__}\n")
        raise
    finally:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write("finally\n")


@app.task(time_limit=1, autoretry_for=(Exception,), default_retry_delay=0)
def hang_on(path: str) -> None:
    """Exceed the time limit of the task, and want to be retried for any exception."""
    hang_and_note(path)


@app.task(bind=True, max_retries=3, default_retry_delay=0)
def hang_by_message(self: Any, path: str, *, retried: bool = True) -> None:
    """Exceed the time limit of the message, and be retried for any exception."""
    try:
        hang_and_note(path)
    except Exception as error:
        if retried:
            raise self.retry(exc=error) from error
        raise


@app.task
def kill(path: str) -> None:
    """Note a run, and kill the process."""
    note(path)
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(reject_on_worker_lost=False)
def kill_once(path: str) -> None:
    """Kill the process, and want no other try."""
    kill(path)


@app.task(base=LastWord)
def kill_when_done(path: str) -> None:
    """Succeed, and then kill the process."""
    note(path)


@app.task
def report(request: Any, error: BaseException, traceback: str, path: str) -> None:
    """Note that another task failed, as its errback."""
    Path(path).write_text(f"{request.id} {type(error).__name__}: {error}", encoding="utf-8")
