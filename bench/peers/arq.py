# SPDX-License-Identifier: MIT
"""arq: at least once by default, as a job leaves its queue only when it has ended ("pessimistic execution").

See https://arq-docs.helpmanual.io. A worker looks into the queue twice a second, for as many jobs as five
times `max_jobs`. With its default of 10 that bounds the rate, so it is 100 here.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any, ClassVar

from arq import create_pool
from arq.connections import RedisSettings

from bench.peers import QUEUE

REDIS = RedisSettings.from_dsn(os.environ["BENCH_REDIS"])


async def silent(context: Any) -> None:
    """Do nothing."""


class Worker:
    """What `arq` reads: the settings of a worker."""

    functions: ClassVar[list[Any]] = [silent]
    queue_name = QUEUE
    redis_settings = REDIS
    max_jobs = 100
    keep_result = 0


async def fill(count: int) -> None:
    """Put so many jobs into the queue."""
    pool = await create_pool(REDIS, default_queue_name=QUEUE)
    for _ in range(count):
        await pool.enqueue_job("silent")
    await pool.aclose()


if __name__ == "__main__":
    asyncio.run(fill(int(sys.argv[1])))
