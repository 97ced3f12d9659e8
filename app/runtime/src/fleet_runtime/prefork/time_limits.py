# SPDX-License-Identifier: MIT
"""The time limits of a task.

A hard limit kills the process of a task; a soft limit raises SoftTimeLimitExceeded in it before that. Each
comes from the message, else from the task (which copies the app's settings), else from the node. A soft limit
that is not below the hard one has no meaning. Celery's pool starts the hard limit only when the soft one has
passed (celery 5.7, asynpool): with a soft limit of an hour, a hard limit of a minute would end the task after
an hour and a minute.
"""

from __future__ import annotations

from typing import Any

Limit = float | None  # seconds; Celery takes 0 for none, too


def requested(message: tuple[Limit, Limit], task: tuple[Limit, Limit]) -> tuple[Limit, Limit]:
    """Return the hard and the soft limit of a request for the pool.

    A hard limit without a soft one, or with one that is not below it, gets a soft limit that equals it. That
    keeps the pool from adding the soft limit of the node. The runtime's pool removes it by `drop_soft`;
    Celery's raises SoftTimeLimitExceeded in the task just before it kills the process.

    Args:
        message: The hard and the soft limit of the message.
        task: The hard and the soft limit of its task.
    """
    hard, soft = message[0] or task[0], message[1] or task[1]
    if hard and not (soft and soft < hard):
        return hard, hard
    return hard, soft


def drop_soft(job: Any, soft: Limit, hard: Limit) -> Limit:
    """Return the soft limit of a job, or None if it is not below the hard limit; the job loses it then."""
    if soft and hard and soft >= hard:
        job._soft_timeout = None
        return None
    return soft
