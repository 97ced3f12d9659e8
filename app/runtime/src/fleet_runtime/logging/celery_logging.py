# SPDX-License-Identifier: MIT
"""Celery's logging for processes whose output systemd collects.

Each record goes to the journal with fields, so that `journalctl TASK_ID=<id>` shows the records of a task,
from the node, its child process and the app's own loggers.
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

# Celery's formats without the parts that the journal has in fields: time, level and process.
FORMATS = {
    DEFAULTS["worker_log_format"]: "%(message)s",
    DEFAULTS["worker_task_log_format"]: "%(task_name)s[%(task_id)s]: %(message)s",
}

# Messages for each task. Celery's own have the result, and no arguments.
SUCCESS = "Task %(name)s[%(id)s] succeeded in %(runtime)ss"
RECEIVED_WITH_ARGUMENTS = "Task %(name)s[%(id)s] received, args: %(args)s, kwargs: %(kwargs)s"


# Loggers of a node that stay enabled. logging.config disables every existing logger that its configuration
# does not name, unless disable_existing_loggers is false, which is not the default.
ALWAYS_ENABLED = frozenset({"celery", "kombu", "fleet_runtime"})

CELERY_MESSAGES = {name: getattr(trace, name) for name in ("LOG_RECEIVED", "LOG_SUCCESS")}


# The message that the node is handling: Celery logs that it has received it before it keeps it.
_current_message: ContextVar[Any] = ContextVar("current_message", default=None)


class MessageContext:
    """A context in which records about the task of a message get the message's queue and retries.

    It is not a generator, which takes three times as long.
    """

    def __init__(self, message: Any) -> None:
        """Create the context of a message of kombu."""
        self._message = message

    def __enter__(self) -> None:
        """Set the message for this thread or greenlet."""
        self._token = _current_message.set(self._message)

    def __exit__(self, *_: object) -> None:
        """Restore the message from before."""
        _current_message.reset(self._token)


class LevelPrefix(logging.Formatter):
    """Prefixes each line of another formatter's text with its level, in the form of sd-daemon(3)."""

    def __init__(self, inner: logging.Formatter) -> None:
        """Wrap a formatter."""
        super().__init__()
        self.inner = inner

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a record, with the prefix before each line."""
        priority = syslog_priority(record)
        return "\n".join(f"<{priority}>{line}" for line in self.inner.format(record).split("\n"))


class JournalEmitter:
    """Replaces `emit` of a handler whose stream leads to the journal.

    It sends the text of the handler to the journal, with fields. A record that the journal does not accept
    goes to the stream. The handler keeps its level, filters and formatter, which an app may replace.
    """

    def __init__(self, handler: logging.Handler, node: str) -> None:
        """Open a socket to the journal.

        Args:
            handler: A StreamHandler of Celery, or of the app.
            node: Name of the node; empty in other processes.
        """
        self.handler, self.node = handler, node
        self.records = journal.Records()

    def __call__(self, record: logging.LogRecord) -> None:
        """Send a record, under the lock of the handler. No error is raised: the handler handles it."""
        try:
            if not self.records.send(_fields(record, self.handler.format(record), self.node)):
                self._print(record)
        except Exception:  # as in all handlers: an error of logging must not end a task
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
    """Formats a record as a line of JSON."""

    def __init__(self, node: str) -> None:
        """Format records of a node; the name is empty in other processes."""
        super().__init__()
        self.node = node

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without a newline. The time is in UTC, in milliseconds."""
        values = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "process": record.process,
            **_task_fields(record, self.node),
            "message": record.getMessage(),
        }
        if record.exc_info:
            values["traceback"] = self.formatException(record.exc_info)
        return json.dumps(values, ensure_ascii=False, default=str)


class JsonFile(WatchedFileHandler):
    """A file of JSON lines, to which all processes of a node append."""

    def __init__(self, path: str, node: str) -> None:
        """Open or create a file.

        Args:
            path: Its path; {node} is replaced by the short name of the node.
            node: Name of the node; empty in other processes.

        Raises:
            SystemExit: The file cannot be opened.
        """
        path = path.replace("{node}", journal.identifier(node))
        try:
            super().__init__(path, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise SystemExit(f"celery: FLEET_LOG_FILE: {error}.") from None
        with suppress(OSError):
            Path(path).chmod(0o640)  # for log collectors; the umask of a node gives its group no rights
        self.setFormatter(JsonLines(node))


class FleetLogging(Logging):
    """Celery's logging with fields in the journal. A log file of /dev/null means standard error.

    `celery multi` has no option for no log file: without the option it uses one in /var/log/celery, and an
    empty value becomes `--logfile` without a value, which swallows the next option (celery 5.7,
    apps/multi.py, format_opt). So nodes are started with --logfile=/dev/null.
    """

    def __init__(self, app: Any) -> None:
        """Prepare for an app that is configured."""
        super().__init__(app)
        self.node, self.path = app.fleet_settings.node, app.fleet_settings.log_file

    def setup(self, loglevel: Any = None, logfile: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Set up logging for a node or a child process, or adopt the logging that the app has set up."""
        if self.app.fleet_settings.component == "worker":
            self.node = self.node or kwargs.get("hostname") or ""
        handled = super().setup(loglevel, None if logfile == os.devnull else logfile, *args, **kwargs)
        self.adopt()
        # An app may set up logging later, too. Its receivers are connected by now, so that this runs after.
        for signal in (signals.worker_process_init, signals.worker_ready, signals.beat_init):
            signal.connect(self.adopt, weak=False, dispatch_uid="fleet_runtime.logging.celery_logging")
        return handled

    def setup_handlers(self, logger: Any, logfile: Any, layout: Any, *args: Any, **kwargs: Any) -> Any:
        """Set up the handlers of a logger: for the journal, if its stream leads there, and the JSON file."""
        if _is_set_up(logger):
            return logger
        if logfile is None and _writes_to_journal(logging.StreamHandler(sys.__stderr__)):
            layout = FORMATS.get(layout, layout)
        super().setup_handlers(logger, logfile, layout, *args, **kwargs)
        for handler in logger.handlers:
            self._connect_to_journal(handler)
        self._add_json_file(logger)
        return logger

    def adopt(self, **_: Any) -> None:
        """Give the app's own logging the fields and the JSON file that Celery's logging would have.

        An app with a receiver of `setup_logging` keeps Celery from setting up logging; Django's LOGGING adds
        handlers to loggers. This checks all handlers, not only those of loggers: a handler may be the target
        of another one, or of a QueueListener.
        """
        for reference in tuple(getattr(logging, "_handlerList", ())):  # as logging.shutdown() does
            if handler := reference():
                self._connect_to_journal(handler)
        root = logging.getLogger()
        for logger in _loggers():
            if logger.name.partition(".")[0] in ALWAYS_ENABLED:
                logger.disabled = False
            for handler in logger.handlers:
                if isinstance(handler, QueueHandler):
                    handler.addFilter(self._store_task_fields)
            # A logger that does not propagate, and writes only to its own file, gets no other one.
            if not logger.propagate and any(map(_writes_fields, logger.handlers)):
                self._add_json_file(logger)
        self._add_json_file(root)
        stream = logging.StreamHandler(sys.__stderr__)
        if self._connect_to_journal(stream) and not any(map(_writes_fields, root.handlers)):
            stream.addFilter(_is_not_in_journal)
            root.addHandler(stream)

    def _connect_to_journal(self, handler: logging.Handler) -> bool:
        """Let a handler whose stream leads to the journal write fields; return whether it does."""
        if not _writes_fields(handler) and _writes_to_journal(handler):
            emitter = JournalEmitter(handler, self.node)
            handler.emit = emitter  # type: ignore[method-assign]  # of this handler only
        return _writes_fields(handler)

    def _add_json_file(self, logger: logging.Logger) -> None:
        """Add the JSON file to a logger, if FLEET_LOG_FILE is set.

        Raises:
            SystemExit: The file cannot be opened.
        """
        if self.path and not any(isinstance(handler, JsonFile) for handler in logger.handlers):
            logger.addHandler(JsonFile(self.path, self.node))

    def _store_task_fields(self, record: logging.LogRecord) -> bool:
        """Store the fields of the task in a record, before a thread that runs no task writes it."""
        record.fleet_fields = _task_fields(record, self.node)
        return True


def set_task_messages(*, with_arguments: bool, texts: bool = True) -> None:
    """Set Celery's messages about tasks, unless the app has set its own.

    Args:
        with_arguments: Whether arguments and results are logged. Otherwise they are hidden in every message,
            also in the app's own.
        texts: Whether to replace Celery's texts by one with the arguments, or by one without the result.
    """
    if with_arguments:
        redact.show_arguments()
        if texts and CELERY_MESSAGES["LOG_RECEIVED"] == trace.LOG_RECEIVED:
            trace.LOG_RECEIVED = RECEIVED_WITH_ARGUMENTS
        return
    redact.hide_arguments()
    if texts and CELERY_MESSAGES["LOG_SUCCESS"] == trace.LOG_SUCCESS:
        trace.LOG_SUCCESS = SUCCESS


def syslog_priority(record: logging.LogRecord) -> int:
    """Return the level of a record as a priority of syslog."""
    return next(number for level, number in PRIORITIES if record.levelno >= level)


def _fields(record: logging.LogRecord, text: str, node: str) -> dict[str, str]:
    """Return the fields of a record for the journal. Source: systemd.journal-fields(7)."""
    return {
        "MESSAGE": text,
        "PRIORITY": str(syslog_priority(record)),
        "SYSLOG_IDENTIFIER": journal.identifier(node),
        "LOGGER": record.name,
        "CODE_FILE": record.pathname,
        "CODE_LINE": str(record.lineno),
        "CODE_FUNC": record.funcName or "",
        **{name.upper(): str(value) for name, value in _task_fields(record, node).items()},
    }


def _is_not_in_journal(record: logging.LogRecord) -> bool:
    """Return whether no handler below the root has sent a record to the journal."""
    logger: logging.Logger | None = logging.getLogger(record.name)
    while logger and logger.parent:
        if any(map(_writes_fields, logger.handlers)):
            return False
        logger = logger.parent
    return True


def _task_fields(record: logging.LogRecord, node: str) -> dict[str, Any]:
    """Return the fields of the node and the task that a record is about."""
    if stored := getattr(record, "fleet_fields", None):
        return dict(stored)
    values: dict[str, Any] = {"node": node}
    task = current_task
    request = task.request if task else None
    data = getattr(record, "data", None)  # Celery's own records: trace.py, strategy.py
    if isinstance(data, dict) and data.get("id"):
        values["task_id"], values["task_name"] = data["id"], data.get("name")
        values["runtime"] = data.get("runtime")
    elif request and request.id:
        values["task_id"], values["task_name"] = request.id, task.name
    if "task_id" in values:
        values["queue"], values["retries"] = _delivery(values["task_id"], request)
    return {name: value for name, value in values.items() if value is not None and value != ""}


def _delivery(task_id: str, request: Any) -> tuple[Any, Any]:
    """Return the queue of a task, and its number of retries.

    The process that runs the task has them in its context; the main process has them in the message.
    """
    if request and request.id == task_id:
        return (request.delivery_info or {}).get("routing_key"), request.retries
    message = _current_message.get()
    if message and message.headers.get("id") == task_id:
        return message.delivery_info.get("routing_key"), message.headers.get("retries")
    from celery.worker import state

    received = state.requests.get(task_id)
    if not received:
        return None, None
    return received.delivery_info.get("routing_key"), received.request_dict.get("retries")


def _is_set_up(logger: logging.Logger) -> bool:
    """Return whether a logger has its handlers: a child process inherits them from its parent."""
    return any(isinstance(handler, JsonFile) or _writes_fields(handler) for handler in logger.handlers)


def _loggers() -> list[logging.Logger]:
    """Return the root logger, and all others that exist."""
    root = logging.getLogger()
    named = tuple(root.manager.loggerDict.values())
    return [root, *(logger for logger in named if isinstance(logger, logging.Logger))]


def _writes_fields(handler: logging.Handler) -> bool:
    """Return whether a handler writes fields to the journal, itself or in another thread."""
    return isinstance(handler, QueueHandler) or isinstance(vars(handler).get("emit"), JournalEmitter)


def _writes_to_journal(handler: logging.Handler) -> bool:
    """Return whether the stream of a handler leads to the journal."""
    if not isinstance(handler, logging.StreamHandler):
        return False
    try:
        return journal.is_journal(handler.stream.fileno())
    except (AttributeError, OSError, ValueError):  # not a file, or closed
        return False
