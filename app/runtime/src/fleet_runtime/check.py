"""Finds what would go wrong with an app on the fleet, before it runs there. Asks no broker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fleet_runtime import queues
from fleet_runtime.loading import blaming
from fleet_runtime.settings import unknown_variables

if TYPE_CHECKING:
    from collections.abc import Collection

    from celery import Celery


def import_tasks(app: Celery) -> None:
    """Import the app's task modules as a worker does, those that it discovers included.

    Raises:
        FleetError: One of them cannot be imported.
    """
    with blaming("The app's task modules cannot be imported"):
        app.loader.import_default_modules()
        app.finalize()


def findings(app: Celery, consumed: Collection[str]) -> list[str]:
    """Return what is wrong, a sentence each.

    Args:
        app: The app, with its tasks imported.
        consumed: The queues that some node consumes; nothing if that is not known.
    """
    return [*unknown_variables(), *_unconsumed(app, consumed), *_repeated(app)]


def _unconsumed(app: Celery, consumed: Collection[str]) -> list[str]:
    """Return the queues in which tasks would wait for ever."""
    if not consumed:
        return []
    return [
        f"No node consumes the queue {queue}, which has tasks by {_few(reasons)}."
        for queue, reasons in queues.routed(app).items()
        if queue not in consumed
    ]


def _repeated(app: Celery) -> list[str]:
    """Return the tasks that may run so long that they are handed out again meanwhile."""
    timeout = app.conf.broker_transport_options["visibility_timeout"]
    return [
        f"The task {name} may take {task.time_limit:g} s. FLEET_VISIBILITY_TIMEOUT ({timeout}) must be more."
        for name, task in sorted(app.tasks.items())
        if task.time_limit and task.time_limit >= timeout
    ]


def _few(reasons: list[str], most: int = 3) -> str:
    """Return the first of some reasons, and how many there are besides."""
    more = len(reasons) - most
    return ", ".join(reasons[:most]) + (f" and {more} more" if more > 0 else "")
