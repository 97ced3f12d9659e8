# SPDX-License-Identifier: MIT
"""Checks an app before a release: what would fail, has no effect, or costs much. Needs no broker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kombu.serialization import prepare_accept_content, registry

from fleet_runtime import extras
from fleet_runtime.bootstrap import overrides
from fleet_runtime.bootstrap.app_loader import reraising_app_errors
from fleet_runtime.errors import FleetError
from fleet_runtime.inspect import queues, rights
from fleet_runtime.settings import unknown_variables

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from celery import Celery

    from fleet_runtime.inspect.rights import Rights

# The costs of settings, with tasks that do nothing. Preflight warns of settings of the inventory.
MEASURED = "measured on 2 cores, Celery 5.7"
POOL_COST = f"opens a connection for each message that it sends, 11 times the CPU ({MEASURED})"
TRACK_STARTED_COST = f"a second write to Redis for each task, three requests instead of two ({MEASURED})"
LEAST_TASKS_PER_CHILD = 1000
CHILD_COST = f"at 100 that costs short tasks 46 % more CPU, and halves their rate ({MEASURED})"


def import_tasks(app: Celery) -> None:
    """Import the app's task modules as a worker does, with those that it discovers.

    Raises:
        FleetError: A module cannot be imported.
    """
    with reraising_app_errors("The app's task modules cannot be imported"):
        app.loader.import_default_modules()
        app.finalize()


def findings(
    app: Celery,
    consumed: Collection[str],
    beat_scheduler: str = "",
    allowed: Rights | None = None,
    pools: Collection[str] = (),
) -> list[str]:
    """Return a sentence for each fault, with which the release is refused.

    Args:
        app: The app, with its tasks imported.
        consumed: The queues that nodes consume; empty if they are not known.
        beat_scheduler: The scheduler of Beat: redbeat or persistent; empty without Beat.
        allowed: Variables of the role redis that allow the app more in Redis; None if they are not known.
        pools: Kinds of the pools of the nodes, such as gevent.
    """
    refused = [each.sentence for each in overrides.find(app, beat_scheduler, allowed) if each.refuses]
    return [
        *unknown_variables(),
        *refused,
        *_unconsumed(app, consumed),
        *rights.refused(app, consumed, allowed),
        *_repeated(app),
        *_unreadable(app),
        *_missing(beat_scheduler, pools),
    ]


def overridden(app: Celery, beat_scheduler: str = "", allowed: Rights | None = None) -> list[str]:
    """Return a sentence for each setting or feature of the app that has no effect, and is not a fault.

    Args:
        app: The app, with its tasks imported.
        beat_scheduler: The scheduler of Beat: redbeat or persistent; empty without Beat.
        allowed: As for `findings`.
    """
    warnings = [each.sentence for each in overrides.find(app, beat_scheduler, allowed) if not each.refuses]
    uses, accepted = rights.warned(app, overrides.module(app), allowed), overrides.accepted(app)
    uses = {name: sentence for name, sentence in uses.items() if name not in accepted}
    return [*warnings, *uses.values(), *_batches(app)]


def costs(app: Celery) -> list[str]:
    """Return a sentence for each setting of the app that works, and costs much.

    Args:
        app: The app, with its tasks imported.
    """
    return [*_connections(app), *_tracked(app), *_short_lived(app)]


def _batches(app: Celery) -> list[str]:
    """Return the tasks that collect more messages than a node prefetches (celery-batches)."""
    multiplier = app.conf.worker_prefetch_multiplier
    sentences: list[str] = []
    for name, task in sorted(app.tasks.items()):
        flush_every = getattr(task, "flush_every", None)
        is_batch = any(kind.__module__.partition(".")[0] == "celery_batches" for kind in type(task).__mro__)
        if is_batch and flush_every and flush_every > multiplier:
            sentences.append(
                f"The task {name} collects {flush_every} messages, and a node prefetches prefetch_multiplier "
                f"({multiplier} by default) for each task that it can run: with less than {flush_every} in "
                f"all, no batch fills, and each waits {getattr(task, 'flush_interval', None)} s. Use a pool "
                "for its queue whose prefetch_multiplier times concurrency is that many."
            )
    return sentences


def _connections(app: Celery) -> list[str]:
    """Return whether each message that the app sends needs a new connection."""
    limit = app.conf.broker_pool_limit
    return [] if limit else [f"With broker_pool_limit {limit} the app {POOL_COST}. Celery's default is 10."]


def _tracked(app: Celery) -> list[str]:
    """Return whether the start of tasks is stored."""
    own = {name: task for name, task in app.tasks.items() if not name.startswith(queues.OWN)}
    tracked = sorted(name for name, task in own.items() if task.track_started)
    if not tracked:
        return []
    return [f"track_started, which {_few(tracked)} set{'s' * (len(tracked) == 1)}, is {TRACK_STARTED_COST}."]


def _short_lived(app: Celery) -> list[str]:
    """Return whether child processes are replaced often, in pools without max_tasks_per_child."""
    tasks = app.conf.worker_max_tasks_per_child
    if not tasks or tasks >= LEAST_TASKS_PER_CHILD:
        return []
    return [f"With worker_max_tasks_per_child {tasks} each child is replaced after so many; {CHILD_COST}."]


def _unconsumed(app: Celery, consumed: Collection[str]) -> list[str]:
    """Return the queues that no node consumes, in which tasks would wait for ever."""
    if not consumed:
        return []
    to_all = queues.broadcast(app)
    return [
        f"No node consumes the {'Broadcast ' * (queue in to_all)}queue {queue}, "
        f"which has tasks by {_few(reasons)}."
        for queue, reasons in queues.routed(app).items()
        if queue not in consumed
    ]


def _missing(beat_scheduler: str, pools: Collection[str]) -> Iterator[str]:
    """Yield each package that is not installed, of Beat's scheduler or of a kind of pool."""
    wanted = {
        "redbeat": ("The fleet's Beat (celery_beat_scheduler)", beat_scheduler == "redbeat"),
        "gevent": ("A pool of the kind gevent (celery_worker_pools)", "gevent" in pools),
    }
    for extra, (purpose, is_wanted) in wanted.items():
        try:
            if is_wanted:
                extras.require(extra, purpose)
        except FleetError as error:
            yield str(error)


def _unreadable(app: Celery) -> list[str]:
    """Return the tasks with a serializer that no node accepts."""
    accepted = prepare_accept_content(app.conf.accept_content)
    return [
        f"The task {name} has the serializer {task.serializer}, and the fleet accepts "
        f"{', '.join(app.conf.accept_content)}: each call of it would be a dead letter. "
        "Change the task, or add the serializer to FLEET_ACCEPT_CONTENT."
        for name, task in sorted(app.tasks.items())
        if task.serializer and registry.name_to_type.get(task.serializer, task.serializer) not in accepted
    ]


def _repeated(app: Celery) -> list[str]:
    """Return the tasks whose time limit exceeds the visibility timeout, so that they would be redelivered."""
    timeout = app.conf.broker_transport_options["visibility_timeout"]
    return [
        f"The task {name} may take {task.time_limit:g} s. FLEET_VISIBILITY_TIMEOUT ({timeout}) must be more."
        for name, task in sorted(app.tasks.items())
        if task.time_limit and task.time_limit >= timeout
    ]


def _few(reasons: list[str], limit: int = 3) -> str:
    """Return the first reasons, and the number of the others."""
    more = len(reasons) - limit
    return ", ".join(reasons[:limit]) + (f" and {more} more" if more > 0 else "")
