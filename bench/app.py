# SPDX-License-Identifier: MIT
"""The app that is measured: its tasks do nothing."""

from __future__ import annotations

import os
import ssl
import struct
import time
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from celery import Celery

QUEUE = "default"

# What an app says of itself that runs without the runtime, by the name in BENCH_SETTINGS.
SETTINGS: dict[str, dict[str, Any]] = {
    "": {},
    # what the runtime would lay on it, as far as Celery itself can do it
    "fleet": {
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "worker_prefetch_multiplier": 1,
        "broker_connection_retry_on_startup": True,
    },
    # what tutorials call a production configuration
    "tutorial": {
        "task_acks_late": True,
        "worker_prefetch_multiplier": 1,
        "task_track_started": True,
        "worker_send_task_events": True,
        "task_send_sent_event": True,
        "worker_max_tasks_per_child": 1000,
        "result_expires": 3600,
    },
    "no pool": {"broker_pool_limit": None},
}

# What an app of some size would import.
for name in os.environ.get("BENCH_IMPORTS", "").split():
    import_module(name)

app = Celery("bench")
app.conf.update(
    task_default_queue=QUEUE,
    worker_hijack_root_logger=True,
    **SETTINGS[os.environ.get("BENCH_SETTINGS", "")],
)
if "ssl_ca_certs" in (options := parse_qs(urlsplit(os.environ.get("CELERY_BROKER_URL", "")).query)):
    app.conf.broker_use_ssl = {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_ca_certs": options["ssl_ca_certs"][0]}


@app.task
def noop() -> None:
    """Do nothing; its result, which is nothing, is stored."""


@app.task(ignore_result=True)
def silent() -> None:
    """Do nothing, and store nothing."""


@app.task(ignore_result=True)
def wait(sent: float) -> None:
    """Append to a file how many seconds passed since it was sent. All processes share the clock."""
    waited = time.monotonic() - sent
    with Path(os.environ["BENCH_LATENCY"]).open("ab") as file:
        file.write(struct.pack("d", waited))
