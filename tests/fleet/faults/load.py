# SPDX-License-Identifier: MIT
"""Tasks that an application sends at a steady rate, each with a name of its own, whatever happens."""

from __future__ import annotations

import random
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Self

from tests.fleet.faults.ledger import TASK
from tests.fleet.support.clients import Producer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.fleet.support.broker import Broker

# What any application should set: else a broker that is silent holds it for minutes.
PATIENCE = {"socket_timeout": 5, "socket_connect_timeout": 5}
LONGEST = 0.3  # seconds that a task takes at most: some are always under way, and no pool is ever full


@dataclass(frozen=True)
class Sent:
    """A task that was submitted, and when the broker said that it has it, if it ever did."""

    name: str
    queue: str
    submitted: float
    accepted: float | None


class Load:
    """Sends tasks to some queues, from the beginning of a `with` to its end."""

    def __init__(self, broker: Broker, trial: str, shares: Mapping[str, int], rate: float) -> None:
        """Connect.

        Args:
            broker: Where to send them.
            trial: What the names of all tasks begin with.
            shares: How much of all each queue gets.
            rate: Tasks a second.
        """
        self.sent: list[Sent] = []
        self._producer = Producer(broker, broker_transport_options=PATIENCE)
        self._trial = trial
        self._shares = shares
        self._pause = 1 / rate
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._send_all, daemon=True)

    def __enter__(self) -> Self:
        """Start to send."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End, when the last one is sent."""
        self._ends.set()
        self._thread.join(120)
        assert not self._thread.is_alive(), "the application hangs while it sends a task"

    def _send_all(self) -> None:
        """Send tasks; what is late is not made up for, or a broker that comes back would meet a flood."""
        chance = random.Random(0)
        for number in count():
            began = time.monotonic()
            [queue] = chance.choices([*self._shares], [*self._shares.values()])
            self._send(f"{self._trial}:{number:06}", queue, chance.uniform(0, LONGEST))
            if self._ends.wait(max(0.0, self._pause - (time.monotonic() - began))):
                return

    def _send(self, name: str, queue: str, seconds: float) -> None:
        """Send one task, and note what became of it."""
        submitted = time.time()
        accepted = None
        with suppress(Exception):  # of whatever kind: the broker may have it or not, and promised nothing
            self._producer.send(TASK, name, round(seconds, 3), queue=queue, ignore_result=True)
            accepted = time.time()
        self.sent.append(Sent(name, queue, submitted, accepted))
