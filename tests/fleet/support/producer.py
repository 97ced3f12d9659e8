"""An application outside the fleet: it knows the broker's address, a password, and the names of tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery import Celery, states

from tests.fleet.support.hosts import eventually

if TYPE_CHECKING:
    from celery.result import AsyncResult

    from tests.fleet.support.broker import Broker


class Producer:
    """Sends tasks as the user `web`, and reads their results."""

    def __init__(self, broker: Broker) -> None:
        """Configure Celery as its documentation says, with nothing of the fleet's."""
        self._broker = broker
        url = broker.url("web")
        self._app = Celery("outside", broker=url, backend=url)

    def send(self, task: str, *arguments: Any, queue: str, **options: Any) -> AsyncResult:
        """Send a task to a queue."""
        self._broker.open()
        return self._app.send_task(task, arguments, queue=queue, retry=False, **options)

    def probe(self, queue: str) -> AsyncResult:
        """Send the task that says which node ran it."""
        return self.send("fleet.probe", queue=queue)

    def result(self, sent: AsyncResult, timeout: float = 20) -> Any:
        """Wait for a task, and return what it returned.

        It asks again and again rather than to wait for news, which a broker that restarts would lose.
        """
        eventually(lambda: self._state(sent) in states.READY_STATES, timeout)
        return sent.get(timeout=5)

    def _state(self, sent: AsyncResult) -> str:
        """Return a task's state."""
        self._broker.open()
        return str(sent.state)
