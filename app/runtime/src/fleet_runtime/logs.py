"""Celery's logging, for processes whose output systemd collects.

Each record goes to the journal with fields, so that `journalctl TASK_ID=<id>` shows what became of a task,
from the node, its child and the app's own loggers.
"""

from __future__ import annotations

import json
import logging
import os
from contextlib import suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any

from celery._state import get_current_task
from celery.app import trace
from celery.app.defaults import DEFAULTS
from celery.app.log import Logging

from fleet_runtime import journal

# Python's levels as syslog's, which `journalctl -p` filters by and colours. Source: syslog(3), sd-daemon(3).
PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (0, 7))

# Celery's formats without what the journal has anyhow: time, level and process.
FORMATS = {
    DEFAULTS["worker_log_format"]: "%(message)s",
    DEFAULTS["worker_task_log_format"]: "%(task_name)s[%(task_id)s]: %(message)s",
}

# What is said of each task. Celery itself gives the result, and no arguments.
SUCCESS = "Task %(name)s[%(id)s] succeeded in %(runtime)ss"
RECEIVED_WITH_ARGUMENTS = "Task %(name)s[%(id)s] received, args: %(args)s, kwargs: %(kwargs)s"


OF_CELERY = {name: getattr(trace, name) for name in ("LOG_RECEIVED", "LOG_SUCCESS")}


# The message that the node has just taken: by the time that Celery keeps it, it has said that it has it.
_taken: ContextVar[Any] = ContextVar("taken", default=None)


class about:  # noqa: N801 (used as a function; one that yields takes three times as long)
    """Gives what is logged meanwhile about the task of a message the message's queue and retries."""

    def __init__(self, message: Any) -> None:
        """Prepare."""
        self._message = message

    def __enter__(self) -> None:
        """Begin."""
        self._token = _taken.set(self._message)

    def __exit__(self, *_: object) -> None:
        """End."""
        _taken.reset(self._token)


class LevelPrefix(logging.Formatter):
    """Begins each line of another formatter's text with its level, as sd-daemon(3) has it."""

    def __init__(self, inner: logging.Formatter) -> None:
        """Wrap a formatter."""
        super().__init__()
        self.inner = inner

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's text, with the prefix before each line."""
        priority = syslog_priority(record)
        return "\n".join(f"<{priority}>{line}" for line in self.inner.format(record).split("\n"))


class JournalHandler(logging.Handler):
    """Writes records with fields to the journal, and those that it does not take to its stream."""

    def __init__(self, stream: logging.Handler) -> None:
        """Stand in for a handler of the stream, with its formatter, which an app may replace."""
        super().__init__(stream.level)
        self.records = journal.Records()
        self.stream_handler = stream
        self.setFormatter(stream.formatter)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        try:
            if not self.records.send(self._fields(record)):
                self.stream_handler.setFormatter(LevelPrefix(self.formatter or logging.Formatter()))
                self.stream_handler.handle(record)
        except Exception:  # as all handlers do: a record that cannot be written ends no task
            self.handleError(record)

    def _fields(self, record: logging.LogRecord) -> dict[str, str]:
        """Return the fields of a record. Source: systemd.journal-fields(7)."""
        node = os.environ.get("FLEET_NODE", "")
        return {
            "MESSAGE": self.format(record),
            "PRIORITY": str(syslog_priority(record)),
            "SYSLOG_IDENTIFIER": journal.identifier(node),
            "LOGGER": record.name,
            "CODE_FILE": record.pathname,
            "CODE_LINE": str(record.lineno),
            "CODE_FUNC": record.funcName or "",
            **{name.upper(): str(value) for name, value in _about(record).items()},
        }


class JsonLines(logging.Formatter):
    """Makes a line of JSON of a record."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        about = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "process": record.process,
            **_about(record),
            "message": record.getMessage(),
        }
        if record.exc_info:
            about["traceback"] = self.formatException(record.exc_info)
        return json.dumps(about, ensure_ascii=False, default=str)


class JsonFile(WatchedFileHandler):
    """A file of JSON lines, which all processes of a node write to, each line at once."""

    def __init__(self, path: str) -> None:
        """Open it."""
        super().__init__(path, encoding="utf-8", errors="backslashreplace")
        with suppress(OSError):
            Path(path).chmod(0o640)  # for what collects logs; the umask of a node leaves nothing to its group
        self.setFormatter(JsonLines())


class FleetLogging(Logging):  # type: ignore[misc]  # celery ships no types
    """Celery's logging with fields in the journal, and /dev/null as another name for standard error.

    `celery multi` cannot be told to use no log file: without the option it takes one in /var/log/celery, and
    of an empty one it makes `--logfile` without a value, which swallows the next option (celery 5.7,
    apps/multi.py, format_opt). So nodes are started with --logfile=/dev/null.
    """

    def setup(self, loglevel: Any = None, logfile: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Set up logging for a node, or for one of its children."""
        return super().setup(loglevel, None if logfile == os.devnull else logfile, *args, **kwargs)

    def setup_handlers(self, logger: Any, logfile: Any, layout: Any, *args: Any, **kwargs: Any) -> Any:
        """Give a logger its handlers: for the journal, if its stream leads there, and for the JSON file."""
        if _is_ours(logger):
            return logger
        if logfile is None and _writes_to_journal(self._detect_handler()):
            layout = FORMATS.get(layout, layout)
        super().setup_handlers(logger, logfile, layout, *args, **kwargs)
        logger.handlers = [
            JournalHandler(handler) if _writes_to_journal(handler) else handler for handler in logger.handlers
        ]
        if path := os.environ.get("FLEET_LOG_FILE"):
            logger.addHandler(_opened(path))
        return logger


def lay_messages(*, with_arguments: bool) -> None:
    """Say what Celery's own records have of a task's arguments and result, unless the app has said so."""
    if with_arguments:
        if OF_CELERY["LOG_RECEIVED"] == trace.LOG_RECEIVED:
            trace.LOG_RECEIVED = RECEIVED_WITH_ARGUMENTS
    elif OF_CELERY["LOG_SUCCESS"] == trace.LOG_SUCCESS:
        trace.LOG_SUCCESS = SUCCESS


def syslog_priority(record: logging.LogRecord) -> int:
    """Return the level of a record as syslog has it."""
    return next(number for level, number in PRIORITIES if record.levelno >= level)


def _about(record: logging.LogRecord) -> dict[str, Any]:
    """Return what is known of the node and the task that a record is about."""
    about: dict[str, Any] = {"node": os.environ.get("FLEET_NODE")}
    task = get_current_task()
    request = task.request if task else None
    said = getattr(record, "data", None)  # Celery's own records: trace.py, strategy.py
    if isinstance(said, dict) and said.get("id"):
        about["task_id"], about["task_name"] = said["id"], said.get("name")
        about["runtime"] = said.get("runtime")
    elif request and request.id:
        about["task_id"], about["task_name"] = request.id, task.name
    if "task_id" in about:
        about["queue"], about["retries"] = _delivery(about["task_id"], request)
    return {name: value for name, value in about.items() if value is not None and value != ""}


def _delivery(task_id: str, request: Any) -> tuple[Any, Any]:
    """Return which queue a task came from, and how often it was retried.

    The process that runs it has its context; the node's main process has what it took from the queue.
    """
    if request and request.id == task_id:
        return (request.delivery_info or {}).get("routing_key"), request.retries
    message = _taken.get()
    if message and message.headers.get("id") == task_id:
        return message.delivery_info.get("routing_key"), message.headers.get("retries")
    from celery.worker import state

    taken = state.requests.get(task_id)
    if not taken:
        return None, None
    return taken.delivery_info.get("routing_key"), taken.request_dict.get("retries")


def _is_ours(logger: logging.Logger) -> bool:
    """Return whether a logger has its handlers: a child sets up what it has from its parent."""
    return any(isinstance(handler, (JournalHandler, JsonFile)) for handler in logger.handlers)


def _writes_to_journal(handler: logging.Handler) -> bool:
    """Return whether a handler's stream is one that leads to the journal."""
    if not isinstance(handler, logging.StreamHandler):
        return False
    try:
        return journal.is_journal(handler.stream.fileno())
    except (AttributeError, OSError, ValueError):  # not a file, or closed
        return False


def _opened(path: str) -> JsonFile:
    """Return the handler of a file, or refuse to start without it."""
    node = journal.identifier(os.environ.get("FLEET_NODE", ""))
    try:
        return JsonFile(path.replace("{node}", node))
    except OSError as error:
        raise SystemExit(f"celery: FLEET_LOG_FILE: {error}.") from None
