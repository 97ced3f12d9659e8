# SPDX-License-Identifier: MIT
"""rq 3: a job of a worker that died fails, and runs again only if it has retries left: Retry(max=3).

See rq/registry.py, StartedJobRegistry.cleanup, and https://python-rq.org/docs/exceptions. Its own README
wants Worker in production, which forks for each job; SimpleWorker does not, and is for trusted code.
"""

from __future__ import annotations

import os
import sys

from redis import Redis
from rq import Queue, Retry

from bench.peers import QUEUE


def silent() -> None:
    """Do nothing."""


if __name__ == "__main__":
    from bench.peers import rq  # a job is known by its module, which is not __main__

    queue = Queue(QUEUE, connection=Redis.from_url(os.environ["BENCH_REDIS"]))
    for _ in range(int(sys.argv[1])):
        queue.enqueue(rq.silent, retry=Retry(max=3), result_ttl=0)
