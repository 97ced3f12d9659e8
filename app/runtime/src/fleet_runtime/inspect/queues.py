# SPDX-License-Identifier: MIT
"""Finds the queues that an app sends tasks to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from celery.exceptions import QueueNotFound
from celery.utils.nodenames import worker_direct
from kombu import Queue

from fleet_runtime.compat.celery_defaults import sending_options
from fleet_runtime.errors import FleetError

if TYPE_CHECKING:
    from celery import Celery

    Found = Iterator[tuple[str, str]]  # a queue, and the reason why tasks are sent to it
    Route = tuple[dict[str, Any], str]  # options of Celery's router, and their source

# Prefixes of the tasks of Celery and of the runtime, which have no routes of the app.
OWN = ("celery.", "fleet.")


def routed(app: Celery) -> dict[str, list[str]]:
    """Return each queue that an app sends tasks to, with the reasons, sorted.

    The app's tasks must have been imported. A function that computes routes is called for each task without
    arguments, and for each entry of the schedule with its arguments. Routes that depend on other arguments
    are not found. An app that was made from a description has the queues of the one that is described.
    """
    if described := getattr(app, "fleet_described", None):
        return dict(described["routed"])
    reasons = defaultdict(set)
    for queue, reason in (*_configured(app), *_named(_computed_routes(app))):
        reasons[queue].add(reason)
    return {queue: sorted(reasons[queue]) for queue in sorted(reasons)}


def exchanges(app: Celery) -> Iterator[tuple[str, str]]:
    """Yield each exchange that messages are sent to in place of the exchange of a queue, with the reason."""
    for route, reason in (*_configured_routes(app), *_computed_routes(app)):
        if route.get("exchange") and (route.get("routing_key") or not route.get("queue")):
            yield name_of(route["exchange"]), reason


def declared(app: Celery) -> list[Queue]:
    """Return the queues that an app or its routes declare, or that Celery creates for them."""
    for name in routed(app):
        with suppress(KeyError):  # with task_create_missing_queues = False
            app.amqp.queues[name]
    known = list(app.amqp.queues.values())
    of_routes = [route.get("queue") for route, _ in (*_configured_routes(app), *_computed_routes(app))]
    return [*known, *(queue for queue in of_routes if isinstance(queue, Queue) and queue not in known)]


def configured(app: Celery) -> list[str]:
    """Return the queues in the settings of an app, whose tasks need not have been imported."""
    if described := getattr(app, "fleet_described", None):
        return list(described["configured"])
    return sorted({queue for queue, _ in _configured(app)})


def _configured(app: Celery) -> Found:
    """Yield the default queue, the queues that the app declares, and those that task_routes names."""
    yield app.conf.task_default_queue, "task_default_queue"
    if app.conf.task_queues:
        yield from ((name_of(queue), "task_queues") for queue in app.amqp.queues.values())
    yield from _named(_configured_routes(app))


def _named(routes: Iterable[Route]) -> Found:
    """Yield the queues that routes name."""
    return ((name_of(route["queue"]), reason) for route, reason in routes if route.get("queue"))


def _configured_routes(app: Celery) -> Iterator[Route]:
    """Yield the routes in task_routes, also for tasks that this app does not have, without functions."""
    for route in listed(app.conf.task_routes):
        pairs = route.items() if isinstance(route, Mapping) else listed(route)
        for pattern, options in filter(is_pair, pairs):
            reason = f"task_routes for {getattr(pattern, 'pattern', pattern)}"
            yield {"queue": options} if isinstance(options, str) else dict(options or {}), reason


def task_routes(app: Celery, *, own_options: bool = True) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name of each task of the app, and the route by which Celery would send it.

    Args:
        app: The app, with its tasks imported.
        own_options: Whether the options of the task itself count, as for a caller who has the task.
    """
    for name, task in sorted(app.tasks.items()):
        if not name.startswith(OWN):
            yield name, _route(app, name, sending_options(task) if own_options else {}, task=task)


def _computed_routes(app: Celery) -> Iterator[Route]:
    """Yield the route by which Celery would send each task, and each entry of the schedule."""
    yield from ((route, f"the task {name}") for name, route in task_routes(app))
    for entry, given in (app.conf.beat_schedule or {}).items():
        task = app.tasks.get(given["task"])
        options = {**(sending_options(task) if task else {}), **given.get("options", {})}
        route = _route(app, given["task"], options, given.get("args", ()), given.get("kwargs"), task)
        yield route, f"the schedule's entry {entry}"


def _route(
    app: Celery, name: str, options: dict[str, Any], args: Any = (), kwargs: Any = None, task: Any = None
) -> dict[str, Any]:
    """Return the route of a message with these options; empty if it cannot be computed.

    Raises:
        FleetError: The route names a queue that does not exist, and the app lets none be created.
    """
    try:
        return dict(app.amqp.router.route(dict(options), name, args, kwargs, task))
    except QueueNotFound as error:
        raise FleetError(
            f"{name} cannot be sent: {error.args[0]}, and the app lets none be created."
        ) from None
    except Exception:  # of a function of the app, which needs arguments
        return {}


def listed(value: Any) -> list[Any]:
    """Return a setting as a list: it may be None, one value or several."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def is_pair(value: Any) -> bool:
    """Return whether an element of task_routes is a pair, and not a function or its name."""
    return isinstance(value, (list, tuple)) and len(value) == 2


def broadcast(app: Celery) -> dict[str, Any]:
    """Return the Broadcast queues of an app by name, whose messages go to all nodes."""
    queues = app.amqp.queues.values() if app.conf.task_queues else ()
    return {name_of(queue): queue for queue in queues if getattr(queue.exchange, "type", "") == "fanout"}


def consumed(app: Celery, node: str) -> dict[str, str]:
    """Return the queues of the inventory that a node consumes, by their names in Redis.

    The node's own queue of `worker_direct` is not included.
    """
    own = worker_direct(node).name
    return {name: name_of(queue) for name, queue in app.amqp.queues.consume_from.items() if name != own}


def name_of(queue: Any) -> str:
    """Return the name of a queue or an exchange, which may be an object or a name.

    A Broadcast queue has another name in each process. The app and the inventory use its alias.
    """
    return str(getattr(queue, "alias", None) or getattr(queue, "name", queue))
