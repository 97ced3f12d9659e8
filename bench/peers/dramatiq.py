# SPDX-License-Identifier: MIT
"""dramatiq 2: at least once by default, with 8 threads in each process, which is its default, too.

What a worker has fetched is in a set of its own until it is acknowledged, which is after the task; what a
worker held that says nothing for 60 s goes back (dramatiq/brokers/redis/dispatch.lua, heartbeat_timeout).
"""

from __future__ import annotations

import os
import sys

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from bench.peers import QUEUE

dramatiq.set_broker(RedisBroker(url=os.environ["BENCH_REDIS"]))


@dramatiq.actor(queue_name=QUEUE)
def silent() -> None:
    """Do nothing."""


if __name__ == "__main__":
    for _ in range(int(sys.argv[1])):
        silent.send()
