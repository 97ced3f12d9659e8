# SPDX-License-Identifier: MIT
"""Keeps a command that revokes many tasks from holding a node's loop up.

Celery asks the result backend for each id, one after another, in the loop that takes messages (celery 5.7,
worker.control._revoke): with some ten thousand ids, each node of the fleet stands still until its watchdog
ends it. Here the ids are flagged at once, and a thread stores what is to be stored, many at a time.
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

FEW = 20  # ids of one command that are looked up at once, as Celery does it
STEP = 200  # ids that are looked up together
SHOWN = 10  # ids in the log
MOST = 100_000  # ids that wait; the result of a task beyond them is stored when a node takes its message
OTHERWISE = "A command that revokes many tasks may hold this node up."
# States in which a task has not begun anywhere, as far as is known: only these become revoked.
UNBEGUN = frozenset({states.PENDING, states.RECEIVED, states.RETRY, states.REJECTED})


def mend() -> None:
    """Let a node flag many tasks as revoked without waiting."""
    original = may_replace("celery.worker.control", "_revoke", OTHERWISE)
    if original is None:
        return

    @wraps(original)
    def _revoke(
        panel: Any, task_ids: set[str], terminate: bool = False, signal: Any = None, **options: Any
    ) -> Any:
        if len(task_ids) <= FEW:
            return original(panel, task_ids, terminate, signal, **options)
        state.revoked.update(task_ids)
        marker(panel.app).add(task_ids)
        shown = ", ".join(map(str, islice(task_ids, SHOWN)))
        logger.info("Tasks flagged as revoked: %s and %d more", shown, len(task_ids) - SHOWN)
        if not terminate:
            return task_ids
        number = signals.signum(signal or TERM_SIGNAME)
        found = [request for name in task_ids if (request := state.requests.get(name)) is not None]
        for request in found:
            request.terminate(panel.consumer.pool, signal=number)
        return {"ok": f"terminate: {len(found)} tasks"} if found else {"ok": "terminate: tasks unknown"}

    control._revoke = _revoke


class Marker:
    """Stores, in a thread, that tasks are revoked."""

    def __init__(self, app: Celery) -> None:
        """Prepare."""
        self._app = app
        self._waiting: queue.SimpleQueue[tuple[str, ...]] = queue.SimpleQueue()
        self._count = 0
        self._one_at_a_time = threading.Lock()
        self._thread: threading.Thread | None = None

    def add(self, ids: Iterable[str]) -> None:
        """Let some tasks be stored as revoked; beyond a bound they are left to who takes their messages."""
        with self._one_at_a_time:
            rest = iter(ids)
            while step := tuple(islice(rest, STEP)):
                if self._count > MOST:
                    logger.warning("More tasks are revoked at once than can be stored: %d wait.", self._count)
                    break
                self._count += len(step)
                self._waiting.put(step)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="fleet-revoked", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        """Store what waits."""
        while True:
            step = self._waiting.get()
            try:
                self.store(step)
            except Exception as error:
                logger.warning("%d revoked tasks are not stored as such: %s", len(step), described(error))
            with self._one_at_a_time:
                self._count -= len(step)

    def store(self, ids: tuple[str, ...]) -> None:
        """Store that tasks are revoked which have not begun; one that has a state keeps it."""
        backend = self._app.backend
        found = backend.mget([backend.get_key_for_task(name) for name in ids])
        for name, stored in zip(ids, found, strict=True):
            known = backend.decode_result(stored)["status"] if stored else states.PENDING
            if known in UNBEGUN:
                backend.mark_as_revoked(name, reason="revoked", store_result=True)


@cache
def marker(app: Celery) -> Marker:
    """Return what stores revoked tasks of an app."""
    return Marker(app)
