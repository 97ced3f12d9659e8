"""Lets a node take nothing until it has run a task: one that only it can get.

A node whose app is broken looks well until it runs something, and by then it has taken tasks. So each begins
with a queue of its own, in which it puts a task for itself; its queues follow once that is done. A node that
was only cut off from its broker goes on at once.
"""

# Celery ships no types.
# mypy: disable-error-code="untyped-decorator"
from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from billiard.einfo import ExceptionWithTraceback
from celery import Task, bootsteps
from kombu import Exchange, Queue
from kombu.exceptions import OperationalError
from redis.exceptions import ResponseError

from fleet_runtime import keys
from fleet_runtime.fullness import is_full
from fleet_runtime.request import FleetRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery import Celery
    from celery.worker.consumer import Consumer

logger = logging.getLogger(__name__)

NAME = "fleet.proof"
LOOK = 10.0  # seconds between two looks at a proof that is not there yet; then one that failed is tried again
PATIENCE = 60.0  # seconds until a proof that is neither there nor failed is tried again


@dataclass
class Proof:
    """How far this process is with proving that it works.

    Attributes:
        at: When it had, in seconds since 1970; None if it has not.
        asked: When it began its last try, by the monotonic clock.
        error: Why that failed; empty if it did not.
    """

    at: float | None = None
    asked: float = 0.0
    error: str = ""


own = Proof()


def register(app: Celery) -> None:
    """Give an app the task; like the probe, it is Celery's own kind and not the app's."""

    @app.task(
        name=NAME,
        base=Task,
        shared=False,
        send_events=False,
        acks_late=True,
        ignore_result=True,
        serializer="json",
        Request=f"{__name__}:ProofRequest",
    )
    def proof() -> None:
        """Do nothing. That it ran is all."""


class ProofRequest(FleetRequest):
    """The request of that task, whose end the node waits for. It leaves no letter: it is tried again."""

    _failed = False

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> Any:
        """Note why it failed."""
        error = exc_info.exception
        error = error.exc if isinstance(error, ExceptionWithTraceback) else error
        self._fails(f"{type(error).__name__}: {error}")
        return super().on_failure(exc_info, send_failed_event, return_ok)

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Note that it took too long."""
        self._fails(f"It did not end within its time limit of {timeout:g} s.")
        super().on_timeout(soft, timeout)

    def acknowledge(self) -> None:
        """Acknowledge it, which is late, so it has run: Celery 5.7 calls no method of ours at success."""
        super().acknowledge()
        if not self._failed and own.at is None:
            own.at, own.error = time.time(), ""
            _tell(Probation.end)

    def refuse(self) -> None:
        """Note that its process dies each time."""
        self._fails("The process that ran it died, each time.")
        super().refuse()

    def _announce_revoked(self, reason: str, terminated: bool, signum: Any, expired: bool) -> None:
        """Note that it waited for too long, or that somebody did not want it."""
        self._fails(f"It was {reason}.")
        super()._announce_revoked(reason, terminated, signum, expired)

    def _fails(self, error: str) -> None:
        """Note why it failed, for whoever asks."""
        self._failed, own.error = True, error
        _tell(Probation.say)

    def _bury(self) -> bool:
        """Let Celery drop it."""
        return True


class Probation(bootsteps.StartStopStep):  # type: ignore[misc]  # celery ships no types
    """Holds a node's queues back until it has run a task."""

    # What it held before goes back first, and the consumer is there.
    requires = ("fleet_runtime.recovery:Recovery",)
    # Of this process, which has one node.
    current: Probation | None = None

    def __init__(self, consumer: Any, **options: Any) -> None:
        """Prepare."""
        super().__init__(consumer, **options)
        self._consumer = consumer
        self.loop = consumer.call_soon
        self._queue = keys.proofs(consumer.hostname)
        self._timer: Any = None
        Probation.current = self

    def start(self, consumer: Consumer) -> None:
        """Begin on a new connection."""
        if own.at is not None:
            return
        for queue in consumer.task_consumer.queues:
            consumer.task_consumer.cancel_by_queue(queue)
        # Nothing is declared: no exchange leads to it, and no trace of it stays.
        consumer.task_consumer.add_queue(_direct(self._queue, no_declare=True))
        self._ask()
        self._stop_looking()  # on the connection before
        self._timer = consumer.timer.call_repeatedly(LOOK, consumer.call_soon, (self._look,))

    def _ask(self) -> None:
        """Put a task into this node's own queue, unless Redis is full: then nodes have to make room first."""
        own.asked, own.error = time.monotonic(), ""
        try:
            self._send()
        except OperationalError as error:  # which kombu makes of whatever it was
            cause = error.__cause__ or error
            if not (isinstance(cause, ResponseError) and is_full(cause)):
                raise cause from None  # the consumer connects anew, where of the other it would end
            logger.warning("Redis is full, so this node begins without a proof that it works: %s", cause)
            own.at = time.time()
            _tell(Probation.end)

    def _send(self) -> None:
        """Send the task, by the connection that there is; the consumer itself makes another if it must."""
        app = self._consumer.app
        app.send_task(
            NAME,
            queue=_direct(self._queue),
            producer=app.amqp.Producer(self._consumer.connection.default_channel),
            retry=False,
            priority=0,
            expires=PATIENCE,
            ignore_result=True,
            serializer="json",
        )

    def _look(self) -> None:
        """Say that the proof is not there yet, and try again if it failed or was lost."""
        if own.at is not None or not self._is_connected():
            return
        level = logging.ERROR if own.error else logging.WARNING
        logger.log(
            level,
            "This node has not run the task by which it proves that it works, and takes no other. %s",
            own.error or "It has not ended yet.",
        )
        if own.error or time.monotonic() > own.asked + PATIENCE:
            self._ask()

    def say(self) -> None:
        """Tell others how far this is."""
        if self._is_connected():
            self._consumer.announce()

    def end(self) -> None:
        """Consume the queues, unless there is no connection; on the next one nothing is held back."""
        self._stop_looking()
        if not self._is_connected():
            return
        consumer = self._consumer
        consumer.task_consumer.cancel_by_queue(self._queue)
        queues = consumer.app.amqp.queues.consume_from
        for queue in queues.values():
            consumer.task_consumer.add_queue(queue)
        consumer.task_consumer.consume()
        self.say()
        logger.info("This node takes tasks now, from %s.", ", ".join(sorted(queues)) or "no queue")

    def _is_connected(self) -> bool:
        """Return whether the consumer has a connection, which it may just have lost."""
        channel = getattr(self._consumer.task_consumer, "channel", None)
        return getattr(channel, "connection", None) is not None

    def _stop_looking(self) -> None:
        """Look no more whether the proof is there."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _tell(what: Callable[[Probation], None]) -> None:
    """Let this process's node do something; whatever thread this is, its loop does it."""
    if current := Probation.current:
        current.loop(partial(what, current))


def _direct(name: str, **options: Any) -> Queue:
    """Return a queue by its name alone."""
    return Queue(name, Exchange(""), routing_key=name, **options)
