# SPDX-License-Identifier: MIT
"""The probe: a task that returns where it ran, which shows that a queue is consumed."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from celery import Task
from celery.exceptions import TimeoutError as NoResultError
from kombu import Exchange, Queue

from fleet_runtime.broker.errors import explained
from fleet_runtime.inspect import queues

if TYPE_CHECKING:
    from collections.abc import Iterable

    from celery import Celery

NAME = "fleet.probe"
# Seconds between two checks for results.
POLL_INTERVAL_S = 0.05


@dataclass(frozen=True)
class Answer:
    """The answer for a queue.

    Attributes:
        node: The node that ran the probe; None without an answer, or after an error of the task.
        release: The release of the node.
        seconds: Time until the answer.
        error: The error of the task.
    """

    node: str | None = None
    release: str | None = None
    seconds: float | None = None
    error: str | None = None


def register(app: Celery, release: str) -> None:
    """Register the probe with an app.

    Its base is Celery's Task and not the app's, which may need a request, a tenant or a database: the probe
    tests only the way to a node and back.
    """

    @app.task(name=NAME, base=Task, bind=True, shared=False, ignore_result=False, serializer="json")
    def probe(self: Any) -> dict[str, str]:
        """Return where the probe runs."""
        request = self.request
        return {"node": request.hostname, "queue": request.delivery_info["routing_key"], "release": release}


def ask(app: Celery, names: Iterable[str], timeout: float) -> dict[str, Answer]:
    """Send a probe into each queue, and wait for all answers.

    Args:
        app: The app.
        names: Names of the queues. The app need not declare them.
        timeout: Seconds to wait for all answers together. A probe that waits longer in its queue expires.

    Raises:
        FleetError: The broker is away, or refuses a command.
    """
    with explained("The broker cannot be reached"), app.connection_for_write() as connection:
        connection.connect()
    answers = {queue: Answer() for queue in names}
    waiting: dict[str, tuple[str, float]] = {}
    for queue in answers:
        with explained(f"A probe cannot be sent to the queue {queue}"):
            started = time.monotonic()
            result = app.send_task(NAME, expires=timeout, ignore_result=False, **_route(app, queue))
            waiting[result.id] = (queue, started)
    with explained("The answers cannot be read"), suppress(NoResultError):  # the time is up
        for task_id, meta in app.backend.get_many(list(waiting), timeout=timeout, interval=POLL_INTERVAL_S):
            queue, started = waiting[task_id]
            result = meta["result"]
            elapsed = round(time.monotonic() - started, 3)
            if isinstance(result, dict) and "node" in result:
                answers[queue] = Answer(result["node"], result["release"], elapsed)
            else:
                answers[queue] = Answer(seconds=elapsed, error=f"{type(result).__name__}: {result}")
    return answers


def _route(app: Celery, name: str) -> dict[str, Any]:
    """Return the options that send a message to a node that consumes a queue."""
    if to_all := queues.broadcast(app).get(name):
        return {"queue": to_all, "declare": [to_all.exchange]}
    return {"queue": direct(name)}


def direct(name: str, **options: Any) -> Queue:
    """Return a queue of this name, without the exchange and the routing key that the app may have for it."""
    return Queue(name, Exchange(""), routing_key=name, **options)
