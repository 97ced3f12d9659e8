# SPDX-License-Identifier: MIT
"""Sends tasks, as a process of its own, and prints what that cost: `python -m bench.publish TASK COUNT HOW`.

HOW is `batch`, `one by one`, or how many a second.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench import ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bench.servers import Server

BATCH = 500  # messages that kombu sends at a time


@dataclass(frozen=True)
class Publishing:
    """What a message cost who sent it: microseconds of CPU of its process and of Redis."""

    variant: str
    messages_per_second: float
    cpu: float
    redis: float


@dataclass(frozen=True)
class Way:
    """A way to send many tasks."""

    name: str
    how: str
    settings: str = ""
    server: str = "plain"


LOOP = Way("apply_async", "one by one")
WAYS = (
    LOOP,
    Way("apply_async, broker_pool_limit=None", "one by one", "no pool"),
    Way("apply_async in a batch", "batch"),
)


def run(server: Server, way: Way, *, tasks: int) -> Publishing:
    """Send so many tasks that nobody takes."""
    redis = server.client("admin")
    redis.flushdb()
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
        "CELERY_BROKER_URL": server.url("web"),
        "BENCH_SETTINGS": way.settings,
    }
    before = redis.info()
    cost = send(environment, "silent", tasks, way.how)
    after = redis.info()
    used = sum(after[kind] - before[kind] for kind in ("used_cpu_user", "used_cpu_sys"))
    each = 1e6 / tasks
    return Publishing(way.name, tasks / cost["seconds"], cost["cpu"] * each + used * each, used * each)


def send(environment: Mapping[str, str], task: str, count: int, how: str = "batch") -> Any:
    """Send tasks as a process of its own, so that this one keeps no connection; return what that says."""
    command = [sys.executable, "-m", "bench.publish", task, str(count), how]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    """Send, and print the seconds that it took, and those of CPU."""
    from bench.app import app  # in this process only: it reads its settings from the environment

    name, count, how = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    task = app.tasks[f"bench.app.{name}"]
    with app.producer_pool.acquire(block=True) as producer:
        producer.connection.ensure_connection()
    began, used = time.monotonic(), time.process_time()
    if how == "batch":
        with app.producer_pool.acquire(block=True) as producer, producer.batch(BATCH):
            for _ in range(count):
                task.apply_async(producer=producer)
    elif how == "one by one":
        for _ in range(count):
            task.apply_async()
    else:
        for number in range(count):
            time.sleep(max(0, began + number / float(how) - time.monotonic()))
            task.apply_async((time.monotonic(),))
    print(json.dumps({"seconds": time.monotonic() - began, "cpu": time.process_time() - used}))


if __name__ == "__main__":
    main()
