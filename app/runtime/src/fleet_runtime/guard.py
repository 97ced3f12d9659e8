"""Keeps the operators' access to the broker from being used to run tasks."""

from __future__ import annotations

from typing import Any

from celery import bootsteps


class NodesOnly(bootsteps.Step):  # type: ignore[misc]  # celery ships no types
    """Refuses to start a worker in a process that was not made to be one.

    It would not hold its messages in `unacked` (FLEET_COMPONENT says so), and lose them when it dies.
    """

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        """Refuse."""
        raise SystemExit("celery: only a process with FLEET_COMPONENT=worker may run tasks.")
