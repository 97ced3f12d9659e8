# SPDX-License-Identifier: MIT
"""The lease of a node: its heartbeat renews it, and requeues what nodes held whose lease has ended.

The clock of Redis counts, not the clocks of the hosts.
"""

from __future__ import annotations

import json
import logging
import random
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from kombu.utils.encoding import bytes_to_str

from fleet_runtime.broker import functions, keys, scripts
from fleet_runtime.recovery.connections import connect, declare_exchanges
from fleet_runtime.recovery.requeue import forget, restore_unacked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from celery import Celery

    from fleet_runtime.settings import FleetSettings

logger = logging.getLogger(__name__)

# Two renewals in a row may fail before a lease ends.
RENEWALS_PER_LEASE = 3
# Seconds until the next try, after two that failed.
RETRY_S = 1.0
# Leases that one renewal reads, those that end first: the cost does not grow with the fleet.
LEASES_PER_RENEWAL = 10
# Longest random delay in seconds, so that not all nodes notice a dead one at the same moment.
JITTER_S = 0.5


class Renewal(NamedTuple):
    """The state of the leases when one is renewed.

    Attributes:
        left: Seconds that were left of the renewed lease, negative if it had ended; None without a lease.
        ended: Nodes whose lease has ended.
        soonest: Seconds until the next lease ends.
        nodes: Number of nodes that have a lease, ended or not.
    """

    left: float | None
    ended: list[str]
    soonest: float
    nodes: int


def renew(client: Any, node: str, lease: float, facts: str) -> Renewal:
    """Renew the lease of a node, and read the leases that end first.

    Args:
        client: A client of redis-py.
        node: Name of the node.
        lease: Length of the lease in seconds.
        facts: What the node publishes about itself, as JSON.
    """
    arguments = [node, lease, facts, LEASES_PER_RENEWAL]
    left, now, pairs, nodes = functions.run(client, scripts.RENEW_LEASE, [keys.LEASES, keys.NODES], arguments)
    ends = zip(map(bytes_to_str, pairs[::2]), pairs[1::2], strict=True)
    others = {name: float(end) - float(now) for name, end in ends if name != node}
    ended = [name for name, seconds in others.items() if seconds <= 0]
    soonest = min((seconds for seconds in others.values() if seconds > 0), default=lease)
    may_be_more = len(ended) >= LEASES_PER_RENEWAL - 1
    return Renewal(float(left) if left else None, ended, 0 if may_be_more else soonest, nodes)


class LeaseHeartbeat:
    """Renews the lease of a node, and requeues what nodes held whose lease has ended.

    It runs in a thread (a greenlet under gevent), because tasks of a solo pool block the loop of the node. It
    has its own connection, because a blocked connection of the node must not end the lease.

    Attributes:
        node: Name of the node.
        expirations: How often the lease has ended while the node was alive.
        recovered: How many messages of dead nodes this node has requeued.
        nodes: How many nodes have a lease.
    """

    def __init__(
        self,
        app: Celery,
        node: str,
        settings: FleetSettings,
        facts: Callable[[], dict[str, Any]],
        on_expired: Callable[[Any], None],
        on_tick: Callable[[Any], None] = lambda channel: None,
    ) -> None:
        """Prepare; `start` starts the thread.

        Args:
            app: The app.
            node: Name of the node.
            settings: Have the length of the lease and of the grace period.
            facts: Returns what the node publishes about itself.
            on_expired: Called with a client if the lease had ended while the node was alive.
            on_tick: Called with a channel after each renewal.
        """
        self.node = node
        self.expirations = self.recovered = self.nodes = 0
        self._app, self._settings, self._facts = app, settings, facts
        self._on_expired, self._on_tick = on_expired, on_tick
        self._interval_s = self._pause_s = settings.lease / RENEWALS_PER_LEASE
        self._grace_until = 0.0
        self._has_renewed = False
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._connection: Any = None

    def start(self) -> None:
        """Start the thread, unless it runs."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="fleet-lease", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Stop the thread, wait one interval for its end at most, and disconnect."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(self._interval_s)
        self._disconnect()

    def tick(self, channel: Any) -> None:
        """Renew the lease, and requeue what dead nodes held, unless this node is in its grace period."""
        renewal = self.renew(channel)
        self._on_tick(channel)
        pause = renewal.soonest
        grace = self._grace_until - time.monotonic()
        if renewal.ended and grace > 0:
            pause = min(pause, grace)
        elif renewal.ended and not self._recover(channel, renewal.ended):
            pause = 0.0
        self._pause_s = min(self._interval_s, pause + random.uniform(0, JITTER_S))

    def renew(self, channel: Any) -> Renewal:
        """Renew the lease once, and call `on_expired` if it had ended."""
        facts = {**self._facts(), "lapses": self.expirations, "recovered": self.recovered}
        with self._lock, channel.conn_or_acquire() as client:
            renewal = renew(client, self.node, self._settings.lease, json.dumps(facts))
            self.nodes = renewal.nodes
            if self._needs_grace(renewal.left):
                self._grace_until = time.monotonic() + self._settings.grace
            if self._has_renewed and (renewal.left is None or renewal.left < 0):
                self.expirations += 1
                self._on_expired(client)
            self._has_renewed = True
        return renewal

    def _needs_grace(self, left: float | None) -> bool:
        """Return whether other nodes may have been unable to renew their leases, as this one was.

        That is so if this node has just started, if Redis was away for half a lease, or if its clock was set.
        """
        lease = self._settings.lease
        return left is None or not self._has_renewed or not lease / 2 < left <= lease

    def _recover(self, channel: Any, nodes: Iterable[str]) -> bool:
        """Requeue what dead nodes held, for half an interval at most; return whether all is requeued."""
        until = time.monotonic() + self._interval_s / 2
        for node in nodes:
            moved = restore_unacked(channel, node, self.node, self._settings, until=until)
            self.recovered += moved
            with channel.conn_or_acquire() as client:
                forgotten = forget(client, node, if_dead=True)
            if moved or forgotten:
                logger.warning("%s is gone: its lease has ended. Messages requeued: %d.", node, moved)
            if time.monotonic() > until:
                return False
        return True

    def _run(self) -> None:
        """Tick until `stop`."""
        failures = 0
        while not self._stopping.wait(self._pause_s):
            try:
                self.tick(self._channel())
                failures = 0
            except Exception as error:
                if failures == 1:  # one failure alone is common: Redis was restarted
                    logger.warning(
                        "The lease cannot be renewed; others may count this node as dead: %s", error
                    )
                self._pause_s = RETRY_S if failures else 0
                failures += 1
                self._disconnect()

    def _channel(self) -> Any:
        """Return a connected channel."""
        if self._connection is None:
            self._connection = connect(self._app, self._interval_s)
            declare_exchanges(self._app, self._connection.default_channel)
        return self._connection.default_channel

    def _disconnect(self) -> None:
        """Close the connection, if there is one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):
                connection.release()
