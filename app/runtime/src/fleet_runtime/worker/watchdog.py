# SPDX-License-Identifier: MIT
"""Tells systemd that a node turns, so that one which hangs is started anew.

What counts is the loop that takes messages: a thread asks it to say so, every quarter of the time that
systemd waits. A loop that does not is given up, with four exceptions, in which the thread speaks for it:

- The node is still starting.
- It stops, and gives back what it holds, which may be tens of thousands of messages.
- It may wait for its tasks: in the main process runs the one task of a solo pool, or there is no room for
  another greenlet, or the node is stopping. That lasts as long as one of them is within its time limit.
- The broker does not answer, neither the thread: the loop may try to reconnect, or to store a result. To
  kill every node would bring no broker back, and would end tasks that could finish meanwhile.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import threading
import time
from typing import Any
from weakref import WeakKeyDictionary

from celery import bootsteps, signals
from celery.concurrency import solo
from celery.worker import state

from fleet_runtime.errors import FleetError
from fleet_runtime.recovery.inflight import copied
from fleet_runtime.settings import FleetSettings
from fleet_runtime.systemd import Systemd, answers
from fleet_runtime.transport.tuning import POLL_INTERVAL_S

# Seconds after which the node's unit wants it killed. systemd's own WATCHDOG_USEC is for the time before.
VARIABLE = "FLEET_NODE_WATCHDOG"
# What a task, or a program that it starts, could speak to systemd with as if it were the node.
SYSTEMD_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
# Seconds until the first turn. It waits for the pool's processes, and for recovery.
START = 300.0
# Times the watchdog's seconds that a node may have no room though nothing is known to run or wait in it.
LEAKED = 10
# Seconds that a node may take to stop, once its tasks have ended: it gives back some 1,500 messages a second.
STOP = 300.0
# Seconds that the loop may still not turn, once the broker is back: kombu waits up to 30 between two tries.
RETURN = 60.0
# Seconds between two answers until the first turn, and once more then: until systemd knows the node's
# process, it takes no time from it, and waits for longer.
FIRST = 1.0

logger = logging.getLogger(__name__)


class Watchdog(bootsteps.Step):  # type: ignore[misc]  # celery ships no types
    """Answers for the node while it turns."""

    def __init__(self, parent: Any, **_: Any) -> None:
        """Look whether systemd waits, and take from tasks the means to answer in the node's stead."""
        address, seconds = os.environ.get("NOTIFY_SOCKET", ""), float(os.environ.get(VARIABLE) or 0)
        self.enabled = bool(address and seconds)
        if not self.enabled:
            return
        _require_patience(seconds)
        _leave_no_variables()
        self.worker, self.seconds = parent, seconds
        self.systemd = Systemd(address, seconds)
        self.born = time.monotonic()
        self.asked = 0.0
        self.last_turn: float | None = None
        self.broker_seen_away: float | None = None
        self.stopping_since: float | None = None
        self.full_since: float | None = None
        self.is_deaf = False
        self.seen: WeakKeyDictionary[Any, float] = WeakKeyDictionary()

    def create(self, parent: Any) -> None:
        """Begin to answer, before the pool and the connection are there."""
        if not faulthandler.is_enabled():
            faulthandler.enable(2)  # systemd ends what hangs with SIGABRT: so the journal has where it hung
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    def _run(self) -> None:
        """Ask the loop to turn, and answer for it where it is excused."""
        while True:
            is_new = self.last_turn is None
            if self.last_turn is None or self.last_turn < self.asked:
                self._look()
            consumer = getattr(self.worker, "consumer", None)
            if consumer:
                self.asked = time.monotonic()
                consumer.call_soon(self._turn, self.asked)
            time.sleep(FIRST if is_new else self.seconds / 4)

    def _turn(self, asked: float) -> None:
        """Say that the loop turns; the loop calls this, and once for all that it was asked meanwhile."""
        if asked < self.asked:
            return
        channel = getattr(self.worker.consumer.task_consumer, "channel", None)
        was_deaf, self.is_deaf = self.is_deaf, is_deaf(channel, self.seconds)
        if was_deaf and self.is_deaf:  # once, it may just have got room
            return
        if self._has_leaked(channel, time.monotonic()):
            logger.critical(
                "This node has no room for messages, and has run nothing for %.0f s.", LEAKED * self.seconds
            )
            return
        self.last_turn = time.monotonic()
        self.systemd.answer(f"consuming; {len(state.active_requests)} active")

    def _has_leaked(self, channel: Any, now: float) -> bool:
        """Return whether all places have been taken for long by messages of which nothing is known here.

        A strategy of the app's own may keep messages for a while, as celery-batches does.
        """
        buckets = getattr(self.worker.consumer, "task_buckets", {}).values()
        waits = any(bucket and bucket.contents for bucket in buckets)  # for its rate limit
        if waits or not is_full_of_nothing(channel):
            self.full_since = None
            return False
        self.full_since = now if self.full_since is None else self.full_since
        return now > self.full_since + LEAKED * self.seconds

    def _look(self) -> None:
        """Answer for a loop that did not turn, or leave it to its fate."""
        excuse = self._excuse()
        if excuse:
            self.systemd.answer(excuse)
        else:
            silence = time.monotonic() - (self.last_turn or self.born)
            logger.critical(
                "This node has taken no messages for %.0f s; systemd will start it anew.", silence
            )

    def _excuse(self) -> str:
        """Return why the loop need not turn now; nothing if it should."""
        now = time.monotonic()
        if self.last_turn is None and now < self.born + START:
            connected = getattr(getattr(self.worker, "consumer", None), "connection", None)
            return "starting" if connected else "starting; waiting for the broker"
        if self._waits_for_tasks(now):
            return f"busy; {len(state.active_requests)} active"
        if self._gives_back(now):
            return "stopping"
        if not answers(self.worker.app):
            self.broker_seen_away = time.monotonic()
        if self.broker_seen_away is not None and now < self.broker_seen_away + RETURN:
            return "waiting for the broker"
        return ""

    def _gives_back(self, now: float) -> bool:
        """Return whether the node stops, and may still give back what it holds: that can be much."""
        if self.worker.blueprint.state not in {bootsteps.CLOSE, bootsteps.TERMINATE}:
            return False
        if self.stopping_since is None:
            self.stopping_since = now
        return now < self.stopping_since + STOP

    def _waits_for_tasks(self, now: float) -> bool:
        """Return whether the loop may wait for tasks, and one of them may still take its time.

        Their time is counted from when they were first seen here, as no change of the clock can alter it.
        """
        running = copied(state.active_requests)
        pool = self.worker.pool
        is_full = isinstance(pool, solo.TaskPool) or (
            getattr(pool, "is_green", False) and len(running) >= pool.num_processes
        )
        is_stopping = self.worker.blueprint.state in {bootsteps.CLOSE, bootsteps.TERMINATE}
        ages = [(request, now - self.seen.setdefault(request, now)) for request in running]
        return (is_full or is_stopping) and any(age < self._limit(request) for request, age in ages)

    def _limit(self, request: Any) -> float:
        """Return for how long a task may run, as Celery decides it."""
        return float(request.time_limits[0] or request.task.time_limit or self.worker.time_limit)


def is_deaf(channel: Any, seconds: float) -> bool:
    """Return whether a node that has room for messages has not asked for any.

    What waits for a message, in kombu's transport or in the runtime's, ends after some seconds and begins
    anew, so that the last time is never old. A connection on which the answer is overdue is dropped.
    """
    sent = getattr(channel, "asked_at", getattr(channel, "_brpop_sent_at", None))  # kombu's has the latter
    if sent is None or not channel.active_queues:
        return False
    if not channel.qos.can_consume() and _has_requests():
        return False
    return bool(time.monotonic() - sent > POLL_INTERVAL_S + seconds)


def is_full_of_nothing(channel: Any) -> bool:
    """Return whether a node has no room for messages, and neither runs nor keeps a task."""
    return channel is not None and not channel.qos.can_consume() and not _has_requests()


def _has_requests() -> bool:
    """Return whether this node runs a task, or has one that waits."""
    taken = (state.active_requests, state.reserved_requests, state.scheduled_requests)
    return any(copied(requests) for requests in taken)


def _require_patience(seconds: float) -> None:
    """Refuse a time in which a node may rightly wait for a connection that died."""
    timeout = FleetSettings.from_environment().socket_timeout
    if seconds * 3 / 4 < timeout:
        reason = FleetError(
            f"celery_worker_watchdog ({seconds:g}) must be at least 4/3 of FLEET_SOCKET_TIMEOUT "
            f"({timeout:g}), or a node that waits for an answer of the broker is killed."
        )
        raise SystemExit(f"celery: {reason}")


def _leave_no_variables() -> None:
    """Take systemd's variables from this process and its children, until it starts itself anew (SIGHUP)."""
    taken = {name: os.environ.pop(name) for name in SYSTEMD_VARIABLES if name in os.environ}

    def give_back(**_: Any) -> None:
        os.environ.update(taken)

    signals.worker_shutdown.connect(give_back, weak=False)
