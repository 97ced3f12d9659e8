# SPDX-License-Identifier: MIT
"""Carries the in-flight messages of a node over to a new connection, when it has lost the old one.

kombu acknowledges a message through the channel that delivered it. After a restart of Redis that channel is
closed: the messages of running tasks could not be acknowledged, and would stay unacknowledged in Redis. Here
the messages of running tasks move to the new channel, those of tasks that ended meanwhile are acknowledged
there, and the `Recovery` step requeues the rest.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from contextlib import suppress
from functools import wraps
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from celery import bootsteps, signals
from celery.concurrency.base import BasePool
from celery.worker import state
from celery.worker.pidbox import gPidbox
from kombu.transport import virtual
from kombu.transport.redis import Channel
from kombu.utils.json import dumps
from redis.exceptions import ConnectionError as NoConnectionError
from redis.exceptions import ResponseError

from fleet_runtime.compat import older_worker
from fleet_runtime.compat.surface import may_replace
from fleet_runtime.transport.qos import QoS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

logger = logging.getLogger(__name__)

# Seconds between two attempts of the mailbox to connect.
MAILBOX_RETRY_S = 1.0
# Seconds that a node which stops waits for its mailbox, which may be handling a command.
MAILBOX_STOP_TIMEOUT_S = 10.0


class InFlightQoS(QoS):
    """The QoS of a node's channel: it loses no message and no acknowledgement with the connection.

    Attributes:
        in_flight: The messages of the node, once its consumer has adopted the channel. Until then, and on
            other channels, this is a plain `QoS`.
    """

    in_flight: InFlight | None = None

    def append(self, message: Any, delivery_tag: str) -> None:
        """Record a message as unacknowledged; if that fails, remember it for the next connection.

        The message is in no queue any more. kombu would drop it, and end the node if Redis is full.
        """
        try:
            super().append(message, delivery_tag)
        except Exception as error:
            if self.in_flight is None:
                raise
            self.in_flight.remember(delivery_tag, message)
            raise as_connection_error(error) from error

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge a message; if that fails, remember it for the next connection."""
        in_flight = self.in_flight
        if in_flight is not None and in_flight.qos is not self:
            in_flight.qos.ack(delivery_tag)
            return
        try:
            super().ack(delivery_tag)
        except Exception as error:
            if in_flight is None:
                raise
            in_flight.unsettled[delivery_tag] = "ack"
            raise as_connection_error(error) from error

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Reject a message; if that fails, remember it for the next connection."""
        in_flight = self.in_flight
        if in_flight is not None and in_flight.qos is not self:
            in_flight.qos.reject(delivery_tag, requeue)
            return
        try:
            super().reject(delivery_tag, requeue)
        except Exception as error:
            if in_flight is None:
                raise
            in_flight.unsettled[delivery_tag] = "requeue" if requeue else "ack"
            raise as_connection_error(error) from error

    def restore_unacked_once(self, stderr: Any = None) -> None:
        """Requeue unacknowledged messages when the channel is closed, but only if the node stops.

        If the node goes on, kombu would requeue what still runs here. If an error ends the node, a message
        may be the cause: it is requeued as a message of a dead node, so that the crash is counted.
        """
        in_flight = self.in_flight
        if in_flight is not None and (in_flight.crashed or in_flight.goes_on() or in_flight.qos is not self):
            self._on_collect.cancel()
            return
        super().restore_unacked_once(stderr)


def as_connection_error(error: Exception) -> Exception:
    """Return an error reply of Redis as a lost connection, which Celery survives; else the error itself."""
    return NoConnectionError(f"Redis refuses: {error}") if isinstance(error, ResponseError) else error


def snapshot(requests: Any) -> list[Any]:
    """Return the elements of a set that other threads may change at the same time."""
    while True:
        with suppress(RuntimeError):
            return list(requests)


class InFlight:
    """The messages that this node has fetched and not acknowledged.

    Attributes:
        qos: The QoS of the channel through which messages are acknowledged.
        crashed: Whether an error is ending the node.
        unsettled: What could not be sent to Redis, by delivery tag: `ack` or `requeue` at the level `full`.
        unrecorded: Messages that could not be recorded as unacknowledged, by delivery tag.
    """

    qos: Any = None
    crashed = False

    def __init__(self, consumer: Any) -> None:
        """Track the messages of a consumer."""
        self.unsettled: dict[str, Any] = {}
        self.unrecorded: dict[str, Any] = {}
        self._consumer = consumer
        self._received: WeakValueDictionary[str, Any] = WeakValueDictionary()

    def goes_on(self) -> bool:
        """Return whether the node is running, so that it replaces a closed channel by a new one."""
        return bool(self._consumer.blueprint.state == bootsteps.RUN)

    def adopt(self, channel: Any) -> set[str]:
        """Acknowledge messages through this channel from now on.

        Returns:
            The delivery tags of messages that this process runs, which must not be requeued.
        """
        if self.qos is not None:  # of the connection that was lost
            self.unsettled.update(dict.fromkeys(self.qos.channel.unconfirmed_acks(), "ack"))
        self._track_received()
        self.qos = qos = channel.qos
        qos.in_flight = self
        running = {request.message.delivery_tag: request for request in self._running()}
        for tag, request in running.items():
            request.message.channel = channel
            qos._quick_append(tag, request.message)  # it counts as prefetched
            if request.acknowledged:  # in another thread, just now
                qos._quick_ack(tag)
        self._run_pending()
        self.settle()
        self.record(channel)
        return set(running)

    def settling(self, strategy: Callable[..., Any]) -> Callable[..., Any]:
        """Return a strategy whose requests are settled here; it is the same, since the QoS does that."""
        return strategy

    def on_stop(self) -> None:
        """Prepare for the end of the consumer or of its connection; here the QoS asks what happens."""

    def remember(self, delivery_tag: str, message: Any) -> None:
        """Remember a message that could not be recorded. A malformed one becomes a dead letter elsewhere."""
        if {"exchange", "routing_key"} <= message.delivery_info.keys():
            self.unrecorded[delivery_tag] = message

    def record(self, channel: Any) -> None:
        """Record the remembered messages as unacknowledged, so that they are requeued from there.

        Raises:
            NoConnectionError: Redis refuses, or is away.
        """
        for tag, message in tuple(self.unrecorded.items()):
            delivery = message.delivery_info
            record = dumps([message._raw, delivery["exchange"], delivery["routing_key"]])
            try:
                with channel.conn_or_acquire() as client, client.pipeline() as pipe:
                    pipe.zadd(channel.unacked_index_key, {tag: time.time()})
                    pipe.hset(channel.unacked_key, tag, record).execute()
            except ResponseError as error:
                raise NoConnectionError(f"Redis refuses to record a fetched message: {error}") from error
            self.unrecorded.pop(tag, None)

    def settle(self) -> None:
        """Acknowledge or requeue what could not be settled on the connection before."""
        for tag, how in tuple(self.unsettled.items()):
            self.unsettled.pop(tag, None)
            if how == "ack":
                self.qos.ack(tag)  # which remembers it, if that fails again
            else:
                self.qos.reject(tag, requeue=True)

    def unstarted(self) -> Iterator[Any]:
        """Yield the unacknowledged requests that have not begun: prefetched, or waiting for their ETA."""
        running = set(self.active())
        for request in {*older_worker.scheduled(self._consumer), *snapshot(state.reserved_requests)}:
            if request not in running and not request.acknowledged:
                yield request

    def active(self) -> list[Any]:
        """Return the unacknowledged requests that run."""
        return [request for request in snapshot(state.active_requests) if not request.acknowledged]

    def unacked(self) -> list[Any]:
        """Return the unacknowledged messages of this node: of tasks that run, wait, or have an ETA."""
        if self.qos is None:
            return []
        settled = set(snapshot(self.qos._dirty))
        return [message for tag, message in snapshot(self.qos._delivered.items()) if tag not in settled]

    def by_queue(self) -> dict[str, int]:
        """Return how many unacknowledged messages of each queue the node has."""
        queues = {queue.routing_key: name for name, queue in self._consumer.app.amqp.queues.items()}
        keys = (message.delivery_info.get("routing_key") for message in self.unacked())
        return dict(Counter(queues.get(key, key) for key in keys if key))

    def drop(self, requests: list[Any]) -> None:
        """Forget requests that have not begun here, because their messages were requeued."""
        consumer = self._consumer
        scheduled = older_worker.scheduled(consumer)
        for request in requests:
            request._already_revoked = True  # so that Celery does not run it
            if request in scheduled:
                consumer.timer.cancel(scheduled[request])
                consumer.qos.decrement_eventually()
                consumer.limited.discard(request)
            virtual.QoS.ack(self.qos, request.message.delivery_tag)
            state.task_ready(request)

    def _track_received(self) -> None:
        """Remember the requests that the node receives, if its pool runs all of them."""
        if self._pool_runs_all():
            signals.task_received.connect(self._receive, weak=False, dispatch_uid="fleet.held")

    def _receive(self, request: Any, **_: Any) -> None:
        """Remember a request, by the signal `task_received`."""
        self._received[request.message.delivery_tag] = request

    def _running(self) -> list[Any]:
        """Return the unacknowledged requests that run, or that will run in any case.

        When the connection is lost, a prefork pool takes back what no child process has begun. Other pools
        run all requests that they have.
        """
        requests = set(self.active())
        if self._pool_runs_all():
            given = [
                request for request in snapshot(self._received.values()) if request._apply_result is not None
            ]
            requests.update(request for request in given if not request.acknowledged)
        return list(requests)

    def _pool_runs_all(self) -> bool:
        """Return whether the pool, which has started by now, runs all requests that it has."""
        return getattr(self._consumer.pool.flush, "__func__", None) is BasePool.flush

    def _run_pending(self) -> None:
        """Run the callbacks that wait for the loop of the node, such as acknowledgements."""
        hub = self._consumer.hub
        for callback in hub._pop_ready() if hub else ():
            try:
                callback()
            except Exception:
                logger.exception("A pending callback has failed: %r", callback)


def patch() -> None:
    """Patch what keeps a node from surviving the loss of its connection."""
    patch_closed_channels()
    patch_green_pidbox()


def patch_closed_channels() -> None:
    """Raise a connection error when a closed channel is used.

    kombu reads the address from the connection, which is None by then. The AttributeError ended the node in
    27 of 40 restarts of Redis under load (celery/kombu#582 has the same traceback, with less harm). After a
    connection error, Celery logs that the message was not acknowledged, and goes on.
    """
    original = may_replace("kombu.transport.redis:Channel", "_connparams")
    if original is None:
        return

    @wraps(original)
    def _connparams(channel: Any, asynchronous: bool = False) -> Any:
        if getattr(channel.connection, "client", None) is None:
            raise NoConnectionError("The channel is closed, because its connection was lost.")
        return original(channel, asynchronous)

    Channel._connparams = _connparams


def patch_green_pidbox() -> None:
    """Let a node with a gevent pool answer `inspect` and `control` again after it has lost Redis.

    With gevent, the mailbox has its own greenlet and connection. The greenlet ends with that connection, and
    Celery starts a new one only if the connection of the consumer is found to be lost as well. It is not
    found while the node runs as much as it can, and fetches nothing. (celery/celery#9191 is similar: there,
    the node did not consume either.)

    A node that stops, or that has lost its other connection, waits for the greenlet, without a time limit.
    Here it waits MAILBOX_STOP_TIMEOUT_S at most.
    """
    original = may_replace("celery.worker.pidbox:gPidbox", "loop")
    on_stop = may_replace("celery.worker.pidbox:gPidbox", "on_stop") if original else None
    if original is None or on_stop is None:
        return

    @wraps(on_stop)
    def stop_in_time(pidbox: Any) -> None:
        pidbox.stops = _stops(pidbox) + 1
        shutdown, stopped = pidbox._node_shutdown, pidbox._node_stopped
        if stopped:
            shutdown.set()
            if not stopped.wait(MAILBOX_STOP_TIMEOUT_S):
                logger.warning(
                    "The mailbox does not end within %g s, and is left behind.", MAILBOX_STOP_TIMEOUT_S
                )
            pidbox._node_shutdown = pidbox._node_stopped = None

    @wraps(original)
    def loop(pidbox: Any, c: Any) -> None:
        stops = _stops(pidbox)
        while True:
            try:
                original(pidbox, c)
                return
            except (*c.connection_errors, *c.channel_errors) as error:
                logger.warning("The mailbox has lost its connection, and makes a new one: %s", error)
            except Exception:
                # Without this, the node would run tasks, and hear no command until it is restarted.
                logger.exception("The mailbox has failed, and makes a new connection.")
            time.sleep(MAILBOX_RETRY_S)
            if _stops(pidbox) != stops or not c.connection:
                return  # stopped, and perhaps started again

    gPidbox.loop, gPidbox.on_stop = loop, stop_in_time


def _stops(pidbox: Any) -> int:
    """Return how often a mailbox has been stopped."""
    return int(getattr(pidbox, "stops", 0))
