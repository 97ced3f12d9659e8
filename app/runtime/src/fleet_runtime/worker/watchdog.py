# SPDX-License-Identifier: MIT
"""Notifies systemd that the loop of a node turns, so that systemd restarts a node that hangs.

A thread asks the loop that fetches messages to notify systemd, every quarter of the watchdog time. If the
loop does not, the thread notifies systemd in its place in four cases; otherwise systemd restarts the node:

- The node is starting.
- The node stops, and requeues its messages, which may be tens of thousands.
- The loop may wait for tasks: the main process runs the task of a solo pool, or all greenlets are in use, or
  the node is stopping. This holds as long as one of the tasks is within its time limit.
- The broker does not answer the thread either: the loop may be reconnecting, or storing a result. To kill
  every node would not bring the broker back, and would end tasks that could finish meanwhile.
"""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from celery import bootsteps, signals
from celery.concurrency import solo
from celery.worker import state

from fleet_runtime.compat import older_worker
from fleet_runtime.errors import FleetError
from fleet_runtime.recovery.inflight import snapshot
from fleet_runtime.systemd import Systemd, broker_answers, start_watchdog
from fleet_runtime.transport.tuning import POLL_INTERVAL_S

if TYPE_CHECKING:
    from fleet_runtime.settings import FleetSettings

# Variables by which a task, or a program that it starts, could notify systemd in the name of the node.
SYSTEMD_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
# Seconds until the first turn of the loop, which waits for the child processes and for recovery.
START_TIMEOUT_S = 300.0
# Watchdog times for which a node may have no room although no task is known to run or wait.
LEAK_WATCHDOG_TIMES = 10
# Seconds that a node may take to stop once its tasks have ended: it requeues some 1,500 messages a second.
STOP_TIMEOUT_S = 300.0
# Seconds for the loop to turn once the broker is back: kombu waits up to 30 between two attempts.
RECONNECT_TIMEOUT_S = 60.0
# Seconds between two notifications until the first turn, and once more after it: systemd ignores the watchdog
# time of a process that it does not know yet.
START_INTERVAL_S = 1.0

logger = logging.getLogger(__name__)


class Watchdog(bootsteps.Step):
    """Notifies systemd while the loop of a node turns."""

    def __init__(self, parent: Any, **_: Any) -> None:
        """Enable the watchdog if systemd expects it, and remove systemd's variables from the environment.

        Raises:
            SystemExit: The watchdog time is too short.
        """
        settings: FleetSettings = parent.app.fleet_settings
        seconds = settings.node_watchdog  # systemd's own WATCHDOG_USEC holds during the start
        systemd = Systemd.expecting(seconds)
        self.enabled = systemd is not None
        if systemd is None:
            return
        _require_longer_than_socket_timeout(seconds, settings.socket_timeout)
        _remove_systemd_variables()
        self.worker, self.seconds, self.systemd = parent, seconds, systemd
        self.started = time.monotonic()
        self.last_request = 0.0
        self.last_turn: float | None = None
        self.broker_seen_away: float | None = None
        self.stopping_since: float | None = None
        self.full_since: float | None = None
        self.is_stalled = False
        self.seen: WeakKeyDictionary[Any, float] = WeakKeyDictionary()

    def create(self, parent: Any) -> None:
        """Start the thread, before the pool and the connection exist."""
        start_watchdog(self._run)

    def _run(self) -> None:
        """Ask the loop to turn, and notify systemd in its place where it has a reason not to."""
        while True:
            is_starting = self.last_turn is None
            if self.last_turn is None or self.last_turn < self.last_request:
                self._check()
            consumer = getattr(self.worker, "consumer", None)
            if consumer:
                self.last_request = time.monotonic()
                consumer.call_soon(self._turn, self.last_request)
            time.sleep(START_INTERVAL_S if is_starting else self.seconds / 4)

    def _turn(self, requested_at: float) -> None:
        """Notify systemd that the loop turns. The loop calls this; only the last of several calls counts."""
        if requested_at < self.last_request:
            return
        channel = getattr(self.worker.consumer.task_consumer, "channel", None)
        was_stalled, self.is_stalled = (
            self.is_stalled,
            fetches_nothing(channel, self.seconds, self.worker.consumer),
        )
        if was_stalled and self.is_stalled:  # only the second time: the node may just have got room
            return
        if self._has_leaked(channel, time.monotonic()):
            logger.critical(
                "This node has no room for messages, and has run nothing for %.0f s.",
                LEAK_WATCHDOG_TIMES * self.seconds,
            )
            return
        self.last_turn = time.monotonic()
        self.systemd.notify(f"consuming; {len(state.active_requests)} active")

    def _has_leaked(self, channel: Any, now: float) -> bool:
        """Return whether unknown messages have taken all slots for a long time.

        A strategy of the app may keep messages for a while, as celery-batches does.
        """
        buckets = getattr(self.worker.consumer, "task_buckets", {}).values()
        are_limited = any(bucket and bucket.contents for bucket in buckets)  # tasks wait for a rate limit
        if are_limited or not is_full_without_requests(channel, self.worker.consumer):
            self.full_since = None
            return False
        self.full_since = now if self.full_since is None else self.full_since
        return now > self.full_since + LEAK_WATCHDOG_TIMES * self.seconds

    def _check(self) -> None:
        """Notify systemd in place of a loop that did not turn, or log that systemd will restart the node."""
        reason = self._reason()
        if reason:
            self.systemd.notify(reason)
        else:
            silence = time.monotonic() - (self.last_turn or self.started)
            logger.critical("This node has fetched no messages for %.0f s; systemd will restart it.", silence)

    def _reason(self) -> str:
        """Return the reason for which the loop need not turn now; an empty string without one."""
        now = time.monotonic()
        if self.last_turn is None and now < self.started + START_TIMEOUT_S:
            connected = getattr(getattr(self.worker, "consumer", None), "connection", None)
            return "starting" if connected else "starting; waiting for the broker"
        if self._waits_for_tasks(now):
            return f"busy; {len(state.active_requests)} active"
        if self._may_requeue(now):
            return "stopping"
        if not broker_answers(self.worker.app):
            self.broker_seen_away = time.monotonic()
        if self.broker_seen_away is not None and now < self.broker_seen_away + RECONNECT_TIMEOUT_S:
            return "waiting for the broker"
        return ""

    def _may_requeue(self, now: float) -> bool:
        """Return whether the node stops, and may still be requeuing its messages."""
        if self.worker.blueprint.state not in {bootsteps.CLOSE, bootsteps.TERMINATE}:
            return False
        if self.stopping_since is None:
            self.stopping_since = now
        return now < self.stopping_since + STOP_TIMEOUT_S

    def _waits_for_tasks(self, now: float) -> bool:
        """Return whether the loop may be waiting for tasks of which one is within its time limit.

        The age of a task counts from when it was first seen here, by the monotonic clock.
        """
        running = snapshot(state.active_requests)
        pool = self.worker.pool
        is_full = isinstance(pool, solo.TaskPool) or (
            getattr(pool, "is_green", False) and len(running) >= pool.num_processes
        )
        is_stopping = self.worker.blueprint.state in {bootsteps.CLOSE, bootsteps.TERMINATE}
        ages = [(request, now - self.seen.setdefault(request, now)) for request in running]
        return (is_full or is_stopping) and any(age < self._limit(request) for request, age in ages)

    def _limit(self, request: Any) -> float:
        """Return the time limit of a request in seconds, as Celery chooses it."""
        return float(request.time_limits[0] or request.task.time_limit or self.worker.time_limit)


def fetches_nothing(channel: Any, seconds: float, consumer: Any) -> bool:
    """Return whether a node that has room for messages has not fetched for longer than the watchdog time.

    A fetch that waits for messages ends after some seconds and is repeated, in kombu's transport and in the
    runtime's, so that the last one is never old. A connection whose reply is overdue is dropped.
    """
    sent = getattr(channel, "asked_at", getattr(channel, "_brpop_sent_at", None))  # kombu's has the latter
    if sent is None or not channel.active_queues:
        return False
    if not channel.qos.can_consume() and _has_requests(consumer):
        return False
    return bool(time.monotonic() - sent > POLL_INTERVAL_S + seconds)


def is_full_without_requests(channel: Any, consumer: Any) -> bool:
    """Return whether a node has no room for messages although it has no request."""
    return channel is not None and not channel.qos.can_consume() and not _has_requests(consumer)


def _has_requests(consumer: Any) -> bool:
    """Return whether this node has a request that runs or waits."""
    known = (state.active_requests, state.reserved_requests)
    return any(snapshot(requests) for requests in known) or bool(older_worker.scheduled(consumer))


def _require_longer_than_socket_timeout(seconds: float, timeout: float) -> None:
    """Refuse a watchdog time within which a node may wait for a reply on a dead connection.

    Args:
        seconds: The watchdog time.
        timeout: The socket timeout.
    """
    if seconds * 3 / 4 < timeout:
        reason = FleetError(
            f"celery_worker_watchdog ({seconds:g}) must be at least 4/3 of FLEET_SOCKET_TIMEOUT "
            f"({timeout:g}), or a node that waits for a reply of the broker is killed."
        )
        raise SystemExit(f"celery: {reason}")


def _remove_systemd_variables() -> None:
    """Remove systemd's variables from this process and its children, until it restarts itself (SIGHUP)."""
    removed = {name: os.environ.pop(name) for name in SYSTEMD_VARIABLES if name in os.environ}

    def restore(**_: Any) -> None:
        os.environ.update(removed)

    signals.worker_shutdown.connect(restore, weak=False)
