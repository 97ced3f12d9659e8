# SPDX-License-Identifier: MIT
"""Carries what a node runs over to a new connection, when it has lost the old one.

kombu acknowledges a message through the channel that it came by. When Redis was restarted, that channel is
closed: what the node runs could not be acknowledged, and would stay in Redis as held. Here the messages of
running tasks move on to the new channel, what ended meanwhile is acknowledged there, and the rest is left to
`recovery`, which gives it back.
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
from kombu.transport.redis import Channel
from kombu.utils.json import dumps
from redis.exceptions import ConnectionError as NoConnectionError
from redis.exceptions import ResponseError

from fleet_runtime.compat.surface import may_replace
from fleet_runtime.transport.channel import Channel as FetchingChannel
from fleet_runtime.transport.qos import QoS

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger(__name__)

PAUSE = 1.0  # seconds between two attempts
# Seconds that a node which stops waits for its mailbox, which may handle a command.
MAILBOX_ENDS = 10.0
OTHERWISE = "This node may not survive the loss of Redis."


class HeldQoS(QoS):
    """What kombu knows of the messages that came by a channel, and which it has yet to acknowledge."""

    held: Held

    def append(self, message: Any, delivery_tag: str) -> None:
        """Record a message as held; one that cannot be recorded now is not forgotten.

        It is in no queue any more. kombu would let go of it, and with a Redis that is full, end the node.
        """
        try:
            super().append(message, delivery_tag)
        except ResponseError as error:
            self.held.remember(delivery_tag, message)
            raise NoConnectionError(f"Redis refuses to record what was taken: {error}") from error
        except Exception:
            self.held.remember(delivery_tag, message)
            raise

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge a message; if that cannot be said now, say it by the next channel."""
        if self.held.qos is not self:
            self.held.qos.ack(delivery_tag)
            return
        try:
            super().ack(delivery_tag)
        except Exception as error:
            self.held.settled_late[delivery_tag] = "ack"
            raise as_lost(error) from error

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Reject a message; if that cannot be said now, say it by the next channel."""
        if self.held.qos is not self:
            self.held.qos.reject(delivery_tag, requeue)
            return
        try:
            super().reject(delivery_tag, requeue)
        except Exception as error:
            self.held.settled_late[delivery_tag] = "requeue" if requeue else "ack"
            raise as_lost(error) from error

    def restore_unacked_once(self, stderr: Any = None) -> None:
        """Put back what was not acknowledged, as the channel is closed, unless the node goes on.

        Then kombu would hand out what still runs here. Nor if an error ends the node: a message may be the
        cause, and counts as one that was lost if it is given back as what a dead node held.
        """
        if self.held.crashed or self.held.goes_on() or self.held.qos is not self:
            self._on_collect.cancel()
            return
        super().restore_unacked_once(stderr)


def as_lost(error: Exception) -> Exception:
    """Return what Redis refuses as the loss of the connection, which is what Celery bears."""
    return NoConnectionError(f"Redis refuses: {error}") if isinstance(error, ResponseError) else error


def copied(requests: Any) -> list[Any]:
    """Return what a set of requests has, though other threads may change it meanwhile."""
    while True:
        with suppress(RuntimeError):
            return list(requests)


class Held:
    """What this node has taken from its queues, and not acknowledged.

    Attributes:
        qos: kombu's account of it, of the channel by which it is acknowledged.
        crashed: Whether an error is ending the node.
    """

    qos: Any = None
    crashed = False

    def __init__(self, consumer: Any) -> None:
        """Watch what a consumer takes."""
        self.settled_late: dict[str, str] = {}  # by delivery tag: ack or requeue
        self.unrecorded: dict[str, Any] = {}
        self._consumer = consumer
        self._received: WeakValueDictionary[str, Any] = WeakValueDictionary()

    def goes_on(self) -> bool:
        """Return whether the node is at work, so that a channel that is closed is followed by another one."""
        return bool(self._consumer.blueprint.state == bootsteps.RUN)

    def adopt(self, channel: Any) -> set[str]:
        """Make a channel the one by which messages are acknowledged.

        Returns:
            The delivery tags of what this process runs. Nobody else is to get that.
        """
        if isinstance(lost := getattr(self.qos, "channel", None), FetchingChannel):
            self.settled_late.update(dict.fromkeys(lost.unconfirmed_acks(), "ack"))
        if self._hands_over_for_good():
            signals.task_received.connect(self._receive, weak=False, dispatch_uid="fleet.held")
        qos = channel.qos
        # Not an object of its own: with worker_disable_prefetch, Celery has changed this one.
        qos.__class__ = HeldQoS
        qos.held = self
        self.qos = qos
        running = {request.message.delivery_tag: request for request in self._running()}
        for tag, request in running.items():
            request.message.channel = channel
            qos._quick_append(tag, request.message)  # it counts as reserved
            if request.acknowledged:  # in another thread, just now
                qos._quick_ack(tag)
        self._run_pending()
        self.settle()
        self.record(channel)
        return set(running)

    def remember(self, delivery_tag: str, message: Any) -> None:
        """Remember a message that could not be recorded; what kombu cannot record at all goes another way."""
        if {"exchange", "routing_key"} <= message.delivery_info.keys():
            self.unrecorded[delivery_tag] = message

    def record(self, channel: Any) -> None:
        """Record what was taken from a queue, and could not be recorded; from there it is given back."""
        for tag, message in tuple(self.unrecorded.items()):
            delivery = message.delivery_info
            record = dumps([message._raw, delivery["exchange"], delivery["routing_key"]])
            try:
                with channel.conn_or_acquire() as client, client.pipeline() as pipe:
                    pipe.zadd(channel.unacked_index_key, {tag: time.time()})
                    pipe.hset(channel.unacked_key, tag, record).execute()
            except ResponseError as error:
                raise NoConnectionError(f"Redis refuses to record what was taken: {error}") from error
            self.unrecorded.pop(tag, None)

    def settle(self) -> None:
        """Settle what could not be settled when it ended."""
        for tag, how in tuple(self.settled_late.items()):
            self.settled_late.pop(tag, None)
            if how == "ack":
                self.qos.ack(tag)  # which remembers it, if that fails again
            else:
                self.qos.reject(tag, requeue=True)

    def unstarted(self) -> Iterator[Any]:
        """Yield what waits here for its time or for its turn."""
        running = set(self.active())
        for request in {*copied(state.scheduled_requests), *copied(state.reserved_requests)}:
            if request not in running and not request.acknowledged:
                yield request

    def active(self) -> list[Any]:
        """Return what runs, and is to be acknowledged."""
        return [request for request in copied(state.active_requests) if not request.acknowledged]

    def by_queue(self) -> dict[str, int]:
        """Return how many messages of each queue the node holds: those that run, wait or have an ETA."""
        if self.qos is None:
            return {}
        settled = set(copied(self.qos._dirty))
        held = [one for tag, one in copied(self.qos._delivered.items()) if tag not in settled]
        queues = {queue.routing_key: name for name, queue in self._consumer.app.amqp.queues.items()}
        keys = (message.delivery_info.get("routing_key") for message in held)
        return dict(Counter(queues.get(key, key) for key in keys if key))

    def let_go(self, requests: list[Any]) -> None:
        """Forget what waits here, because it has gone back to its queue."""
        consumer = self._consumer
        for request in requests:
            request._already_revoked = True  # so that Celery drops it, should its turn come
            if request in state.scheduled_requests:
                consumer.timer.cancel(request._eta_timer_entry)
                consumer.qos.decrement_eventually()
                consumer.limited.discard(request)
            self.qos._quick_ack(request.message.delivery_tag)
            state.task_ready(request)

    def _receive(self, request: Any, **_: Any) -> None:
        """Remember a task."""
        self._received[request.message.delivery_tag] = request

    def _running(self) -> list[Any]:
        """Return what runs, or will run whatever happens.

        As the connection is lost, prefork takes back what no process has begun. Other pools run whatever was
        once handed to them.
        """
        requests = set(self.active())
        if self._hands_over_for_good():
            handed = [one for one in copied(self._received.values()) if one._apply_result is not None]
            requests.update(one for one in handed if not one.acknowledged)
        return list(requests)

    def _hands_over_for_good(self) -> bool:
        """Return whether the pool, which has started by now, takes nothing back."""
        return getattr(self._consumer.pool.flush, "__func__", None) is BasePool.flush

    def _run_pending(self) -> None:
        """Let the acknowledgements through that wait for the node's loop, which begins only afterwards."""
        hub = self._consumer.hub
        for callback in hub._pop_ready() if hub else ():
            try:
                callback()
            except Exception:
                logger.exception("What was to be done next has failed: %r", callback)


def mend() -> None:
    """Mend what keeps a node from going on by itself."""
    mend_closed_channels()
    mend_green_pidbox()


def mend_closed_channels() -> None:
    """Let who uses a closed channel see that its connection is lost.

    kombu looks for the address in the connection, which by then is None, and the AttributeError ends the
    node: in 27 of 40 restarts of Redis under load (celery/kombu#582 has the same traceback, with less harm).
    With an error of the connection, Celery logs that the message was not acknowledged, and goes on.
    """
    original = may_replace("kombu.transport.redis:Channel", "_connparams", OTHERWISE)
    if original is None:
        return

    @wraps(original)
    def _connparams(channel: Any, asynchronous: bool = False) -> Any:
        if getattr(channel.connection, "client", None) is None:
            raise NoConnectionError("The channel is closed, because its connection was lost.")
        return original(channel, asynchronous)

    Channel._connparams = _connparams


def mend_green_pidbox() -> None:
    """Let a node with a gevent pool answer `inspect` and `control` again after it has lost Redis.

    There the mailbox has a greenlet and a connection of its own. The greenlet ends with that connection, and
    a new one is started only if the node's other connection is found to be lost as well. It is not while the
    node runs as much as it can, and so waits for no message. (celery/celery#9191 was of the same kind: there,
    the node did not consume either.)

    A node that stops, or that has lost its other connection, waits for that greenlet, without a time limit.
    Here it leaves the greenlet behind if that does not end in time.
    """
    original = may_replace("celery.worker.pidbox:gPidbox", "loop", OTHERWISE)
    on_stop = may_replace("celery.worker.pidbox:gPidbox", "on_stop", OTHERWISE) if original else None
    if original is None or on_stop is None:
        return

    @wraps(on_stop)
    def stop_in_time(pidbox: Any) -> None:
        pidbox.stops = _stops(pidbox) + 1
        shutdown, stopped = pidbox._node_shutdown, pidbox._node_stopped
        if stopped:
            shutdown.set()
            if not stopped.wait(MAILBOX_ENDS):
                logger.warning("The mailbox does not end within %g s, and is left behind.", MAILBOX_ENDS)
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
                # Else the node would go on to run tasks, and hear no command until it is restarted.
                logger.exception("The mailbox has failed, and makes a new connection.")
            time.sleep(PAUSE)
            if _stops(pidbox) != stops or not c.connection:
                return  # stopped, and perhaps started anew

    gPidbox.loop, gPidbox.on_stop = loop, stop_in_time


def _stops(pidbox: Any) -> int:
    """Return how often a mailbox was stopped so far."""
    return int(getattr(pidbox, "stops", 0))
