# SPDX-License-Identifier: MIT
"""The lease of a node: its heartbeat renews it, and requeues what nodes held whose lease has ended."""

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
from fleet_runtime.recovery.requeue import forget, give_back
from fleet_runtime.settings import FleetSettings
from fleet_runtime.transport.channel import Channel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from celery import Celery

logger = logging.getLogger(__name__)

PULSES = 3  # in one lease
SHORT = 1.0  # seconds until the next try, after one that failed
LOOKED_AT = 10  # leases, in one pulse: those that end first
SPREAD = 0.5  # seconds: the nodes that notice a dead one do not all begin at once


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
    left, now, listed, nodes = functions.run(client, scripts.RENEW_LEASE, [keys.LEASES, keys.NODES], words)
    others = {}
    for name, ends in zip(listed[::2], listed[1::2], strict=True):
        others[bytes_to_str(name)] = float(ends) - float(now)
    others.pop(node, None)
    over = [name for name, seconds in others.items() if seconds <= 0]
    soonest = min((seconds for seconds in others.values() if seconds > 0), default=lease)
    return Renewal(float(left) if left else None, over, 0 if len(over) >= LOOKED_AT - 1 else soonest, nodes)


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
            Channel.nodes = found.nodes
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
            self._connection = connect(self._app, self._interval)
            declare_exchanges(self._app, self._connection.default_channel)
        return self._connection.default_channel

    def _disconnect(self) -> None:
        """Forget the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):
                connection.release()
