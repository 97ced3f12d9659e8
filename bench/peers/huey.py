# SPDX-License-Identifier: MIT
"""huey 3: at most once, for it documents no other way: its Redis storage pops a task and forgets it.

See huey/storage.py, RedisStorage.dequeue. It is here because users choose it; its figures are those of less
work. Two processes run tasks; the scheduler, which is a third one, is its default.
"""

from __future__ import annotations

import os
import sys

from huey import RedisHuey

from bench.peers import QUEUE

huey = RedisHuey(QUEUE, url=os.environ["BENCH_REDIS"], results=False)


@huey.task()
def silent() -> None:
    """Do nothing."""


if __name__ == "__main__":
    from bench.peers import huey as module  # a task is known by its module, which is not __main__

    for _ in range(int(sys.argv[1])):
        module.silent()
