# SPDX-License-Identifier: MIT
"""Keeps the arguments and results of tasks out of what Celery itself logs, where `log_arguments` is false.

It is done where a record begins, at Celery's loggers, and not in a handler: an app may bring handlers of its
own (Sentry sends a record's parameters, formatters for JSON write what is in `extra`), and none of them may
find arguments in a record.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

HIDDEN = "(not logged)"

# What Celery has under these names, in a record's parameters or its `data`, is of a task's caller.
FIELDS = frozenset({"args", "kwargs", "argsrepr", "kwargsrepr", "return_value"})

# Celery's loggers whose records are about single tasks or messages (celery 5.7). `celery.pool` is the one of
# concurrency/base.py, which has arguments at DEBUG; `celery.beat` is RedBeat's, too.
LOGGERS = (
    "celery.app.trace",
    "celery.beat",
    "celery.pool",
    "celery.worker.consumer.consumer",
    "celery.worker.request",
    "celery.worker.strategy",
)

# Records that have a whole message in them: the beginning of Celery's text (worker/consumer/consumer.py,
# concurrency/base.py, beat.py), the text that is logged instead, and which of the parameters are in it.
WITHOUT_BODY: tuple[tuple[str, str, tuple[int, ...]], ...] = (
    (
        "Received and deleted unknown message.",
        "Received a message that names no task.",
        (),
    ),
    (
        "Received unregistered task of type",
        "Received unregistered task of type %s, by %s",
        (0, 3),
    ),
    ("Received invalid task message:", "Received invalid task message: %s", (0,)),
    ("Can't decode message body:", "Can't decode message body: %s [type:%r encoding:%r]", (0, 1, 2)),
    ("TaskPool: Apply", "TaskPool: Apply %s", (0,)),
    ("Current schedule:", "The schedule has been read.", ()),
)
# Those of them whose exception may quote the body, by their first parameter: of these its class is logged.
QUOTES = "Can't decode message body:"


class WithoutArguments(logging.Filter):
    """Takes arguments, results and bodies of messages out of a record."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change a record, and let it pass."""
        message = record.msg if isinstance(record.msg, str) else ""
        for start, text, kept in WITHOUT_BODY:
            if message.startswith(start):
                given = record.args if isinstance(record.args, tuple) else ()
                if start == QUOTES:
                    given = (described(given[0]), *given[1:]) if given else given
                    record.exc_info = record.exc_text = None
                record.msg = text
                record.args = tuple(given[place] if place < len(given) else "?" for place in kept)
                break
        else:
            record.args = _hidden(record.args)
        data = record.__dict__.get("data")
        if isinstance(data, Mapping):
            record.__dict__["data"] = _hidden(data)
        return True


_filter = WithoutArguments()


def hide_arguments() -> None:
    """Keep arguments out of the log of this process and of its children."""
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_filter)  # which is there once, however often this is said


def show_arguments() -> None:
    """Leave Celery's records as they are."""
    for name in LOGGERS:
        logging.getLogger(name).removeFilter(_filter)


def are_hidden() -> bool:
    """Return whether this process keeps arguments out of its log."""
    return _filter in logging.getLogger(LOGGERS[0]).filters


def described(error: object) -> str:
    """Return what the log may have of an error that was raised while a body was read: its class.

    What it says may quote the body, as `UnicodeDecodeError` and `fromisoformat` do. The dead letter has all.
    """
    return type(error).__name__ if are_hidden() else repr(error)


def _hidden(value: Any) -> Any:
    """Return a record's parameters, without those of a task."""
    if isinstance(value, Mapping):
        if FIELDS.isdisjoint(value):
            return value
        return {name: HIDDEN if name in FIELDS and part else part for name, part in value.items()}
    if isinstance(value, tuple):
        return tuple(_hidden(part) if isinstance(part, Mapping) else _named(part) for part in value)
    return value


def _named(part: Any) -> Any:
    """Return a parameter; an entry of a schedule, whose text has its arguments, by its name."""
    is_entry = any(one.__name__ == "ScheduleEntry" for one in type(part).__mro__)
    return part.name if is_entry else part
