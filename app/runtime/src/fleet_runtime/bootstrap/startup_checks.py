# SPDX-License-Identifier: MIT
"""What a node makes sure of before it starts."""

from __future__ import annotations

import logging
import os
import resource
from pathlib import Path
from typing import Any

import click
from celery import bootsteps, signals
from celery.bin import graph
from celery.concurrency.prefork import TaskPool

from fleet_runtime.bootstrap import plugins
from fleet_runtime.errors import FleetError
from fleet_runtime.prefork import memory
from fleet_runtime.settings import FleetSettings

logger = logging.getLogger(__name__)

# Tasks that are not the app's.
BUILT_IN = ("celery.", "fleet.")
MEMORY = "fleet.memory"  # a receiver of a signal


class Guard(bootsteps.Step):  # type: ignore[misc]  # celery ships no types
    """Refuses a node that would lose tasks or run them twice, and bounds one that nobody bounded."""

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        """Look at the worker, all options of which are known by now."""
        if is_drawn():
            return
        try:
            settings = FleetSettings.from_environment()
            _require_component(settings)
            _limit(parent, settings)
            _require_time_to_stop(parent)
            _compare_memory(parent)
            _tell_of_limits(parent)
        except FleetError as error:
            raise SystemExit(f"celery: {error}") from None
        memory.mend()
        plugins.select_pool(own=settings.atomic_fetch)
        memory.share_memory()


def is_drawn() -> bool:
    """Return whether the worker is made for `celery graph bootsteps`, which starts none."""
    context = click.get_current_context(silent=True)
    return context is not None and context.command is graph.bootsteps


def _require_component(settings: FleetSettings) -> None:
    """Refuse a worker in a process that is set up as something else, and so would not hold its messages."""
    if settings.component != "worker":
        raise FleetError("only a process with FLEET_COMPONENT=worker may run tasks.")


def _limit(worker: Any, settings: FleetSettings) -> None:
    """Give a worker without a time limit the fleet's.

    As a setting, task_time_limit would defeat the pools' own limits: Celery copies it to each task, and from
    there into each message, where it comes before that of the worker (celery 5.7, Task.from_config).
    """
    if worker.time_limit is None:
        worker.time_limit = settings.task_time_limit
        worker.soft_time_limit = worker.soft_time_limit or settings.soft_time_limit
    if worker.time_limit >= settings.visibility_timeout:
        raise FleetError(
            f"the time limit ({worker.time_limit:g}) must be less than FLEET_VISIBILITY_TIMEOUT "
            f"({settings.visibility_timeout}), or a long task is handed out again while it runs."
        )


def _require_time_to_stop(worker: Any) -> None:
    """Refuse a worker whose tasks may take longer than its unit lets them when it stops.

    What a task says of itself is no reason to refuse: it goes back to its queue then, and is not lost.
    """
    granted = float(os.environ.get("FLEET_NODE_TIME_LIMIT") or "inf")
    if worker.time_limit > granted:
        raise FleetError(
            f"the time limit ({worker.time_limit:g}) must not exceed FLEET_NODE_TIME_LIMIT ({granted:g}), "
            "for which its unit waits as it stops (TimeoutStopSec)."
        )
    longer = sorted(name for name, task in worker.app.tasks.items() if (task.time_limit or 0) > granted)
    if longer:
        logger.warning(
            "Tasks that may take more than %g s are interrupted as this node stops, and run again: %s",
            granted, ", ".join(longer),
        )  # fmt: skip


def _compare_memory(worker: Any) -> None:
    """Warn, once, of a worker whose processes are replaced after each task.

    A process begins with what the node has then, as far as the kernel counts, and billiard looks at it after
    each task. What it says is not in the log, with Celery's own logging neither.
    """
    most = worker.max_memory_per_child or 0
    if not most or not issubclass(worker.pool_cls, TaskPool):
        return

    def compare(**_: Any) -> None:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        has = pages * resource.getpagesize() // 1024
        if has < most:
            return
        signals.worker_before_create_process.disconnect(dispatch_uid=MEMORY)
        logger.warning(
            "max_memory_per_child (%d KiB) is not more than a process of this app has before its first task "
            "(%d KiB), so each process is replaced after one task. Raise it, or import less.",
            most, has,
        )  # fmt: skip

    signals.worker_before_create_process.connect(compare, weak=False, dispatch_uid=MEMORY)


def _tell_of_limits(worker: Any) -> None:
    """Warn of tasks with time limits that the pool does not keep: only prefork has both of them."""
    if issubclass(worker.pool_cls, TaskPool):
        return
    tasks = {name: task for name, task in worker.app.tasks.items() if not name.startswith(BUILT_IN)}
    if soft := sorted(name for name, task in tasks.items() if task.soft_time_limit):
        logger.warning(
            "This kind of pool raises no SoftTimeLimitExceeded. If it is to run tasks with a soft limit, "
            "have prefork for their queues: %s", ", ".join(soft),
        )  # fmt: skip
    hard = sorted(name for name, task in tasks.items() if task.time_limit)
    if hard and not worker.pool_cls.is_green:
        logger.warning(
            "This kind of pool ends no task at its time limit. If it is to run tasks with one, have prefork "
            "for their queues: %s", ", ".join(hard),
        )  # fmt: skip
