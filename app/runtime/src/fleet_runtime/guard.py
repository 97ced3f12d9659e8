"""What a node makes sure of before it starts."""

from __future__ import annotations

from typing import Any

from celery import bootsteps

from fleet_runtime import children
from fleet_runtime.errors import FleetError
from fleet_runtime.settings import FleetSettings


class Guard(bootsteps.Step):  # type: ignore[misc]  # celery ships no types
    """Refuses a node that would lose tasks or run them twice, and bounds one that nobody bounded."""

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        """Look at the worker, all options of which are known by now."""
        try:
            settings = FleetSettings.from_environment()
            _require_component(settings)
            _limit(parent, settings)
        except FleetError as error:
            raise SystemExit(f"celery: {error}") from None
        children.mend()


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
