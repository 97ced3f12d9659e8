# SPDX-License-Identifier: MIT
"""An app whose tasks end in every way in which Python code can end."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from celery import Celery
from celery.exceptions import Ignore, Reject, WorkerShutdown, WorkerTerminate

app = Celery("ends", broker="redis://localhost:1/7", backend="redis://localhost:1/7")
app.conf.task_default_queue = "default"


class TextlessError(Exception):
    """An exception of which neither text nor repr can be had."""

    def __str__(self) -> str:
        """Fail."""
        raise RuntimeError("no text")

    __repr__ = __str__


class UnpicklableError(Exception):
    """An exception that cannot be sent to another process."""

    def __reduce__(self) -> Any:
        """Fail."""
        raise RuntimeError("not to be pickled")


class OwnBaseError(BaseException):
    """An exception that no `except Exception` catches."""


def nested(depth: int) -> Any:
    """Return lists in lists."""
    found: Any = []
    for _ in range(depth):
        found = [found]
    return found


def recurse() -> None:
    """Call itself."""
    recurse()


def raising(error: BaseException) -> Callable[[], Any]:
    """Return a function that raises something."""

    def fail() -> None:
        raise error

    return fail


# By its name, what a task does. What ends a process of a pool, or would, runs again a few times.
FAILS: dict[str, Callable[[], Any]] = {
    "memory": raising(MemoryError("too much")),
    "recursion": recurse,
    "textless": raising(TextlessError()),
    "unpicklable": raising(UnpicklableError()),
    "generator exit": raising(GeneratorExit()),
    "own base": raising(OwnBaseError("own")),
    "no JSON": object,
    "deep": lambda: nested(100_000),
    "group": raising(ExceptionGroup("two", [ValueError("one"), MemoryError("two")])),
    "surrogate": raising(ValueError("\udc80")),
    "long": raising(ValueError("x" * 3_000_000)),
    "stop iteration": raising(StopIteration(5)),
    "late reject": raising(Reject("late", requeue=False)),
}
LOST: dict[str, Callable[[], Any]] = {
    "system exit": lambda: sys.exit(3),
    "interrupt": raising(KeyboardInterrupt()),
    "shutdown": raising(WorkerShutdown(0)),
    "terminate": raising(WorkerTerminate(1)),
}


@app.task
def end(how: str, runs: str) -> Any:
    """Note a run, and end somehow."""
    with Path(runs).open("a", encoding="utf-8") as file:
        file.write("run\n")
    return {**FAILS, **LOST}[how]()


@app.task
def ignore() -> None:
    """End without an end."""
    raise Ignore


@app.task
def add(x: int, y: int) -> int:
    """Add."""
    return x + y


@app.task
def take(_: Any) -> int:
    """Take an argument."""
    return 1
