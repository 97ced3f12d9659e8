# SPDX-License-Identifier: MIT
"""Finds what would go wrong with an app on the fleet, before it runs there. Asks no broker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kombu.serialization import prepare_accept_content, registry

from fleet_runtime import extras
from fleet_runtime.bootstrap import overrides
from fleet_runtime.bootstrap.app_loader import blaming
from fleet_runtime.errors import FleetError
from fleet_runtime.inspect import queues, rights
from fleet_runtime.settings import unknown_variables

if TYPE_CHECKING:
    from collections.abc import Collection

    from celery import Celery

    from fleet_runtime.inspect.rights import Rights

# What settings of an app cost, by tasks that do nothing. Preflight warns of those that an inventory has.
MEASURED = "measured on 2 cores, Celery 5.7"
POOL_COST = f"opens a connection for each message that it sends, 11 times the CPU ({MEASURED})"
TRACK_STARTED_COST = f"a second write to Redis for each, three requests instead of two ({MEASURED})"
LEAST_TASKS_PER_CHILD = 1000
CHILD_COST = f"at 100 that costs short tasks 46 % more CPU, and halves their rate ({MEASURED})"


def import_tasks(app: Celery) -> None:
    """Import the app's task modules as a worker does, those that it discovers included.

    Raises:
        FleetError: One of them cannot be imported.
    """
    with blaming("The app's task modules cannot be imported"):
        app.loader.import_default_modules()
        app.finalize()


def findings(
    app: Celery, consumed: Collection[str], beat_scheduler: str = "", allowed: Rights | None = None
) -> list[str]:
    """Return what is wrong, a sentence each.

    Args:
        app: The app, with its tasks imported.
        consumed: The queues that some node consumes; nothing if that is not known.
        beat_scheduler: What the fleet's Beat runs: redbeat or persistent; nothing if there is none.
        allowed: What the inventory allows the app in Redis, by variables of the role redis; None if that is
            not known.
    """
    refused = [one.sentence for one in overrides.find(app, beat_scheduler, allowed) if one.refuses]
    return [
        *unknown_variables(),
        *refused,
        *_unconsumed(app, consumed),
        *rights.refused(app, consumed, allowed),
        *_repeated(app),
        *_unreadable(app),
        *_scheduler_missing(beat_scheduler),
    ]


def overridden(app: Celery, beat_scheduler: str = "", allowed: Rights | None = None) -> list[str]:
    """Return what the app sets or uses and does not get, a sentence each, but for what refuses a release.

    Args:
        app: The app, with its tasks imported.
        beat_scheduler: What the fleet's Beat runs: redbeat or persistent; nothing if there is none.
        allowed: As for `findings`.
    """
    told = [one.sentence for one in overrides.find(app, beat_scheduler, allowed) if not one.refuses]
    uses, accepted = rights.warned(app, overrides.module(app), allowed), overrides.accepted(app)
    return [*told, *(said for name, said in uses.items() if name not in accepted), *_batches(app)]


def costs(app: Celery) -> list[str]:
    """Return what works, but costs much, a sentence each, of what the fleet leaves to the app.

    Args:
        app: The app, with its tasks imported.
    """
    return [*_connections(app), *_tracked(app), *_short_lived(app)]


def _batches(app: Celery) -> list[str]:
    """Return which tasks collect more messages than a node reserves (celery-batches)."""
    multiplier = app.conf.worker_prefetch_multiplier
    sentences: list[str] = []
    for name, task in sorted(app.tasks.items()):
        flush_every = getattr(task, "flush_every", None)
        is_batch = any(kind.__module__.partition(".")[0] == "celery_batches" for kind in type(task).__mro__)
        if is_batch and flush_every and flush_every > multiplier:
            sentences.append(
                f"The task {name} collects {flush_every} messages, and a node reserves prefetch_multiplier "
                f"({multiplier} by default) for each task that it can run: with less than {flush_every} in "
                f"all, no batch fills, and each waits {getattr(task, 'flush_interval', None)} s. Have a pool "
                "for its queue whose prefetch_multiplier times concurrency is that many."
            )
    return sentences


def _connections(app: Celery) -> list[str]:
    """Return whether each message that the app sends has a connection of its own."""
    limit = app.conf.broker_pool_limit
    return [] if limit else [f"With broker_pool_limit {limit} the app {POOL_COST}. Celery's own is 10."]


def _tracked(app: Celery) -> list[str]:
    """Return whether the start of tasks is stored, too."""
    own = {name: task for name, task in app.tasks.items() if not name.startswith(("celery.", "fleet."))}
    tracked = sorted(name for name, task in own.items() if task.track_started)
    if not tracked:
        return []
    return [f"track_started, which {_few(tracked)} set{'s' * (len(tracked) == 1)}, is {TRACK_STARTED_COST}."]


def _short_lived(app: Celery) -> list[str]:
    """Return whether children are replaced often, in pools that do not say how often."""
    tasks = app.conf.worker_max_tasks_per_child
    if not tasks or tasks >= LEAST_TASKS_PER_CHILD:
        return []
    return [f"With worker_max_tasks_per_child {tasks} each child is replaced after so many; {CHILD_COST}."]


def _unconsumed(app: Celery, consumed: Collection[str]) -> list[str]:
    """Return the queues in which tasks would wait for ever."""
    if not consumed:
        return []
    to_all = queues.broadcast(app)
    return [
        f"No node consumes the {'Broadcast ' * (queue in to_all)}queue {queue}, "
        f"which has tasks by {_few(reasons)}."
        for queue, reasons in queues.routed(app).items()
        if queue not in consumed
    ]


def _scheduler_missing(beat_scheduler: str) -> list[str]:
    """Return whether the package of Beat's scheduler is not installed."""
    if beat_scheduler == "redbeat":
        try:
            extras.require("redbeat", "The fleet's Beat (celery_beat_scheduler)")
        except FleetError as error:
            return [str(error)]
    return []


def _unreadable(app: Celery) -> list[str]:
    """Return the tasks whose messages every node would refuse, because of a serializer of their own."""
    accepted = prepare_accept_content(app.conf.accept_content)
    return [
        f"The task {name} has the serializer {task.serializer}, and the fleet accepts "
        f"{', '.join(app.conf.accept_content)}: each call of it would be a dead letter. "
        "Change the task, or add the serializer to FLEET_ACCEPT_CONTENT."
        for name, task in sorted(app.tasks.items())
        if task.serializer and registry.name_to_type.get(task.serializer, task.serializer) not in accepted
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
