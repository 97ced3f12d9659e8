# SPDX-License-Identifier: MIT
"""The two clients outside the fleet: an application that sends tasks, an operator who asks the nodes.

Both are plain Celery, configured as its documentation says, with a password of their own. Who waits for
answers of nodes needs kombu's scripts, which Redis has as functions: the operator calls them by the runtime.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery import Celery, states
from fleet_runtime.broker import functions

from tests.fleet.support.hosts import eventually

if TYPE_CHECKING:
    from celery.result import AsyncResult

    from tests.fleet.support.broker import Broker


class Producer:
    """Sends tasks as the user `web`, and reads their results."""

    def __init__(self, broker: Broker, **settings: Any) -> None:
        """Configure Celery, with settings besides."""
        self._broker = broker
        self._settings = settings
        self.configure()

    def configure(self) -> None:
        """Take the password that there is now."""
        url = self._broker.url("web")
        self._app = Celery("application", broker=url, backend=url)
        self._app.conf.update(self._settings)

    def send(self, task: str, *arguments: Any, queue: str, **options: Any) -> AsyncResult:
        """Send a task to a queue, with options of Celery's besides."""
        self._broker.open()
        return self._app.send_task(task, arguments, queue=queue, retry=False, **options)

    def probe(self, queue: str) -> AsyncResult:
        """Send the task that says which node ran it."""
        return self.send("fleet.probe", queue=queue)

    def result(self, sent: AsyncResult, timeout: float = 30) -> Any:
        """Wait for a task, and return what it returned.

        It asks again and again rather than to wait for news, which a broker that restarts would lose.
        """
        eventually(lambda: self._state(sent) in states.READY_STATES, timeout)
        return sent.get(timeout=5)

    def _state(self, sent: AsyncResult) -> str:
        """Return a task's state."""
        self._broker.open()
        return str(sent.state)


class Operator:
    """Asks the nodes as the user `ops`."""

    def __init__(self, broker: Broker) -> None:
        """Configure Celery, so that it does not give out again what nodes have reserved."""
        functions.adopt()
        self._broker = broker
        self._app = Celery("operator", broker=broker.url("ops"))
        self._app.conf.broker_transport_options = {"ack_emulation": False}

    def ask(self, question: str, nodes: set[str] | None = None, timeout: float = 3) -> dict[str, Any]:
        """Return what nodes answer to one of the questions of `celery inspect`.

        Args:
            question: Its name, such as `active_queues`.
            nodes: Whom to ask; it then returns when all have answered. Nobody in particular by default.
            timeout: Seconds to wait for answers.
        """
        self._broker.open()
        with self._app.connection_for_write() as connection:
            asked = sorted(nodes) if nodes else None
            inspect = self._app.control.inspect(destination=asked, timeout=timeout, connection=connection)
            return getattr(inspect, question)() or {}

    def revoke(self, task_id: str) -> None:
        """Tell all nodes not to run a task."""
        self._broker.open()
        with self._app.connection_for_write() as connection:
            self._app.control.revoke(task_id, connection=connection)
