# SPDX-License-Identifier: MIT
"""An app that sets up logging in the way that OWN says."""

import logging
import logging.config
import logging.handlers
import os
import queue
import sys
from pathlib import Path
from typing import Any

from celery import Celery, signals
from fleet_runtime.logging import journal

journal.RECORDS = Path(os.environ["TEST_JOURNAL"])

own = os.environ["OWN"]
app = Celery("own")
app.conf.task_default_queue = "default"
CONSOLE = {"class": "logging.StreamHandler", "formatter": "short"}
# As in a Django project: no handler at the root, and whatever was there before is disabled, by default.
LOGGING: dict[str, Any] = {
    "version": 1,
    "formatters": {"short": {"format": "own %(name)s: %(message)s"}},
    "handlers": {"console": CONSOLE},
    "loggers": {
        "own": {"handlers": ["console"], "level": "INFO", "propagate": False},
        "celery": {"handlers": ["console"], "level": "INFO"},
    },
}


def basic() -> None:
    """Have one handler at the root."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="own %(name)s: %(message)s")


def configure() -> None:
    """Have handlers at some loggers."""
    logging.config.dictConfig(LOGGING)


def listen() -> None:
    """Have records written by another thread."""
    records: queue.Queue[Any] = queue.Queue()
    stream = logging.StreamHandler(sys.stderr)
    stream.setFormatter(logging.Formatter("own %(name)s: %(message)s"))
    logging.getLogger().addHandler(logging.handlers.QueueHandler(records))
    logging.getLogger().setLevel(logging.INFO)
    logging.handlers.QueueListener(records, stream).start()


def silent() -> None:
    """Have records nowhere but in a file of the app's."""
    logging.getLogger().addHandler(logging.FileHandler(os.environ["OWN_FILE"]))
    logging.getLogger().setLevel(logging.INFO)


WAYS = {"basic": basic, "dict": configure, "queue": listen, "file": silent, "late": configure}

if own == "late":

    @signals.worker_process_init.connect
    def process_init(**_: Any) -> None:
        """Set up logging in each process."""
        configure()

    @signals.worker_init.connect
    def init(**_: Any) -> None:
        """Set up logging in the node."""
        configure()

else:

    @signals.setup_logging.connect
    def set_up(**_: Any) -> None:
        """Keep Celery from it."""
        WAYS[own]()


@app.task
def say(secret: str) -> str:
    """Say something."""
    logging.getLogger("own.orders").info("said by the task")
    return secret
