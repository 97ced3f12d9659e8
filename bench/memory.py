# SPDX-License-Identifier: MIT
"""Memory: what a node with eight children and an app of some size takes once it has worked."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bench import usage
from bench.group import running

if TYPE_CHECKING:
    from bench.servers import Server
    from bench.variants import Celery

CHILDREN = 8
IMPORTS = "matplotlib.figure ansible.template"  # 60 MB, from packages that are here anyway
TASKS = 2000  # before it is measured: only memory that was written to is a child's own
REST = 2.0  # seconds until a node that has worked is still


@dataclass(frozen=True)
class Memory:
    """What a node takes: MiB, by proportional set size."""

    variant: str
    total: float
    main: float
    child: float


def run(server: Server, variant: Celery) -> Memory:
    """Let a node work, and measure it.

    Raises:
        RuntimeError: It does not.
    """
    redis = server.client("admin")
    redis.flushdb()
    large = replace(variant.of(1, CHILDREN), variables={**variant.variables, "BENCH_IMPORTS": IMPORTS})
    variant.fill(server, TASKS)
    with running(large.commands(), large.environment(server)) as group:
        group.await_that(lambda: large.left(redis) == 0 and large.settled(redis), "tasks are left")
        time.sleep(REST)
        sizes = {process.pid: usage.memory(process.pid) for process in usage.processes(group.leaders)}
    main = sizes.pop(group.leaders[0])
    return Memory(variant.name, main + sum(sizes.values()), main, sum(sizes.values()) / CHILDREN)
