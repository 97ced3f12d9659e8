# SPDX-License-Identifier: MIT
"""Describes an app as JSON, so that Flower and the operator's commands run without it.

`fleet check` describes the app of a release, and the release keeps the description. `load` makes an app of
it: with the queues, routes, serializers and time zone of the described one, and a task of each name that is
sent as the described one is, but cannot run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery import Celery, Task
from kombu import Exchange, Queue, binding
from kombu.common import Broadcast
from kombu.serialization import registry

from fleet_runtime.compat.celery_defaults import sending_options
from fleet_runtime.errors import FleetError
from fleet_runtime.inspect import queues

if TYPE_CHECKING:
    from collections.abc import Iterator

# Raise it when an older `load` could not read what `describe` returns.
FORMAT = 1
# Settings of the app by which messages are sent and shown. None may be secret: everyone may read the file.
SETTINGS = (
    *("timezone", "task_default_queue", "task_default_queue_type", "task_default_exchange"),
    *("task_default_exchange_type", "task_default_routing_key", "task_default_delivery_mode"),
    *("task_default_priority", "task_queue_max_priority", "task_create_missing_queues"),
    *("task_create_missing_queue_type", "task_create_missing_queue_exchange_type", "task_serializer"),
    *("task_compression", "task_protocol", "task_ignore_result", "result_serializer", "result_compression"),
    *("result_expires", "result_extended", "result_persistent"),
)
SERIALIZERS = ("task_serializer", "result_serializer")
TASK_OPTIONS = frozenset(
    {"queue", "exchange", "routing_key", "priority", "expires", "serializer", "delivery_mode", "compression"}
    | {"time_limit", "soft_time_limit", "ignore_result"}
)
TRANSPORT_OPTIONS = ("priority_steps", "queue_order_strategy")


def describe(app: Celery) -> dict[str, Any]:
    """Return the description of an app, which JSON can hold.

    Args:
        app: The app, configured and with its tasks imported.
    """
    declared = app.amqp.Queues(app.conf.task_queues).values() if app.conf.task_queues else ()
    configured = queues.configured(app)
    options = app.conf.broker_transport_options
    return {
        "format": FORMAT,
        "name": app.main,
        "settings": {name: _plain(getattr(app.conf, name, None)) for name in SETTINGS},
        "transport_options": {name: options[name] for name in TRANSPORT_OPTIONS if name in options},
        "queues": [_queue(queue) for queue in declared],
        "routes": list(_routes(app)),
        "configured": configured,
        "routed": queues.routed(app),
        "tasks": {name: _task(app.tasks[name], route) for name, route in queues.task_routes(app)},
    }


def load(path: str) -> Celery:
    """Return an app that sends, and shows what is sent, as the app of a description does.

    Raises:
        FleetError: The file cannot be read, or has another format.
    """
    try:
        about = json.loads(Path(path).read_text(encoding="utf-8"))
        if about["format"] != FORMAT:
            raise FleetError(
                f"{path} has the format {about['format']}, and this version of the runtime reads {FORMAT}. "
                "Run site.yml or release.yml, which write it anew."
            )
        return _made(about)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FleetError(
            f"The description of the app cannot be read (FLEET_APP_FILE): {error}. Run site.yml or "
            "release.yml, which write it anew."
        ) from None


def _made(about: Mapping[str, Any]) -> Celery:
    """Return the app of a description."""
    app = Celery(about["name"])
    for name in SETTINGS:  # and no other, whatever the app's code had the file say
        value = about["settings"].get(name)
        # A serializer that the app itself registers is not known here: its messages are the app's to send.
        if value is not None and (name not in SERIALIZERS or value in registry.name_to_type):
            app.conf[name] = value
    options = about["transport_options"]
    app.conf.broker_transport_options = {name: options[name] for name in TRANSPORT_OPTIONS if name in options}
    if about["queues"]:
        app.conf.task_queues = [_made_queue(queue) for queue in about["queues"]]
    app.conf.task_routes = (
        [(re.compile(pattern) if is_regex else pattern, to) for pattern, is_regex, to in about["routes"]],
    )
    for name, options in about["tasks"].items():
        known = {option: value for option, value in options.items() if option in TASK_OPTIONS}
        base = type("Described", (Task,), known)  # Celery warns of a queue that is the task's own
        app.task(_cannot_run, base=base, name=name, shared=False, typing=False)
    app.fleet_described = {name: about[name] for name in ("configured", "routed")}
    return app


def _cannot_run(*_args: Any, **_options: Any) -> None:
    """Take the place of the body of a task, which only a node has."""
    raise FleetError("Only a node runs tasks.")


def _routes(app: Celery) -> Iterator[tuple[str, bool, dict[str, Any]]]:
    """Yield each entry of task_routes: its pattern, whether that is a regular expression, and its options.

    In place of a function that computes routes: each task of the app, with the route that it gets without
    arguments.
    """
    for route in queues.listed(app.conf.task_routes):
        pairs = route.items() if isinstance(route, Mapping) else queues.listed(route)
        for pair in pairs:
            if not queues.is_pair(pair):
                for name, computed in queues.task_routes(app, own_options=False):
                    yield name, False, _destination(computed)
                continue
            pattern, options = pair
            to = {"queue": options} if isinstance(options, str) else dict(options or {})
            is_regex = isinstance(pattern, re.Pattern)
            yield pattern.pattern if is_regex else str(pattern), is_regex, _destination(to)


def _task(task: Any, route: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options with which a task is sent.

    Args:
        task: The task.
        route: Where Celery would send it, with all options; empty if that cannot be computed.
    """
    return {**_destination(route or sending_options(task)), "ignore_result": bool(task.ignore_result)}


def _destination(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options of sending, with the names of queues and exchanges, without what JSON cannot hold."""
    names = {
        name: queues.name_of(options[name]) for name in ("queue", "exchange") if options.get(name) is not None
    }
    plain = {name: _plain(value) for name, value in options.items() if name not in names}
    return {name: value for name, value in {**plain, **names}.items() if value is not None}


def _plain(value: Any) -> Any:
    """Return a value that JSON can hold; None for any other. A time zone has its name."""
    if hasattr(value, "utcoffset"):
        return str(value)
    return value if isinstance(value, (str, int, float, bool)) else None


def _queue(queue: Queue) -> dict[str, Any]:
    """Return a queue as JSON can hold it."""
    return {
        "name": queues.name_of(queue),
        "to_all": isinstance(queue, Broadcast),
        **_binding(queue),
        "bindings": [_binding(each) for each in queue.bindings],
    }


def _binding(bound: Any) -> dict[str, Any]:
    """Return the exchange and the routing key of a queue or of one of its bindings."""
    exchange = bound.exchange
    kind = getattr(exchange, "type", None) or "direct"
    return {"exchange": queues.name_of(exchange), "type": kind, "key": bound.routing_key}


def _made_queue(about: Mapping[str, Any]) -> Queue:
    """Return a queue of a description."""
    exchange = Exchange(about["exchange"], type=about["type"])
    if about["to_all"]:
        return Broadcast(about["name"], exchange=exchange)
    bindings = [
        binding(Exchange(each["exchange"], type=each["type"]), routing_key=each["key"])
        for each in about["bindings"]
    ]
    return Queue(about["name"], exchange, routing_key=about["key"], bindings=bindings)
