# SPDX-License-Identifier: MIT
"""The app whose tasks Celery's own integration tests call, for a worker that is a process of its own.

The environment says which broker it uses, and where the tasks and tests find the Redis of their own notes:
TEST_BROKER and TEST_BACKEND, as Celery's own conftest reads them, and SUITE_REDIS, a URL.
"""

from __future__ import annotations

import os
from typing import Any

import redis
from celery import Celery
from t.integration import tasks  # the sdist's; see suite.py


def own_redis() -> Any:
    """Return a connection for what tests and tasks note in Redis besides messages and results."""
    return redis.Redis.from_url(os.environ["SUITE_REDIS"], socket_timeout=None)


# The original knows a host and a port, and neither TLS nor users. Tests import it from this module.
tasks.get_redis_connection = own_redis

app = Celery(
    "suite",
    broker=os.environ["TEST_BROKER"],
    backend=os.environ["TEST_BACKEND"],
    include=["t.integration.tasks"],
    set_as_current=False,
)
# As Celery's own conftest has it.
app.conf.update(result_extended=True, task_create_missing_queues=False)
app.register_task(tasks.ClassBasedAutoRetryTask())
