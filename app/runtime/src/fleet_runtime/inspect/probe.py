# SPDX-License-Identifier: MIT
"""Proves that a queue is consumed: a task that says where it ran, and the means to send it and wait."""

# Celery ships no types.
# mypy: disable-error-code="untyped-decorator"
from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from celery import Task
from celery.exceptions import TimeoutError as NoResultError
from kombu import Exchange, Queue
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from fleet_runtime.errors import FleetError
from fleet_runtime.inspect import queues

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from celery import Celery

NAME = "fleet.probe"
POLL = 0.05  # seconds between two looks for results


@dataclass(frozen=True)
class Answer:
    """What came back for one queue; without a node, nothing did, or an error of the task."""

    node: str | None = None
    release: str | None = None
    seconds: float | None = None
    error: str | None = None


def register(app: Celery, release: str) -> None:
    """Give an app the task.

    It is Celery's own kind of task and not the app's, which may want a request, a tenant or a database: what
    it proves is the way to a node and back.
    """

    @app.task(name=NAME, base=Task, bind=True, shared=False, ignore_result=False, serializer="json")
    def probe(self: Any) -> dict[str, str]:
        """Say where this runs."""
        request = self.request
        return {"node": request.hostname, "queue": request.delivery_info["routing_key"], "release": release}


def ask(app: Celery, names: Iterable[str], timeout: float) -> dict[str, Answer]:
    """Send a probe into each queue and wait for all of them together.

    Args:
        app: The app.
        names: Of the queues. The app need not know them.
        timeout: Seconds to wait at most. A probe that is in its queue for longer is dropped by who gets it.

    Raises:
        FleetError: The broker is away, or refuses.
    """
    with _blaming_the_broker("The broker cannot be reached"), app.connection_for_write() as connection:
        connection.connect()
    answers = {queue: Answer() for queue in names}
    waiting: dict[str, tuple[str, float]] = {}
    for queue in answers:
        with _blaming_the_broker(f"A probe cannot be sent to the queue {queue}"):
            started = time.monotonic()
            result = app.send_task(NAME, expires=timeout, ignore_result=False, **_way(app, queue))
            waiting[result.id] = (queue, started)
    with _blaming_the_broker("The answers cannot be read"):
        for task_id, meta in _results(app, list(waiting), timeout):
            queue, started = waiting[task_id]
            said = meta["result"]
            elapsed = round(time.monotonic() - started, 3)
            if isinstance(said, dict) and "node" in said:
                answers[queue] = Answer(said["node"], said["release"], elapsed)
            else:
                answers[queue] = Answer(seconds=elapsed, error=f"{type(said).__name__}: {said}")
    return answers


def _way(app: Celery, name: str) -> dict[str, Any]:
    """Return the options by which a message gets to a node that consumes a queue."""
    if to_all := queues.broadcast(app).get(name):
        return {"queue": to_all, "declare": [to_all.exchange]}
    return {"queue": direct(name)}


def direct(name: str, **options: Any) -> Queue:
    """Return a queue by its name alone, without the exchange and routing that the app may have for it."""
    return Queue(name, Exchange(""), routing_key=name, **options)


def _results(app: Celery, ids: list[str], timeout: float) -> Iterator[tuple[str, Any]]:
    """Yield the results of tasks as they come, until all are there or the time is up."""
    try:
        yield from app.backend.get_many(ids, timeout=timeout, interval=POLL)
    except NoResultError:
        return


@contextmanager
def _blaming_the_broker(what: str) -> Iterator[None]:
    """Turn what Celery raises about its broker into one sentence."""
    try:
        yield
    except (OperationalError, RedisError, OSError) as error:
        raise FleetError(f"{what}: {error}") from error
