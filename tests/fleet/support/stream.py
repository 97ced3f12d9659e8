"""Tasks that an application sends all the time, and whose results it wants."""

from __future__ import annotations

import threading
from itertools import cycle
from typing import TYPE_CHECKING, Self

from tests.fleet.support.clients import Producer

if TYPE_CHECKING:
    from celery.result import AsyncResult

    from tests.fleet.support.fleet import Fleet

PAUSE = 0.1  # seconds between two tasks
GREETING = ("demo.tasks.greet", "all", 0.3)  # takes a while, so that some are always under way


class Stream:
    """Sends tasks to every queue, from the beginning of a `with` to its end, and then asks for results."""

    def __init__(self, fleet: Fleet) -> None:
        """Take the fleet."""
        self.sent: list[AsyncResult] = []
        self.problems: list[str] = []
        self._producer = Producer(fleet.broker)
        self._queues = fleet.queues
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._send_all, daemon=True)

    def __enter__(self) -> Self:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End, and wait for what was sent."""
        self._ends.set()
        self._thread.join(60)
        for sent in self.sent:
            try:
                self._producer.result(sent, timeout=60)
            except Exception as error:  # whatever it is, it counts
                self.problems.append(f"{sent.id}: {type(error).__name__}: {error}")

    def expect_success(self) -> None:
        """Assert that every task was taken and has been done, and that there were some."""
        assert not self.problems, f"{len(self.problems)} of {len(self.sent)}: {self.problems[:5]}"
        assert len(self.sent) > len(self._queues)

    def _send_all(self) -> None:
        """Send tasks, to one queue after another."""
        for queue in cycle(self._queues):
            try:
                task = GREETING if queue == "default" else ("fleet.probe",)
                self.sent.append(self._producer.send(*task, queue=queue))
            except Exception as error:  # whatever it is, it counts
                self.problems.append(f"not taken: {type(error).__name__}: {error}")
            if self._ends.wait(PAUSE):
                return
