# SPDX-License-Identifier: MIT
"""Keeps a command that revokes many tasks from blocking the loop of a node.

Celery looks each id up in the result backend, one after another, in the loop that fetches messages (celery
5.7, worker.control._revoke): with some ten thousand ids, each node hangs until its watchdog ends it. Here the
ids are flagged at once, and a thread stores their state in batches.
"""

from __future__ import annotations

import logging
import queue
import threading
from functools import cache, wraps
from itertools import islice
from typing import TYPE_CHECKING, Any

from billiard.common import TERM_SIGNAME
from celery import states
from celery.platforms import signals
from celery.worker import control, state

from fleet_runtime.compat.surface import may_replace
from fleet_runtime.transport.broadcast import described

if TYPE_CHECKING:
    from collections.abc import Iterable

    from celery import Celery

logger = logging.getLogger(__name__)

# Ids of one command that are looked up in the loop, as Celery does.
LOOP_LIMIT = 20
# Ids that are looked up with one command.
BATCH_SIZE = 200
# Ids that the log shows.
LOGGED_IDS = 10
# Ids that may wait. The result of a task beyond them is stored when a node fetches its message.
MAX_WAITING = 100_000
# States of a task that is not known to have begun: only such a task becomes revoked.
NOT_BEGUN = frozenset({states.PENDING, states.RECEIVED, states.RETRY, states.REJECTED})


def patch() -> None:
    """Patch Celery's function that revokes tasks, so that many tasks do not block the loop."""
    original = may_replace("celery.worker.control", "_revoke")
    if original is None:
        return

    @wraps(original)
    def _revoke(
        panel: Any, task_ids: set[str], terminate: bool = False, signal: Any = None, **options: Any
    ) -> Any:
        if len(task_ids) <= LOOP_LIMIT:
            return original(panel, task_ids, terminate, signal, **options)
        state.revoked.update(task_ids)
        marker(panel.app).add(task_ids)
        shown = ", ".join(map(str, islice(task_ids, LOGGED_IDS)))
        logger.info("Tasks flagged as revoked: %s and %d more", shown, len(task_ids) - LOGGED_IDS)
        if not terminate:
            return task_ids
        number = signals.signum(signal or TERM_SIGNAME)
        requests = [request for name in task_ids if (request := state.requests.get(name)) is not None]
        for request in requests:
            request.terminate(panel.consumer.pool, signal=number)
        return {"ok": f"terminate: {len(requests)} tasks"} if requests else {"ok": "terminate: tasks unknown"}

    control._revoke = _revoke


class Marker:
    """Stores the state of revoked tasks, in a thread."""

    def __init__(self, app: Celery) -> None:
        """Prepare for an app; `add` starts the thread."""
        self._app = app
        self._waiting: queue.SimpleQueue[tuple[str, ...]] = queue.SimpleQueue()
        self._count = 0
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def add(self, ids: Iterable[str]) -> None:
        """Queue tasks to be stored as revoked, up to MAX_WAITING."""
        with self._lock:
            rest = iter(ids)
            while batch := tuple(islice(rest, BATCH_SIZE)):
                if self._count > MAX_WAITING:
                    logger.warning("More tasks are revoked at once than can be stored: %d wait.", self._count)
                    break
                self._count += len(batch)
                self._waiting.put(batch)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="fleet-revoked", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        """Store the queued tasks."""
        while True:
            batch = self._waiting.get()
            try:
                self.store(batch)
            except Exception as error:
                logger.warning("%d revoked tasks are not stored as such: %s", len(batch), described(error))
            with self._lock:
                self._count -= len(batch)

    def store(self, ids: tuple[str, ...]) -> None:
        """Store tasks as revoked, except those that have begun."""
        backend = self._app.backend
        results = backend.mget([backend.get_key_for_task(task_id) for task_id in ids])
        for task_id, result in zip(ids, results, strict=True):
            status = backend.decode_result(result)["status"] if result else states.PENDING
            if status in NOT_BEGUN:
                backend.mark_as_revoked(task_id, reason="revoked", store_result=True)


@cache
def marker(app: Celery) -> Marker:
    """Return the marker of an app."""
    return Marker(app)
