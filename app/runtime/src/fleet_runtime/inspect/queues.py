# SPDX-License-Identifier: MIT
"""Finds every queue that an app sends tasks to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from celery.exceptions import QueueNotFound
from celery.utils.nodenames import worker_direct
from kombu import Queue

from fleet_runtime.compat.celery_task import sending_options
from fleet_runtime.errors import FleetError

if TYPE_CHECKING:
    from celery import Celery

    Found = Iterator[tuple[str, str]]  # a queue, and what sends there
    Route = tuple[dict[str, Any], str]  # options as Celery's router has them, and whose they are

# Tasks of Celery itself, which run where they are asked for, and of the runtime, which are told where to go.
OWN = ("celery.", "fleet.")


def routed(app: Celery) -> dict[str, list[str]]:
    """Return each queue that an app sends tasks to, with what sends them there, sorted.

    The app's tasks must have been imported. A route that a function computes is asked for each task without
    arguments, and for each entry of the schedule with its own; where it depends on other arguments, it cannot
    be known.
    """
    reasons = defaultdict(set)
    for finder in (_configured, _routes, _senders):
        for queue, reason in finder(app):
            reasons[queue].add(reason)
    return {queue: sorted(reasons[queue]) for queue in sorted(reasons)}


def exchanges(app: Celery) -> Iterator[tuple[str, str]]:
    """Yield each exchange that messages are sent to in place of a queue's own, with what sends them there."""
    for route, reason in (*_given(app), *_sent(app)):
        if route.get("exchange") and (route.get("routing_key") or not route.get("queue")):
            yield name_of(route["exchange"]), reason


def declared(app: Celery) -> list[Queue]:
    """Return the queues that an app or its routes declare, or that Celery makes for them."""
    for name in routed(app):
        with suppress(KeyError):  # the app lets none be made
            app.amqp.queues[name]
    known = list(app.amqp.queues.values())
    given = [route.get("queue") for route, _ in (*_given(app), *_sent(app))]
    return [*known, *(queue for queue in given if isinstance(queue, Queue) and queue not in known)]


def configured(app: Celery) -> list[str]:
    """Return the queues that an app names in its settings; its tasks need not have been imported."""
    return sorted({queue for finder in (_configured, _routes) for queue, _ in finder(app)})


def _configured(app: Celery) -> Found:
    """Yield the default queue, and those that the app declares."""
    yield app.conf.task_default_queue, "task_default_queue"
    if app.conf.task_queues:
        yield from ((name_of(queue), "task_queues") for queue in app.amqp.queues.values())


def _routes(app: Celery) -> Found:
    """Yield the queues that task_routes has as data."""
    yield from ((name_of(route["queue"]), reason) for route, reason in _given(app) if route.get("queue"))


def _senders(app: Celery) -> Found:
    """Yield the queue of each task, and of each entry of the schedule."""
    yield from ((name_of(route["queue"]), reason) for route, reason in _sent(app) if route.get("queue"))


def _given(app: Celery) -> Iterator[Route]:
    """Yield the routes that task_routes has as data, for tasks that this app may not have itself."""
    for route in _listed(app.conf.task_routes):
        pairs = route.items() if isinstance(route, Mapping) else _listed(route)
        for pattern, options in filter(_is_pair, pairs):
            reason = f"task_routes for {getattr(pattern, 'pattern', pattern)}"
            yield {"queue": options} if isinstance(options, str) else dict(options or {}), reason


def _sent(app: Celery) -> Iterator[Route]:
    """Yield how Celery itself would send each task, and each entry of the schedule."""
    for name, task in app.tasks.items():
        if not name.startswith(OWN):
            yield _route(app, name, sending_options(task), task=task), f"the task {name}"
    for entry, given in (app.conf.beat_schedule or {}).items():
        task = app.tasks.get(given["task"])
        options = {**(sending_options(task) if task else {}), **given.get("options", {})}
        route = _route(app, given["task"], options, given.get("args", ()), given.get("kwargs"), task)
        yield route, f"the schedule's entry {entry}"


def _route(
    app: Celery, name: str, options: dict[str, Any], args: Any = (), kwargs: Any = None, task: Any = None
) -> dict[str, Any]:
    """Return how Celery sends a message with these options; nothing if that cannot be known."""
    try:
        return dict(app.amqp.router.route(dict(options), name, args, kwargs, task))
    except QueueNotFound as error:
        raise FleetError(f"{name} cannot be sent: {error.args[0]}, and the app lets none be made.") from None
    except Exception:  # of a function of the app's, which wants arguments to decide
        return {}


def _listed(value: Any) -> list[Any]:
    """Return a setting that may be one thing or several as a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _is_pair(value: Any) -> bool:
    """Return whether this is one route of a list of routes, and not a function or its name."""
    return isinstance(value, (list, tuple)) and len(value) == 2


def broadcast(app: Celery) -> dict[str, Any]:
    """Return the queues of an app by their names, whose messages go to all nodes."""
    queues = app.amqp.queues.values() if app.conf.task_queues else ()
    return {name_of(queue): queue for queue in queues if getattr(queue.exchange, "type", "") == "fanout"}


def consumed(app: Celery, node: str) -> dict[str, str]:
    """Return the queues of the inventory that a node consumes, by the names that Redis and kombu know.

    Not among them is the queue that a node has for itself, with `worker_direct`.
    """
    own = worker_direct(node).name
    return {name: name_of(queue) for name, queue in app.amqp.queues.consume_from.items() if name != own}


def name_of(queue: Any) -> str:
    """Return the name of a queue or an exchange, given as such or by its name.

    That of a Broadcast queue is another one in each process; its alias is what an app and an inventory say.
    """
    return str(getattr(queue, "alias", None) or getattr(queue, "name", queue))
