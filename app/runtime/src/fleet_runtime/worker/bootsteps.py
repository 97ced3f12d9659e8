# SPDX-License-Identifier: MIT
"""Gives back what a dead node held, within seconds.

With kombu's Redis transport, what a node has reserved is in one hash for all, and comes back after the
visibility timeout, whoever died. Here each node has a hash of its own and a lease, which it renews. What is
in the hash goes back to its queues (`give_back`) when the node starts again, or when its lease has ended, by
whichever node notices first. Redis's clock counts, and not those of the hosts.
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

from fleet_runtime.bootstrap.startup_checks import is_drawn
from fleet_runtime.broker import keys
from fleet_runtime.errors import FleetError
from fleet_runtime.inspect.queues import consumed
from fleet_runtime.recovery import history, inflight
from fleet_runtime.recovery.connections import connect, declare_exchanges
from fleet_runtime.recovery.inflight import Held, copied
from fleet_runtime.recovery.lease import Pulse
from fleet_runtime.recovery.preconditions import require_name, require_rights
from fleet_runtime.recovery.requeue import forget, give_back
from fleet_runtime.settings import FleetSettings
from fleet_runtime.transport import broadcast
from fleet_runtime.transport.channel import FETCH_LIMIT_OPTION
from fleet_runtime.worker import mailbox, readiness, revoke_command, task_end
from fleet_runtime.worker.request import bury_postponed, postponed

if TYPE_CHECKING:
    from celery import Celery

logger = logging.getLogger(__name__)

SHORT = 1.0  # seconds until the next try, after one that failed
LATELY = 600.0  # seconds in which reconnects are counted
OVERDUE = 60.0  # seconds beyond its limit in which a task may still be ended


class Ownership(bootsteps.Step):  # type: ignore[misc]  # celery ships no types
    """Gives a node keys of its own, and refuses one that Redis would keep from its work."""

    requires = ("fleet_runtime.bootstrap.startup_checks:Guard",)

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        """Look at the worker, before it connects."""
        node = os.environ.setdefault("FLEET_NODE", worker.hostname)
        if is_drawn():
            return
        options = worker.app.conf.broker_transport_options
        options.update(own_keys(node))
        if issubclass(worker.pool_cls, solo.TaskPool):
            # It runs each as it is delivered, and what came with it would wait, and not be acknowledged.
            options[FETCH_LIMIT_OPTION] = 1
        inflight.mend()
        task_end.mend(worker)
        revoke_command.mend()
        try:
            require_name(worker.app, node)  # first: what tries the rights writes under the name
            require_rights(worker.app, node)
        except FleetError as error:
            raise SystemExit(f"celery: {error}") from None


class Recovery(bootsteps.StartStopStep):  # type: ignore[misc]  # celery ships no types
    """Before a node consumes: gives back what it holds and does not run, and keeps what it runs."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        """Prepare."""
        super().__init__(consumer, **kwargs)
        self.node = os.environ["FLEET_NODE"]
        self._settings = FleetSettings.from_environment()
        self._consumer = consumer
        self._started, self._began = time.time(), time.monotonic()
        self._held = Held(consumer)
        self._again = False
        self._reconnects: deque[float] = deque(maxlen=100)
        self._pulse = Pulse(consumer.app, self.node, self._facts, self._on_lapse, self._on_beat)
        consumer.announce = self._announce

    def start(self, consumer: Any) -> None:
        """Begin on a new connection."""
        channel = consumer.connection.default_channel
        if self._again:
            self._pulse.renew(
                channel
            )  # or what it takes would be nobody's, should it die before the next beat
        else:
            self._pulse.beat(channel)
        keep = self._held.adopt(channel) | postponed.keys()
        # Who lives has not died: what it had only reserved is no loss.
        declare_exchanges(consumer.app, channel)
        step, died = self._settings.give_back_step, not self._again
        moved = give_back(channel, self.node, self.node, step, keep=keep, if_dead=False, died=died)
        if moved:
            logger.warning("Given back what this node held before it %s: %d messages.",
                           "was cut off" if self._again else "started", moved)  # fmt: skip
        if self._again:
            self._reconnects.append(time.time())
        else:
            self._again = True
            with channel.conn_or_acquire() as client:
                history.begins(client, self.node)
            self._pulse.start()
            atexit.register(self._leave)

    def _facts(self) -> dict[str, Any]:
        """Return what this node says of itself."""
        consumer = self._consumer
        pool = type(consumer.pool).__module__.rpartition(".")[2]
        return {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "pool": "threads" if pool == "thread" else pool,
            "concurrency": _concurrency(consumer.pool),
            "running": len(state.active_requests),
            "held": self._held.by_queue(),
            "overdue": sum(self._is_overdue(request) for request in copied(state.active_requests)),
            "reconnects": sum(at > time.time() - LATELY for at in self._reconnects),
            "silence": mailbox.silence(consumer, self._began),
            "queues": self._queues(),
            "exchanges": _exchanges(consumer.app),
            "priority_steps": list(
                consumer.app.conf.broker_transport_options.get("priority_steps") or PRIORITY_STEPS
            ),
            "release": self._settings.release,
            "started": self._started,
            "proved": readiness.own.at,
            "unproved": readiness.own.error,
            "excused": readiness.own.excused,
            "refused": consumer.refused,
            "dropped": dict(broadcast.dropped.counts),
        }

    def _is_overdue(self, request: Any) -> bool:
        """Return whether a task runs for longer than it may: a pool without processes cannot end it."""
        limit = request.time_limits[0] or request.task.time_limit or self._consumer.controller.time_limit
        return bool(limit and request.time_start and time.time() > request.time_start + limit + OVERDUE)

    def _queues(self) -> list[str]:
        """Return what this node consumes, and will again on its next connection."""
        if readiness.own.at is None:
            return []
        queues = consumed(self._consumer.app, self._consumer.hostname).values()
        return sorted(queues - self._consumer.refused.keys())

    def _announce(self) -> None:
        """Say at once how this node is."""
        self._pulse.renew(self._consumer.connection.default_channel)

    def _on_beat(self, channel: Any) -> None:
        """Acknowledge and bury what could not be, though the node has not found its connection lost."""
        bury_postponed(channel)
        if self._held.settled_late and self._consumer.connection:
            self._consumer.call_soon(self._held.settle)

    def _on_lapse(self, client: Any) -> None:
        """Say what runs twice, and forget what waits here and was given back meanwhile."""
        lost = [one for one in self._held.unstarted() if not self._holds(client, one)]
        if lost:
            self._consumer.call_soon(self._held.let_go, lost)
        given = [one for one in self._held.active() if not self._holds(client, one)]
        twice = [str(one) for one in given if not one.acknowledged]  # or it has just ended
        logger.warning(
            "The lease had ended: this node was cut off from Redis, or stood still, for more than %g s. "
            "Tasks that go on here and were given to others, too: %s. Tasks that had not begun here, and are "
            "left to others: %d.", self._settings.lease, ", ".join(twice) or "none", len(lost)
        )  # fmt: skip

    def _holds(self, client: Any, request: Any) -> bool:
        """Return whether a message is still this node's."""
        return bool(client.hexists(keys.unacked(self.node), request.message.delivery_tag))

    def _leave(self) -> None:
        """Leave no key behind, as the process ends; what is held still, if anything, keeps the lease."""
        self._pulse.stop()
        try:
            with connect(self._consumer.app, SHORT) as connection:
                channel = connection.default_channel
                self._held.record(channel)
                with channel.conn_or_acquire() as client:
                    forget(client, self.node, if_dead=False)
                    history.leaves(client, self.node)
        except Exception as error:
            logger.warning("The lease cannot be given up, and ends by itself: %s", error)


def own_keys(node: str) -> dict[str, str]:
    """Return the transport options that give a node keys of its own."""
    return {
        "unacked_key": keys.unacked(node),
        "unacked_index_key": keys.unacked_index(node),
        "unacked_mutex_key": keys.unacked_mutex(node),
    }


def _concurrency(pool: Any) -> int:
    """Return how many tasks a pool runs at a time: none, if it has stopped already (celery 5.7, prefork)."""
    try:
        return int(pool.num_processes)
    except AttributeError:
        return 0


def _exchanges(app: Celery) -> dict[str, str]:
    """Return the types of an app's exchanges that are not direct, for who has no app to ask."""
    exchanges = [queue.exchange for queue in app.amqp.queues.values() if queue.exchange is not None]
    return {one.name: one.type for one in exchanges if one.name and one.type != "direct"}
