# SPDX-License-Identifier: MIT
"""The checks that a node makes before it starts."""

from __future__ import annotations

import logging
import resource
from pathlib import Path
from typing import Any

import click
from celery import bootsteps, signals
from celery.bin import graph
from celery.concurrency.prefork import TaskPool

from fleet_runtime.bootstrap import plugins
from fleet_runtime.compat import tracing
from fleet_runtime.errors import FleetError
from fleet_runtime.prefork import memory
from fleet_runtime.settings import FleetSettings

logger = logging.getLogger(__name__)

# Prefixes of tasks that are not the app's.
BUILT_IN = ("celery.", "fleet.")
MEMORY_CHECK_UID = "fleet.memory"  # of a receiver of a signal


class StartupChecks(bootsteps.Step):
    """Refuses a node that would lose tasks or run them twice, and sets a missing time limit."""

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        """Check a worker, whose options are all known by now.

        Raises:
            SystemExit: The worker is refused.
        """
        if is_graph():
            return
        try:
            settings: FleetSettings = parent.app.fleet_settings
            if settings.component != "worker":  # another one would not keep unacknowledged messages
                raise FleetError("only a process with FLEET_COMPONENT=worker may run tasks.")
            _set_time_limit(parent, settings)
            _require_time_to_stop(parent, settings.node_time_limit)
            _check_memory_limit(parent)
            _warn_of_unsupported_limits(parent)
            if settings.is_full:
                tracing.patch()
            if settings.fast_pool:
                plugins.select_pool()
        except FleetError as error:
            raise SystemExit(f"celery: {error}") from None
        memory.share_memory()


def is_graph() -> bool:
    """Return whether the worker is created for `celery graph bootsteps`, which does not start it."""
    context = click.get_current_context(silent=True)
    return context is not None and context.command is graph.bootsteps


def _set_time_limit(worker: Any, settings: FleetSettings) -> None:
    """Set the fleet's time limit on a worker that has none.

    The setting task_time_limit would override the limits of pools: Celery copies it to each task, and from
    there into each message, where it comes before the limit of the worker (celery 5.7, Task.from_config).

    Raises:
        FleetError: The time limit exceeds the visibility timeout.
    """
    if worker.time_limit is None:
        worker.time_limit = settings.task_time_limit
        worker.soft_time_limit = worker.soft_time_limit or settings.soft_time_limit
    if worker.time_limit >= settings.visibility_timeout:
        raise FleetError(
            f"the time limit ({worker.time_limit:g}) must be less than FLEET_VISIBILITY_TIMEOUT "
            f"({settings.visibility_timeout}), or a long task is redelivered while it runs."
        )


def _require_time_to_stop(worker: Any, granted: float) -> None:
    """Refuse a worker whose tasks may take longer than its unit waits when it stops.

    A time limit of a task itself is only logged: the task is requeued then, and not lost.

    Args:
        worker: The worker.
        granted: Seconds for which the unit waits.

    Raises:
        FleetError: The time limit of the worker is too long.
    """
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


def _check_memory_limit(worker: Any) -> None:
    """Warn once if the memory limit is so low that each child process is replaced after one task.

    A child process starts with the memory of the node, as the kernel counts it, and billiard checks the limit
    after each task. billiard's own message does not reach the log.
    """
    most = worker.max_memory_per_child or 0
    if not most or not issubclass(worker.pool_cls, TaskPool):
        return

    def compare(**_: Any) -> None:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        has = pages * resource.getpagesize() // 1024
        if has < most:
            return
        signals.worker_before_create_process.disconnect(dispatch_uid=MEMORY_CHECK_UID)
        logger.warning(
            "max_memory_per_child (%d KiB) is not more than a process of this app has before its first task "
            "(%d KiB), so each process is replaced after one task. Raise it, or import less.",
            most, has,
        )  # fmt: skip

    signals.worker_before_create_process.connect(compare, weak=False, dispatch_uid=MEMORY_CHECK_UID)


def _warn_of_unsupported_limits(worker: Any) -> None:
    """Warn of tasks with time limits that the pool does not enforce: only prefork enforces both."""
    if issubclass(worker.pool_cls, TaskPool):
        return
    tasks = {name: task for name, task in worker.app.tasks.items() if not name.startswith(BUILT_IN)}
    if soft := sorted(name for name, task in tasks.items() if task.soft_time_limit):
        logger.warning(
            "This kind of pool raises no SoftTimeLimitExceeded. Use prefork for the queues of these tasks, "
            "which have a soft time limit: %s", ", ".join(soft),
        )  # fmt: skip
    hard = sorted(name for name, task in tasks.items() if task.time_limit)
    if hard and not worker.pool_cls.is_green:
        logger.warning(
            "This kind of pool ends no task at its time limit. Use prefork for the queues of these tasks, "
            "which have one: %s", ", ".join(hard),
        )  # fmt: skip
