"""The app that is measured: its task does nothing."""

# celery ships no types
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import os
import ssl
from urllib.parse import parse_qs, urlsplit

from celery import Celery

QUEUE = "default"

app = Celery("bench")
app.conf.update(task_default_queue=QUEUE, worker_hijack_root_logger=True)

if os.environ.get("BENCH_STOCK"):
    # What the runtime would lay on it, as far as Celery itself can do it.
    url = os.environ["CELERY_BROKER_URL"]
    ca = parse_qs(urlsplit(url).query)["ssl_ca_certs"][0]
    app.conf.update(
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        broker_connection_retry_on_startup=True,
        broker_use_ssl={"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_ca_certs": ca},
    )


@app.task
def noop() -> None:
    """Do nothing; its result, which is nothing, is stored."""


@app.task(ignore_result=True)
def silent() -> None:
    """Do nothing, and store nothing."""
