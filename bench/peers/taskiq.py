# SPDX-License-Identifier: MIT
"""taskiq on Redis streams: at least once, as its RedisStreamBroker acknowledges after the task.

`--ack-type=when_saved` is the default of `taskiq worker`; what is not acknowledged for ten minutes is claimed
by another worker (taskiq_redis/redis_broker.py, idle_timeout). Its list broker, which is as fast, pops and
forgets.
"""

from __future__ import annotations

import asyncio
import os
import sys

from taskiq_redis import RedisStreamBroker

from bench.peers import QUEUE

broker = RedisStreamBroker(os.environ["BENCH_REDIS"], queue_name=QUEUE)


@broker.task
async def silent() -> None:
    """Do nothing."""


async def fill(count: int) -> None:
    """Put so many tasks into the queue, for a group that exists: it gets only what comes later."""
    await broker.startup()
    for _ in range(count):
        await silent.kiq()
    await broker.shutdown()


if __name__ == "__main__":
    asyncio.run(fill(int(sys.argv[1])))
