# SPDX-License-Identifier: MIT
"""Removes the arguments and results of tasks from Celery's log records, if `log_arguments` is false.

The filter is at Celery's loggers, not in a handler: an app may have its own handlers (Sentry sends the
parameters of a record, JSON formatters write `extra`), and none of them may find arguments in a record.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

HIDDEN = "(not logged)"

# Names in the parameters or the `data` of a record whose values come from the caller of a task.
FIELDS = frozenset({"args", "kwargs", "argsrepr", "kwargsrepr", "return_value"})

# Celery's loggers with records about single tasks or messages (celery 5.7). concurrency/base.py uses
# `celery.pool`, and logs arguments at DEBUG; RedBeat uses `celery.beat`, too.
LOGGERS = (
    "celery.app.trace",
    "celery.beat",
    "celery.pool",
    "celery.worker.consumer.consumer",
    "celery.worker.request",
    "celery.worker.strategy",
)

# Records that contain a whole message: the beginning of Celery's text (worker/consumer/consumer.py,
# concurrency/base.py, beat.py), the text that replaces it, and the indexes of its parameters.
WITHOUT_BODY: tuple[tuple[str, str, tuple[int, ...]], ...] = (
    ("Received and deleted unknown message.", "Received a message that names no task.", ()),
    ("Received unregistered task of type", "Received unregistered task of type %s, by %s", (0, 3)),
    ("Received invalid task message:", "Received invalid task message: %s", (0,)),
    ("Can't decode message body:", "Can't decode message body: %s [type:%r encoding:%r]", (0, 1, 2)),
    ("TaskPool: Apply", "TaskPool: Apply %s", (0,)),
    ("Current schedule:", "The schedule has been read.", ()),
)
# The record whose first parameter, an exception, may quote the body: only its class is logged.
QUOTES = "Can't decode message body:"


class WithoutArguments(logging.Filter):
    """Removes arguments, results and bodies of messages from a record."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change a record, and let it pass."""
        message = record.msg if isinstance(record.msg, str) else ""
        for start, text, kept in WITHOUT_BODY:
            if message.startswith(start):
                args = record.args if isinstance(record.args, tuple) else ()
                if start == QUOTES:
                    args = (described(args[0]), *args[1:]) if args else args
                    record.exc_info = record.exc_text = None
                record.msg = text
                record.args = tuple(args[index] if index < len(args) else "?" for index in kept)
                break
        else:
            record.args = _hidden(record.args)
        data = record.__dict__.get("data")
        if isinstance(data, Mapping):
            record.__dict__["data"] = _hidden(data)
        return True


_filter = WithoutArguments()


def hide_arguments() -> None:
    """Hide arguments in the log of this process and of its child processes. It may be called repeatedly."""
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_filter)


def show_arguments() -> None:
    """Stop hiding arguments."""
    for name in LOGGERS:
        logging.getLogger(name).removeFilter(_filter)


def are_hidden() -> bool:
    """Return whether this process hides arguments in its log."""
    return _filter in logging.getLogger(LOGGERS[0]).filters


def described(error: object) -> str:
    """Return how the log shows an error that a body has caused: its class, if arguments are hidden.

    The text of the error may quote the body, as `UnicodeDecodeError` and `fromisoformat` do. The dead letter
    has the whole error.
    """
    return type(error).__name__ if are_hidden() else repr(error)


def _hidden(value: Any) -> Any:
    """Return the parameters of a record, with those of a task hidden."""
    if isinstance(value, Mapping):
        if FIELDS.isdisjoint(value):
            return value
        return {name: HIDDEN if name in FIELDS and part else part for name, part in value.items()}
    if isinstance(value, tuple):
        return tuple(_hidden(part) if isinstance(part, Mapping) else _named(part) for part in value)
    return value


def _named(part: Any) -> Any:
    """Return a parameter; for an entry of a schedule, whose text has its arguments, its name."""
    is_entry = any(kind.__name__ == "ScheduleEntry" for kind in type(part).__mro__)
    return part.name if is_entry else part
