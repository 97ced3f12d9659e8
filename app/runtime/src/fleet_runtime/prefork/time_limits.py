# SPDX-License-Identifier: MIT
"""Which time limits a task has, and a pool of processes that keeps to them.

A hard limit ends the process of a task, a soft one raises SoftTimeLimitExceeded in it before. Each comes from
the message, else from the task (or the app's settings, which a task copies), else from the node. A soft limit
that is not below the hard one has no sense. Celery's pool counts for it first, and for the hard one from
there on (celery 5.7, asynpool): a hard limit of a minute would hold after the soft one of an hour.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery.concurrency.asynpool import AsynPool

if TYPE_CHECKING:
    from collections.abc import Callable

Limit = float | None  # seconds; Celery takes 0 for none, too


def requested(message: tuple[Limit, Limit], task: tuple[Limit, Limit]) -> tuple[Limit, Limit]:
    """Return the limits of one message, hard and soft, as a pool is told of them.

    A hard limit without a soft one, or with one that is not below it, is returned with a soft limit that
    equals it. That keeps the pool from adding the soft limit of the node, and `drop_soft` removes it.

    Args:
        message: The hard and the soft limit that the message asks for.
        task: Those of its task.
    """
    hard, soft = message[0] or task[0], message[1] or task[1]
    if hard and not (soft and soft < hard):
        return hard, hard
    return hard, soft


def drop_soft(job: Any, soft: Limit, hard: Limit) -> Limit:
    """Return the soft limit of a job of a pool, which loses one that is not below its hard limit."""
    if soft and hard and soft >= hard:
        job._soft_timeout = None
        return None
    return soft


class StockPool(AsynPool):  # type: ignore[misc]  # celery ships no types
    """Celery's own pool, in which a hard limit alone raises nothing in a task."""

    def _create_timelimit_handlers(self, hub: Any) -> None:
        """Prepare to end what takes too long."""
        super()._create_timelimit_handlers(hub)
        count: Callable[[Any, Limit, Limit], object] = vars(self)["on_timeout_set"]

        def on_timeout_set(job: Any, soft: Limit, hard: Limit) -> None:
            count(job, drop_soft(job, soft, hard), hard)

        self.on_timeout_set = on_timeout_set
