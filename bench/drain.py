# SPDX-License-Identifier: MIT
"""Throughput: nodes drain a queue, and from the first to the last tenth everything is counted."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench import usage
from bench.group import running

if TYPE_CHECKING:
    from bench.group import Group
    from bench.servers import Server
    from bench.variants import Variant

LEAST = 100  # tasks


@dataclass(frozen=True)
class Reading:
    """What has been used so far.

    Attributes:
        time: Seconds of a clock that only goes forward.
        left: Tasks that are left.
        main: Seconds of CPU of the processes that were started.
        children: Of those that they have started.
        redis: Of Redis.
        commands: What Redis was asked so far, with what scripts on it call.
        requests: What it read: commands that a client sends together are one.
    """

    time: float
    left: int
    main: float
    children: float
    redis: float
    commands: int
    requests: int


@dataclass(frozen=True)
class Run:
    """What a task cost in one run: microseconds of CPU, commands and requests."""

    variant: str
    tasks_per_second: float
    cpu: float
    main: float
    children: float
    redis: float
    commands: float
    requests: float

    @classmethod
    def between(cls, variant: str, first: Reading, last: Reading) -> Run:
        """Return what the tasks between two readings cost."""
        tasks = first.left - last.left
        each = 1e6 / tasks
        main, children, redis = (
            getattr(last, part) - getattr(first, part) for part in ("main", "children", "redis")
        )
        return cls(
            variant=variant,
            tasks_per_second=tasks / (last.time - first.time),
            cpu=(main + children + redis) * each,
            main=main * each,
            children=children * each,
            redis=redis * each,
            commands=(last.commands - first.commands) / tasks,
            requests=(last.requests - first.requests) / tasks,
        )


def run(server: Server, variant: Variant, *, tasks: int) -> Run:
    """Let a variant drain a queue of so many tasks, or its share.

    Raises:
        RuntimeError: It does not.
    """
    tasks = max(round(tasks * variant.share), LEAST)
    redis = server.client("admin")
    redis.flushdb()
    variant.fill(server, tasks)
    with running(variant.commands(), variant.environment(server)) as group:
        await_left(group, variant, redis, tasks * 9 // 10)
        first = read(group, variant, redis)
        await_left(group, variant, redis, tasks // 10)
        last = read(group, variant, redis)
        await_left(group, variant, redis, 0)
        group.await_that(lambda: variant.settled(redis), "messages are held, and not acknowledged")
    return Run.between(variant.name, first, last)


def await_left(group: Group, variant: Variant, redis: Any, most: int) -> None:
    """Wait until no more than so many tasks are left."""
    group.await_that(lambda: variant.left(redis) <= most, f"more than {most} tasks are left")


def read(group: Group, variant: Variant, redis: Any) -> Reading:
    """Read all counters."""
    main, children = usage.cpu(group.leaders)
    said = redis.info()
    return Reading(
        time=time.monotonic(),
        left=variant.left(redis),
        main=main,
        children=children,
        redis=usage.redis_cpu(said),
        commands=said["total_commands_processed"],
        requests=said["total_reads_processed"],
    )
