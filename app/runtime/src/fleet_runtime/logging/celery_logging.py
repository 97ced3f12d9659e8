# SPDX-License-Identifier: MIT
"""Celery's logging, for processes whose output systemd collects.

Each record goes to the journal with fields, so that `journalctl TASK_ID=<id>` shows what became of a task,
from the node, its child and the app's own loggers.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from contextlib import suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from logging.handlers import QueueHandler, WatchedFileHandler
from pathlib import Path
from typing import Any

from celery import current_task, signals
from celery.app import trace
from celery.app.defaults import DEFAULTS
from celery.app.log import Logging

from fleet_runtime.logging import journal, redact

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


# Loggers by which a node says how it is. logging.config disables every logger that is there before it and not
# in what it is given, by a default that few who use it know (disable_existing_loggers).
ALWAYS_HEARD = frozenset({"celery", "kombu", "fleet_runtime"})

OF_CELERY = {name: getattr(trace, name) for name in ("LOG_RECEIVED", "LOG_SUCCESS")}


# The message that the node has just taken: by the time that Celery keeps it, it has said that it has it.
_taken: ContextVar[Any] = ContextVar("taken", default=None)


class about:  # noqa: N801 (used as a function; one that yields takes three times as long)
    """Gives what is logged meanwhile about the task of a message the message's queue and retries."""

    def __init__(self, message: Any) -> None:
        """Remember a message of kombu's."""
        self._message = message

    def __enter__(self) -> None:
        """Let what is logged here, in this thread or greenlet, be about the message."""
        self._token = _taken.set(self._message)

    def __exit__(self, *_: object) -> None:
        """Let it be about what it was about before, whatever was raised."""
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


class ToJournal:
    """Takes the place of `emit` of a handler whose stream leads to the journal.

    It writes the handler's text with fields, and what the journal does not take to the stream, as before. The
    handler stays where it is, with its level, filters and formatter, which an app may replace at any time.
    """

    def __init__(self, handler: logging.Handler) -> None:
        """Open what sends to the journal.

        Args:
            handler: A StreamHandler of Celery's, or of the app's.
        """
        self.handler = handler
        self.records = journal.Records()

    def __call__(self, record: logging.LogRecord) -> None:
        """Write a record, under the handler's lock. No error gets out: the handler handles it."""
        try:
            if not self.records.send(_fields(record, self.handler.format(record))):
                self._print(record)
        except Exception:  # as all handlers do: a record that cannot be written ends no task
            self.handler.handleError(record)

    def _print(self, record: logging.LogRecord) -> None:
        """Write a record to the stream, with its level."""
        formatter = self.handler.formatter
        self.handler.formatter = LevelPrefix(formatter or logging.Formatter())
        try:
            type(self.handler).emit(self.handler, record)
        finally:
            self.handler.formatter = formatter


class JsonLines(logging.Formatter):
    """Makes a line of JSON of a record."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end; the time is in UTC, to the millisecond."""
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
        """Open a file, or make it, to append to.

        Raises:
            OSError: It cannot be opened.
        """
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
        """Set up logging for a node, or for one of its children, or adopt what the app has set up itself."""
        handled = super().setup(loglevel, None if logfile == os.devnull else logfile, *args, **kwargs)
        adopt_logging()
        # An app may set up logging later, too. Its receivers are there by now, so these come after them.
        for signal in (signals.worker_process_init, signals.worker_ready, signals.beat_init):
            signal.connect(adopt_logging, weak=False, dispatch_uid="fleet_runtime.logging.celery_logging")
        return handled

    def setup_handlers(self, logger: Any, logfile: Any, layout: Any, *args: Any, **kwargs: Any) -> Any:
        """Give a logger its handlers: for the journal, if its stream leads there, and for the JSON file."""
        if _is_ours(logger):
            return logger
        if logfile is None and _writes_to_journal(logging.StreamHandler(sys.__stderr__)):
            layout = FORMATS.get(layout, layout)
        super().setup_handlers(logger, logfile, layout, *args, **kwargs)
        for handler in logger.handlers:
            _lead_to_journal(handler)
        _add_file(logger)
        return logger


def adopt_logging(**_: Any) -> None:
    """Give what the app's own logging writes the fields and the JSON file that Celery's would have.

    By a receiver of `setup_logging` an app keeps Celery from setting up logging at all; Django's LOGGING
    gives loggers handlers besides Celery's. All handlers are looked at, not those of loggers only, because
    one may be the target of another, or of a QueueListener.
    """
    for reference in tuple(getattr(logging, "_handlerList", ())):  # as logging.shutdown() does
        if handler := reference():
            _lead_to_journal(handler)
    root = logging.getLogger()
    for logger in _loggers():
        if logger.name.partition(".")[0] in ALWAYS_HEARD:
            logger.disabled = False
        for handler in logger.handlers:
            if isinstance(handler, QueueHandler):
                handler.addFilter(_note_about)
        # One that keeps its records from the root, and writes to a file of its own, means to.
        if not logger.propagate and any(map(_leads_to_journal, logger.handlers)):
            _add_file(logger)
    _add_file(root)
    stream = logging.StreamHandler(sys.__stderr__)
    if _lead_to_journal(stream) and not any(map(_leads_to_journal, root.handlers)):
        stream.addFilter(_is_unheard)
        root.addHandler(stream)


def lay_messages(*, with_arguments: bool) -> None:
    """Say what Celery's own records have of a task's arguments and result.

    An app that has texts of its own for them keeps these. Without arguments, each of those is HIDDEN in them.
    """
    if with_arguments:
        redact.show_arguments()
        if OF_CELERY["LOG_RECEIVED"] == trace.LOG_RECEIVED:
            trace.LOG_RECEIVED = RECEIVED_WITH_ARGUMENTS
        return
    redact.hide_arguments()
    if OF_CELERY["LOG_SUCCESS"] == trace.LOG_SUCCESS:
        trace.LOG_SUCCESS = SUCCESS


def syslog_priority(record: logging.LogRecord) -> int:
    """Return the level of a record as syslog has it."""
    return next(number for level, number in PRIORITIES if record.levelno >= level)


def _fields(record: logging.LogRecord, text: str) -> dict[str, str]:
    """Return the fields of a record with this text. Source: systemd.journal-fields(7)."""
    return {
        "MESSAGE": text,
        "PRIORITY": str(syslog_priority(record)),
        "SYSLOG_IDENTIFIER": journal.identifier(os.environ.get("FLEET_NODE", "")),
        "LOGGER": record.name,
        "CODE_FILE": record.pathname,
        "CODE_LINE": str(record.lineno),
        "CODE_FUNC": record.funcName or "",
        **{name.upper(): str(value) for name, value in _about(record).items()},
    }


def _note_about(record: logging.LogRecord) -> bool:
    """Note what a record is about before another thread writes it, which runs no task."""
    record.fleet_about = _about(record)
    return True


def _is_unheard(record: logging.LogRecord) -> bool:
    """Return whether no handler below the root has written a record to the journal."""
    logger: logging.Logger | None = logging.getLogger(record.name)
    while logger and logger.parent:
        if any(map(_leads_to_journal, logger.handlers)):
            return False
        logger = logger.parent
    return True


def _about(record: logging.LogRecord) -> dict[str, Any]:
    """Return what is known of the node and the task that a record is about."""
    if noted := getattr(record, "fleet_about", None):
        return dict(noted)
    about: dict[str, Any] = {"node": os.environ.get("FLEET_NODE")}
    task = current_task
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
    return any(isinstance(handler, JsonFile) or _leads_to_journal(handler) for handler in logger.handlers)


def _loggers() -> list[logging.Logger]:
    """Return the root, and every logger that somebody has asked for."""
    root = logging.getLogger()
    named = tuple(root.manager.loggerDict.values())
    return [root, *(logger for logger in named if isinstance(logger, logging.Logger))]


def _lead_to_journal(handler: logging.Handler) -> bool:
    """Let a handler whose stream leads to the journal write fields; return whether it does."""
    if not _leads_to_journal(handler) and _writes_to_journal(handler):
        handler.emit = ToJournal(handler)  # type: ignore[method-assign]
    return _leads_to_journal(handler)


def _leads_to_journal(handler: logging.Handler) -> bool:
    """Return whether a handler writes fields to the journal, by itself or by another thread."""
    return isinstance(handler, QueueHandler) or isinstance(vars(handler).get("emit"), ToJournal)


def _add_file(logger: logging.Logger) -> None:
    """Give a logger the JSON file, if there is to be one."""
    path = os.environ.get("FLEET_LOG_FILE")
    if path and not any(isinstance(handler, JsonFile) for handler in logger.handlers):
        logger.addHandler(_opened(path))


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
