"""Gives back what a dead node held, within seconds.

With kombu's Redis transport, what a node has reserved is in one hash for all, and comes back after the
visibility timeout, whoever died. Here each node has a hash of its own and a lease, which it renews. What is
in the hash goes back to its queues (`give_back`) when the node starts again, or when its lease has ended, by
whichever node notices first. Redis's clock counts, and not those of the hosts.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import random
import socket
import threading
import time
from collections import deque
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from celery import bootsteps
from celery.concurrency import solo
from celery.worker import state
from kombu.exceptions import OperationalError
from kombu.transport.redis import PRIORITY_STEPS
from kombu.utils.encoding import bytes_to_str
from redis.exceptions import NoPermissionError, RedisError, ResponseError

from fleet_runtime.bootstrap.startup_checks import is_drawn
from fleet_runtime.broker import functions, keys, oom
from fleet_runtime.dead_letters import store
from fleet_runtime.dead_letters.store import End, Reason
from fleet_runtime.errors import FleetError
from fleet_runtime.inspect.queues import consumed
from fleet_runtime.logging import redact
from fleet_runtime.recovery import history, inflight
from fleet_runtime.recovery.inflight import Held, copied
from fleet_runtime.recovery.requeue import GiveBack, forget
from fleet_runtime.settings import FleetSettings
from fleet_runtime.transport import broadcast
from fleet_runtime.transport import channel as transport
from fleet_runtime.worker import mailbox, readiness, revoke_command, task_end
from fleet_runtime.worker.request import bury_postponed, postponed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from celery import Celery

logger = logging.getLogger(__name__)

REDIS_NEEDED = (7, 0)  # flags of scripts
PULSES = 3  # in one lease
SHORT = 1.0  # seconds until the next try, after one that failed
LOOKED_AT = 10  # leases, in one pulse: those that end first
NAME_WAITS = 45.0  # seconds until a name counts as taken: less than systemd grants a start
LATELY = 600.0  # seconds in which reconnects are counted
OVERDUE = 60.0  # seconds beyond its limit in which a task may still be ended
SPREAD = 0.5  # seconds: the nodes that notice a dead one do not all begin at once

# Renews a lease, and returns for how long it still was, the time, how it is with those that end first, and
# how many there are.
# KEYS: leases, nodes. ARGV: node, seconds, what the node says of itself, how many to return
RENEW = (
    oom.ALLOWED
    + """
local leases, nodes = unpack(KEYS)
local node, lease, facts, limit = unpack(ARGV)
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local ends = redis.call('ZSCORE', leases, node)
redis.call('ZADD', leases, now + lease, node)
redis.call('HSET', nodes, node, facts)
return {
  ends and string.format('%.6f', ends - now) or '',
  string.format('%.6f', now),
  redis.call('ZRANGE', leases, 0, limit - 1, 'WITHSCORES'),
  redis.call('ZCARD', leases),
}
"""
)


class Renewal(NamedTuple):
    """What Redis says as a lease is renewed.

    Attributes:
        left: For how many seconds the lease still was; None if there was none.
        over: Nodes whose lease has ended.
        soonest: Seconds until the next one ends.
        nodes: How many nodes there are, and were lately.
    """

    left: float | None
    over: list[str]
    soonest: float
    nodes: int


def renew(client: Any, node: str, lease: float, facts: str) -> Renewal:
    """Renew a node's lease, and look at those that end first."""
    words = [node, lease, facts, LOOKED_AT]
    left, now, listed, nodes = functions.run(client, RENEW, [keys.LEASES, keys.NODES], words)
    others = {}
    for name, ends in zip(listed[::2], listed[1::2], strict=True):
        others[bytes_to_str(name)] = float(ends) - float(now)
    others.pop(node, None)
    over = [name for name, seconds in others.items() if seconds <= 0]
    soonest = min((seconds for seconds in others.values() if seconds > 0), default=lease)
    return Renewal(float(left) if left else None, over, 0 if len(over) >= LOOKED_AT - 1 else soonest, nodes)


def give_back(channel: Any, node: str, finder: str, step: int, **options: Any) -> int:
    """Give back what a node held, and return how many messages; what can go nowhere goes to the dead letters.

    Args:
        channel: A channel that knows the app's exchanges.
        node: Whose messages.
        finder: The node that does it.
        step: How many at a time.
        options: What else `GiveBack` takes.
    """

    def bury(tag: str, record: bytes, error: Exception) -> None:
        """Move a message to the dead letters."""
        what = redact.described(error)  # no more of it, because the error may quote the record
        logger.error("What %s held as %s goes to the dead letters: %s", node, tag, what)
        held = store.Held(keys.unacked(node), keys.unacked_index(node), tag)
        try:
            with channel.conn_or_acquire() as client:
                end = End.of(Reason.UNDECODABLE, error)
                store.bury_raw(client, record, end, node=finder, held=held)
        except ResponseError as refusal:
            logger.error("It cannot be moved there, and stays where it is: %s", refusal)

    return GiveBack(channel, node, step, unreadable=bury, **options).run()


class Pulse:
    """Renews a node's lease, and gives back what others held whose lease has ended.

    It has a thread of its own, and not a place in the node's loop, where tasks run in a solo pool; under
    gevent, a thread is a greenlet. It has a connection of its own, too: what keeps the node's own from
    answering does not end its lease.
    """

    def __init__(
        self,
        app: Celery,
        node: str,
        facts: Callable[[], dict[str, Any]],
        on_lapse: Callable[[Any], None],
        on_beat: Callable[[Any], None] = lambda channel: None,
    ) -> None:
        """Prepare.

        Args:
            app: The app.
            node: The node's name.
            facts: Returns what the node says of itself.
            on_lapse: Is called with a client if the lease had ended while the node lived.
            on_beat: Is called with a channel each time that Redis has answered.
        """
        self.node = node
        self.lapses = self.recovered = 0
        self._app = app
        self._settings = FleetSettings.from_environment()
        self._facts = facts
        self._on_lapse = on_lapse
        self._on_beat = on_beat
        self._interval = self._settings.lease / PULSES
        self._pause = self._interval
        self._trusting_until = 0.0
        self._renewed = False
        self._one_at_a_time = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._connection: Any = None

    def start(self) -> None:
        """Go on by itself."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="fleet-pulse", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the thread, or leave it behind after one interval, and disconnect."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(self._interval)
        self._disconnect()

    def beat(self, channel: Any) -> None:
        """Renew the lease, and give back what is to be."""
        found = self.renew(channel)
        self._on_beat(channel)
        soonest = found.soonest
        trusting = self._trusting_until - time.monotonic()
        if found.over and trusting > 0:
            soonest = min(soonest, trusting)
        elif found.over:
            again = self._give_back(channel, found.over)
            soonest = soonest if again is None else again
        self._pause = min(self._interval, soonest + random.uniform(0, SPREAD))  # noqa: S311 - no secret

    def renew(self, channel: Any) -> Renewal:
        """Renew the lease once, and see whether it had ended."""
        lease = self._settings.lease
        facts = {**self._facts(), "lapses": self.lapses, "recovered": self.recovered}
        with self._one_at_a_time, channel.conn_or_acquire() as client:
            found = renew(client, self.node, lease, json.dumps(facts))
            transport.Channel.nodes = found.nodes
            if self._is_unsure(found.left):
                self._trusting_until = time.monotonic() + self._settings.grace
            if self._renewed and (found.left is None or found.left < 0):
                self.lapses += 1
                self._on_lapse(client)
            self._renewed = True
        return found

    def _is_unsure(self, left: float | None) -> bool:
        """Return whether others may have had no chance to renew their leases, as this node had not.

        It has started, or Redis was away for half a lease, or its clock was set.
        """
        lease = self._settings.lease
        return left is None or not self._renewed or not lease / 2 < left <= lease

    def _give_back(self, channel: Any, nodes: Iterable[str]) -> float | None:
        """Give back what dead nodes held, for as long as there is time; return when to go on, if not done."""
        until = time.monotonic() + self._interval / 2
        for node in nodes:
            step = self._settings.give_back_step
            moved = give_back(channel, node, self.node, step, until=until)
            self.recovered += moved
            with channel.conn_or_acquire() as client:
                gone = forget(client, node, if_dead=True)
            if moved or gone:
                logger.warning("%s is gone: its lease has ended. Messages given back: %d.", node, moved)
            if time.monotonic() > until:
                return 0.0
        return None

    def _run(self) -> None:
        """Beat until the end."""
        failures = 0
        while not self._stopping.wait(self._pause):
            try:
                self.beat(self._channel())
                failures = 0
            except Exception as error:
                if failures == 1:  # the first may mean no more than that Redis was restarted meanwhile
                    logger.warning("The lease cannot be renewed; others may count this as dead: %s", error)
                self._pause = SHORT if failures else 0
                failures += 1
                self._disconnect()

    def _channel(self) -> Any:
        """Return a channel that works."""
        if self._connection is None:
            self._connection = _connect(self._app, self._interval)
            _declare_exchanges(self._app, self._connection.default_channel)
        return self._connection.default_channel

    def _disconnect(self) -> None:
        """Forget the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):
                connection.release()


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
            options[transport.OPTION] = 1
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
        _declare_exchanges(consumer.app, channel)
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
            with _connect(self._consumer.app, SHORT) as connection:
                channel = connection.default_channel
                self._held.record(channel)
                with channel.conn_or_acquire() as client:
                    forget(client, self.node, if_dead=False)
                    history.leaves(client, self.node)
        except Exception as error:
            logger.warning("The lease cannot be given up, and ends by itself: %s", error)


def _concurrency(pool: Any) -> int:
    """Return how many tasks a pool runs at a time: none, if it has stopped already (celery 5.7, prefork)."""
    try:
        return int(pool.num_processes)
    except AttributeError:
        return 0


def own_keys(node: str) -> dict[str, str]:
    """Return the transport options that give a node keys of its own."""
    return {
        "unacked_key": keys.unacked(node),
        "unacked_index_key": keys.unacked_index(node),
        "unacked_mutex_key": keys.unacked_mutex(node),
    }


def require_rights(app: Celery, node: str) -> None:
    """Make sure that Redis is new enough and lets this user do what a node does.

    If it is away, the node waits for it, and finds out later.

    Raises:
        FleetError: It is not so.
    """
    user = urlsplit(app.conf.broker_read_url or "").username or "default"
    try:
        with _client(app, FleetSettings.from_environment().socket_timeout) as client:
            _require_version(client)
            for command in _harmless(node):
                _try(client, user, command)
            functions.require(client, (RENEW, transport.TURN, transport.RETURN, store.BURY))
    except NoPermissionError as error:
        raise FleetError(f"Redis does not let its user {user} connect as a node does: {error}.") from None
    except (OperationalError, OSError, RedisError) as error:
        logger.warning("Redis cannot be asked what this node may do: %s", error)


def require_name(app: Celery, node: str) -> None:
    """Make sure that no other host has a node of this name: each would give away what the other runs.

    A host that was replaced has left a lease behind, which ends; one that lives renews it. Not noticed is a
    host of the same name.

    Raises:
        FleetError: There is one.
    """
    until, first = time.monotonic() + NAME_WAITS, None
    try:
        with _client(app, FleetSettings.from_environment().socket_timeout) as client:
            while other := _elsewhere(client, node):
                host, ends = other
                if first is None:
                    first = ends
                    logger.warning("There is a node %s on the host %s. Waiting for the end of its lease.",
                                   node, host)  # fmt: skip
                if ends > first or time.monotonic() > until:
                    raise FleetError(
                        f"the host {host} has a node {node}, too. Of two that have one name, each would give "
                        "away what the other runs. Rename one of them."
                    )
                time.sleep(SHORT)
    except (OperationalError, OSError, RedisError) as error:
        logger.warning("Redis cannot be asked who has this node's name: %s", error)


def _elsewhere(client: Any, node: str) -> tuple[str, float] | None:
    """Return the other host that has a node of this name, and when its lease ends; None if there is none."""
    with client.pipeline(transaction=False) as pipeline:
        pipeline.hget(keys.NODES, node).zscore(keys.LEASES, node).time()
        facts, ends, (seconds, _) = pipeline.execute()
    host = json.loads(facts or "{}").get("host", "")
    if not host or host == socket.gethostname() or ends is None or ends <= seconds:
        return None
    return host, ends


def _try(client: Any, user: str, command: tuple[Any, ...]) -> None:
    """Run a command only to see whether it is permitted.

    Raises:
        FleetError: It is not.
    """
    try:
        client.execute_command(*command)
    except NoPermissionError as error:
        words = " ".join(map(str, command)).strip()
        raise FleetError(
            f"Redis does not let its user {user} do what a node needs: {words} ({error})."
        ) from None
    except ResponseError:
        return  # there is no such script, which is all that was to be known


def _require_version(client: Any) -> None:
    """Refuse a Redis that lacks what the scripts need.

    Raises:
        FleetError: It is too old.
    """
    said = client.execute_command("HELLO")  # which needs no right, unlike INFO
    if not isinstance(said, dict):
        said = dict(zip(said[::2], said[1::2], strict=True))
    about = {bytes_to_str(name): bytes_to_str(value) for name, value in said.items()}
    version = str(about["version"])
    if tuple(int(part) for part in version.split(".")[:2]) < REDIS_NEEDED:
        needed = ".".join(map(str, REDIS_NEEDED))
        raise FleetError(f"this Redis is {version}, and a node needs {needed} or newer.")


def _harmless(node: str) -> list[tuple[Any, ...]]:
    """Return commands that change nothing, one for each right that is used here.

    The queues are left out: without them, a node could not even consume.
    """
    unacked, index, mutex = keys.unacked(node), keys.unacked_index(node), keys.unacked_mutex(node)
    return [
        ("TIME",),
        ("ZSCORE", keys.LEASES, node),
        ("ZRANGE", keys.LEASES, 0, 0),
        ("ZADD", keys.LEASES, "XX", 0, ""),
        ("ZREM", keys.LEASES, ""),
        ("HSET", keys.NODES, node, "{}"),
        ("HDEL", keys.NODES, node),
        ("HSCAN", unacked, 0, "COUNT", 1),
        ("HEXISTS", unacked, ""),
        ("HLEN", unacked),
        ("HDEL", unacked, ""),
        ("ZREM", index, ""),
        ("DEL", mutex),
    ]


def _connect(app: Celery, timeout: float) -> Any:
    """Return a connection, apart from all others, that waits no longer than this for an answer."""
    options = {"socket_timeout": max(timeout, SHORT), "socket_connect_timeout": max(timeout, SHORT)}
    connection = app.connection_for_read(transport_options=options)
    try:
        connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0)
    except BaseException:
        connection.release()
        raise
    return connection


@contextmanager
def _client(app: Celery, timeout: float) -> Iterator[Any]:
    """Yield a client of Redis on a connection of its own."""
    with _connect(app, timeout) as connection, connection.default_channel.conn_or_acquire() as client:
        yield client


def _exchanges(app: Celery) -> dict[str, str]:
    """Return the types of an app's exchanges that are not direct, for who has no app to ask."""
    exchanges = [queue.exchange for queue in app.amqp.queues.values() if queue.exchange is not None]
    return {one.name: one.type for one in exchanges if one.name and one.type != "direct"}


def _declare_exchanges(app: Celery, channel: Any) -> None:
    """Tell a channel of what types the app's exchanges are, which decides who gets a message.

    Asks no Redis.
    """
    for queue in app.amqp.queues.values():
        if queue.exchange is not None and queue.exchange.name:
            queue.exchange(channel).declare()
