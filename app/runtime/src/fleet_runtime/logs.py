"""Celery's logging, for processes whose output systemd collects."""

from __future__ import annotations

import logging
import os
from typing import Any

from celery.app.log import Logging

from fleet_runtime.journal import is_journal

# Python's levels as syslog's, which `journalctl -p` filters by and colours. Source: syslog(3), sd-daemon(3).
PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (0, 7))


class LevelPrefix(logging.Formatter):
    """Begins each line of another formatter's text with its level, as sd-daemon(3) has it."""

    def __init__(self, inner: logging.Formatter) -> None:
        """Wrap a formatter."""
        super().__init__()
        self.inner = inner

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's text, with the prefix before each line."""
        priority = next(number for level, number in PRIORITIES if record.levelno >= level)
        return "\n".join(f"<{priority}>{line}" for line in self.inner.format(record).split("\n"))


class FleetLogging(Logging):  # type: ignore[misc]  # celery ships no types
    """Celery's logging with levels in the journal, and /dev/null as another name for standard error.

    `celery multi` cannot be told to use no log file: without the option it takes one in /var/log/celery, and
    of an empty one it makes `--logfile` without a value, which swallows the next option (celery 5.7,
    apps/multi.py, format_opt). So nodes are started with --logfile=/dev/null.
    """

    def setup(self, loglevel: Any = None, logfile: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Set up logging for a node, or for one of its children."""
        return super().setup(loglevel, None if logfile == os.devnull else logfile, *args, **kwargs)

    def setup_handlers(self, *args: Any, **kwargs: Any) -> Any:
        """Give a logger its handlers, with levels if they write to the journal."""
        logger = super().setup_handlers(*args, **kwargs)
        for handler in logger.handlers:
            if _writes_to_journal(handler) and not isinstance(handler.formatter, LevelPrefix):
                handler.setFormatter(LevelPrefix(handler.formatter or logging.Formatter()))
        return logger


def _writes_to_journal(handler: logging.Handler) -> bool:
    """Return whether a handler's stream is one that leads to the journal."""
    if not isinstance(handler, logging.StreamHandler):
        return False
    try:
        return is_journal(handler.stream.fileno())
    except (AttributeError, OSError, ValueError):  # not a file, or closed
        return False
