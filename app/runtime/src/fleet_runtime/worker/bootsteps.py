# SPDX-License-Identifier: MIT
"""Boot steps that requeue the messages of a dead node within seconds.

With kombu's Redis transport, one hash has the unacknowledged messages of all nodes, and they are redelivered
after the visibility timeout. Here each node has its own hash, and a lease that it renews. The messages in the
hash are requeued when the node starts again, or when its lease has ended, by the node that notices first.
"""

from __future__ import annotations

import atexit
import logging
import os
import socket
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from celery import bootsteps
from celery.concurrency import solo
from celery.worker import state
from kombu.transport.redis import PRIORITY_STEPS

from fleet_runtime.bootstrap.startup_checks import is_graph
from fleet_runtime.broker import keys
from fleet_runtime.compat.surface import may_replace
from fleet_runtime.dead_letters.store import Retention
from fleet_runtime.errors import FleetError
from fleet_runtime.inspect.queues import consumed
from fleet_runtime.recovery import history, inflight
from fleet_runtime.recovery.connections import connect, declare_exchanges
from fleet_runtime.recovery.inflight import InFlight, snapshot
from fleet_runtime.recovery.inflight_standard import StandardInFlight
from fleet_runtime.recovery.lease import LeaseHeartbeat
from fleet_runtime.recovery.preconditions import require_name, require_rights
from fleet_runtime.recovery.requeue import forget, restore_unacked
from fleet_runtime.transport import broadcast
from fleet_runtime.transport.channel import FETCH_LIMIT_OPTION
from fleet_runtime.worker import mailbox, revoke_command, task_end
from fleet_runtime.worker.consumer import register_commands
from fleet_runtime.worker.context import WorkerContext
from fleet_runtime.worker.request import retry_postponed

if TYPE_CHECKING:
    from celery import Celery

    from fleet_runtime.settings import FleetSettings

logger = logging.getLogger(__name__)

# Seconds to wait for each reply of Redis as the process ends.
LEAVE_TIMEOUT_S = 1.0
# Reconnects within this time are counted.
RECONNECT_WINDOW_S = 600.0
# Seconds beyond its time limit after which a task counts as overdue: a pool needs some to end it.
OVERDUE_GRACE_S = 60.0


class NodeSetup(bootsteps.Step):
    """Gives a node its own keys, applies patches, and refuses a node that could not do its work."""

    requires = ("fleet_runtime.bootstrap.startup_checks:StartupChecks",)

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        """Set up the worker before it connects."""
        settings: FleetSettings = worker.app.fleet_settings
        node = settings.node or worker.hostname
        worker.fleet = WorkerContext(node, settings)
        if is_graph():
            return
        options = worker.app.conf.broker_transport_options
        options.update(own_keys(node), node=node, dead_letter_retention=Retention.of(settings))
        if issubclass(worker.pool_cls, solo.TaskPool):
            # It runs each message as it is delivered: others fetched with it would wait, unacknowledged.
            options[FETCH_LIMIT_OPTION] = 1
        try:
            if settings.is_full:
                inflight.patch()
                task_end.patch(worker)
                revoke_command.patch()
                broadcast.patch(may_replace)
                register_commands()
            # The name first: the check of rights writes under it.
            require_name(worker.app, node, settings.socket_timeout)
            require_rights(worker.app, node, settings.socket_timeout)
        except FleetError as error:
            raise SystemExit(f"celery: {error}") from None


class Recovery(bootsteps.StartStopStep):
    """Requeues messages that a node holds and does not run, before the node consumes."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        """Create the heartbeat of the lease, which `start` starts."""
        super().__init__(consumer, **kwargs)
        self._context = context = WorkerContext.of(consumer)
        self.node, self._settings = context.node, context.settings
        self._consumer = consumer
        self._started, self._started_monotonic = time.time(), time.monotonic()
        self._in_flight = context.in_flight = (
            InFlight if context.settings.atomic_fetch else StandardInFlight
        )(consumer)
        self._is_reconnect = False
        self._reconnects: deque[float] = deque(maxlen=100)
        self._heartbeat = LeaseHeartbeat(
            consumer.app, self.node, self._settings, self._facts, self._on_expired, self._on_tick
        )
        consumer.announce = self._announce

    def start(self, consumer: Any) -> None:
        """Prepare a new connection for consuming."""
        channel = consumer.connection.default_channel
        if self._is_reconnect:
            # Without a lease, no node would requeue the messages of this one if it dies before the next tick.
            self._heartbeat.renew(channel)
        else:
            self._heartbeat.tick(channel)
        keep = self._in_flight.adopt(channel) | self._context.postponed.keys()
        self._set_node_count(channel)
        declare_exchanges(consumer.app, channel)
        # A node that has only reconnected has not crashed: its prefetched messages are not marked.
        died = not self._is_reconnect
        moved = restore_unacked(
            channel, self.node, self.node, self._settings, keep=keep, if_dead=False, died=died
        )
        if moved:
            logger.warning("Requeued what this node held before it %s: %d messages.",
                           "was cut off" if self._is_reconnect else "started", moved)  # fmt: skip
        if self._is_reconnect:
            self._reconnects.append(time.time())
        else:
            self._is_reconnect = True
            with channel.conn_or_acquire() as client:
                history.record_start(client, self.node)
            self._heartbeat.start()
            atexit.register(self._leave)

    def stop(self, consumer: Any) -> None:
        """Prepare for the end of the consumer, or of its connection."""
        self._in_flight.on_stop()

    terminate = stop

    def _facts(self) -> dict[str, Any]:
        """Return what this node publishes about itself, under the names that `fleet status` reads."""
        consumer, self_test = self._consumer, self._context.self_test
        pool = type(consumer.pool).__module__.rpartition(".")[2]
        return {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "pool": "threads" if pool == "thread" else pool,
            "concurrency": _concurrency(consumer.pool),
            "running": len(state.active_requests),
            "held": self._in_flight.by_queue(),
            "overdue": sum(self._is_overdue(request) for request in snapshot(state.active_requests)),
            "reconnects": sum(at > time.time() - RECONNECT_WINDOW_S for at in self._reconnects),
            "silence": mailbox.silence(consumer, self._started_monotonic),
            "queues": self._queues(),
            "exchanges": _exchanges(consumer.app),
            "priority_steps": list(
                consumer.app.conf.broker_transport_options.get("priority_steps") or PRIORITY_STEPS
            ),
            "release": self._settings.release,
            "level": self._settings.level,
            "started": self._started,
            "proved": self_test.passed_at,
            "unproved": self_test.error,
            "excused": self_test.skipped,
            "refused": consumer.refused,
            "dropped": dict(broadcast.dropped.counts),
        }

    def _is_overdue(self, request: Any) -> bool:
        """Return whether a task exceeds its time limit: a pool without child processes cannot end it."""
        limit = request.time_limits[0] or request.task.time_limit or self._consumer.controller.time_limit
        return bool(
            limit and request.time_start and time.time() > request.time_start + limit + OVERDUE_GRACE_S
        )

    def _queues(self) -> list[str]:
        """Return the queues that this node consumes, now or after it has reconnected."""
        if self._context.self_test.passed_at is None:
            return []
        queues = consumed(self._consumer.app, self._consumer.hostname).values()
        return sorted(queues - self._consumer.refused.keys())

    def _announce(self) -> None:
        """Publish the facts of this node at once."""
        self._heartbeat.renew(self._consumer.connection.default_channel)

    def _on_tick(self, channel: Any) -> None:
        """Retry dead letters and acknowledgements that Redis refused, on a connection that is not lost."""
        self._set_node_count(getattr(self._consumer.task_consumer, "channel", None))
        retry_postponed(channel, self._context)
        if self._in_flight.unsettled and self._consumer.connection:
            self._consumer.call_soon(self._in_flight.settle)

    def _on_expired(self, client: Any) -> None:
        """Drop requests whose messages were requeued by another node, and log the tasks that run twice."""
        lost = [request for request in self._in_flight.unstarted() if not self._holds(client, request)]
        if lost:
            self._consumer.call_soon(self._in_flight.drop, lost)
        requeued = [request for request in self._in_flight.active() if not self._holds(client, request)]
        twice = [str(request) for request in requeued if not request.acknowledged]  # or it has just ended
        logger.warning(
            "The lease had ended: this node was cut off from Redis, or stood still, for more than %g s. "
            "Tasks that go on here and were requeued, too: %s. Tasks that had not begun here, and were "
            "requeued: %d.", self._settings.lease, ", ".join(twice) or "none", len(lost)
        )  # fmt: skip

    def _set_node_count(self, channel: Any) -> None:
        """Tell a channel of the consumer how many nodes there are, by which it backs off."""
        if channel is not None:
            channel.nodes = self._heartbeat.nodes

    def _holds(self, client: Any, request: Any) -> bool:
        """Return whether this node still holds the message of a request."""
        return bool(client.hexists(keys.unacked(self.node), request.message.delivery_tag))

    def _leave(self) -> None:
        """Delete the keys of this node as its process ends; with unacknowledged messages, the lease stays."""
        self._heartbeat.stop()
        try:
            with connect(self._consumer.app, LEAVE_TIMEOUT_S) as connection:
                channel = connection.default_channel
                self._in_flight.record(channel)
                with channel.conn_or_acquire() as client:
                    forget(client, self.node, if_dead=False)
                    history.record_stop(client, self.node)
        except Exception as error:
            logger.warning("The lease cannot be given up, and ends by itself: %s", error)


def own_keys(node: str) -> dict[str, str]:
    """Return the transport options that give a node its own keys for unacknowledged messages."""
    return {
        "unacked_key": keys.unacked(node),
        "unacked_index_key": keys.unacked_index(node),
        "unacked_mutex_key": keys.unacked_mutex(node),
    }


def _concurrency(pool: Any) -> int:
    """Return how many tasks a pool runs at a time; 0 for a prefork pool that has stopped (celery 5.7)."""
    try:
        return int(pool.num_processes)
    except AttributeError:
        return 0


def _exchanges(app: Celery) -> dict[str, str]:
    """Return the types of the app's exchanges that are not direct, for `requeue`, which loads no app."""
    exchanges = [queue.exchange for queue in app.amqp.queues.values() if queue.exchange is not None]
    return {each.name: each.type for each in exchanges if each.name and each.type != "direct"}
