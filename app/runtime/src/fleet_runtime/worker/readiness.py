# SPDX-License-Identifier: MIT
"""Lets a node take nothing until it has run a task: one that only it can get.

A node whose app is broken looks well until it runs something, and by then it has taken tasks. So each begins
with a queue of its own, in which it puts a task for itself; its queues follow once that is done. A node that
was only cut off from its broker goes on at once.
"""

# Celery ships no types.
# mypy: disable-error-code="untyped-decorator"
from __future__ import annotations

import logging
import os
import signal
import threading
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from billiard.einfo import ExceptionInfo
from celery import Task, bootsteps, signals
from celery._state import _task_stack
from celery.app.trace import FAILURE, TraceInfo, trace_ok_t
from celery.worker import state
from celery.worker.request import create_request_cls
from kombu.utils.uuid import uuid
from redis.exceptions import ResponseError

from fleet_runtime.broker import keys
from fleet_runtime.broker.oom import is_full
from fleet_runtime.inspect import probe
from fleet_runtime.recovery.inflight import copied
from fleet_runtime.worker.request import FleetRequest, raised

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery import Celery
    from celery.worker.consumer import Consumer

logger = logging.getLogger(__name__)

NAME = "fleet.proof"
LOOK = 10.0  # seconds between two looks at a proof that is not there yet; then one that failed is tried again
LIMIT = 30.0  # seconds that the task may run, in pools that can end one
PATIENCE = 60.0  # seconds until a task that does not run is sent again
HURRY = 5.0  # seconds that a node which stops waits for its proof alone


@dataclass
class Proof:
    """How far this process is with proving that it works.

    Attributes:
        at: When it had, in seconds since 1970; None if it has not.
        excused: Whether it never did, since Redis was full.
        asked: When it began its last try, by the monotonic clock.
        error: Why that failed; empty if it did not.
        failed: Whether a try has failed, or took too long.
    """

    at: float | None = None
    excused: bool = False
    asked: float = 0.0
    error: str = ""
    failed: bool = False


own = Proof()


class ProofTask(Task):  # type: ignore[misc]  # celery ships no types
    """A task that nothing of the app's sees: no signal tells of it, and nothing traces it.

    It is none of the app's, so its counts, spans and transactions (OpenTelemetry goes by signals, Sentry by
    the function that builds what traces a task) would have one that nobody sent for each start of a node.
    """

    Strategy = "fleet_runtime.worker.readiness:strategy"

    @property
    def __trace__(self) -> Callable[..., Any]:
        """What Celery calls to run this."""
        return self._run_unseen

    @__trace__.setter
    def __trace__(self, tracer: Callable[..., Any]) -> None:
        """Leave out what Celery, or who has taken its place, builds to run any task."""

    def _run_unseen(self, uuid: str, args: Any, kwargs: Any, request: Any = None) -> Any:
        """Run it as Celery's tracer runs a task that has no result (celery 5.7, trace.build_tracer)."""
        loader, started = self.app.loader, time.monotonic()
        _task_stack.push(self)
        try:
            loader.on_task_init(uuid, self)
            self.run(*args, **kwargs)
            loader.on_process_cleanup()
        except Exception as error:
            return trace_ok_t(ExceptionInfo(), TraceInfo(FAILURE, error), 0.0, None)
        finally:
            _task_stack.pop()
        return trace_ok_t(None, None, time.monotonic() - started, repr(None))


def register(app: Celery) -> None:
    """Give an app the task; like the probe, it is no task of the app's own kind."""

    @app.task(name=NAME, base=ProofTask, shared=False)
    def proof() -> None:
        """Do nothing. That it ran is all."""


def strategy(task: Any, app: Celery, consumer: Any) -> Callable[..., None]:
    """Return what takes a message of the proof: Celery's strategy without its signal, its log and its limits.

    Args:
        task: The proof.
        app: The app.
        consumer: The node's consumer.
    """
    request_class = create_request_cls(
        task.Request, task, consumer.pool, consumer.hostname, consumer.event_dispatcher, app=app
    )

    def take(message: Any, body: Any, ack: Any, reject: Any, callbacks: Any) -> None:
        request = request_class(
            message,
            on_ack=ack,
            on_reject=reject,
            app=app,
            hostname=consumer.hostname,
            eventer=consumer.event_dispatcher,
            task=task,
            connection_errors=consumer.connection_errors,
        )
        if request.revoked():
            return
        state.task_reserved(request)
        for callback in callbacks or ():
            callback(request)
        consumer.on_task_request(request)

    return take


def own_task(task: Any) -> None:
    """Make a task the proof, whatever the app's annotations say of all tasks.

    With early acknowledgement, the node would take it for done as it begins.
    """
    task.acks_late, task.ignore_result, task.send_events, task.rate_limit = True, True, False, None
    task.time_limit, task.soft_time_limit = LIMIT, None
    task.Request, task.Strategy = ProofRequest, ProofTask.Strategy


class ProofRequest(FleetRequest):
    """The request of that task, whose end the node waits for.

    However it ends, its message is dropped: it leaves no letter, no result, and no signal tells of it. If it
    failed, another is sent.
    """

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> Any:
        """Note why it failed."""
        error = raised(exc_info)
        self._fails(f"{type(error).__name__}: {error}")

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Note that it took too long; at a soft limit, its exception follows."""
        if not soft:
            self._fails(f"It did not end within its time limit of {timeout:g} s.")

    def acknowledge(self) -> None:
        """Acknowledge it, which is late, so it has ended: Celery 5.7 calls no method of ours at success."""
        super().acknowledge()
        if self.id in state.successful_requests and own.at is None:
            own.at, own.error = time.time(), ""
            _tell(Probation.end)

    def refuse(self) -> None:
        """Note that its process dies each time."""
        self._fails("The process that ran it died, each time.")

    def _announce_revoked(self, reason: str, terminated: bool, signum: Any, expired: bool) -> None:
        """Note that it waited for too long, or that somebody did not want it."""
        self._fails(f"It was {reason}.")

    def _fails(self, error: str) -> None:
        """Note why it failed, for whoever asks, and drop it."""
        own.error, own.failed = error, True
        state.task_ready(self)
        self.acknowledge()
        _tell(Probation.say)

    def _bury(self) -> bool:
        """Let Celery drop it."""
        return True


class Probation(bootsteps.StartStopStep):  # type: ignore[misc]  # celery ships no types
    """Holds a node's queues back until it has run a task."""

    # What it held before goes back first, and the consumer is there.
    requires = ("fleet_runtime.worker.bootsteps:Recovery",)
    # Of this process, which has one node.
    current: Probation | None = None

    def __init__(self, consumer: Any, **options: Any) -> None:
        """Take the node's consumer, and the queue of its proofs, which FLEET_NODE names."""
        super().__init__(consumer, **options)
        self._consumer = consumer
        self.loop = consumer.call_soon
        self._queue = keys.proofs(os.environ["FLEET_NODE"])
        self._timer: Any = None
        Probation.current = self
        signals.worker_shutting_down.connect(self._hurry, weak=False, dispatch_uid="fleet.probation")

    def start(self, consumer: Consumer) -> None:
        """Begin on a new connection."""
        if own.at is not None:
            return
        for queue in consumer.task_consumer.queues:
            consumer.task_consumer.cancel_by_queue(queue)
        # Nothing is declared: no exchange leads to it, and no trace of it stays.
        consumer.task_consumer.add_queue(probe.direct(self._queue, no_declare=True))
        self._ask()
        self._look_later()

    def say(self) -> None:
        """Tell others how far this is."""
        if self._is_at_work():
            self._consumer.announce()

    def end(self) -> None:
        """Consume the queues, if the node is at work; on the next connection nothing is held back."""
        if not self._is_at_work():
            return
        consumer, tasks = self._consumer, self._consumer.task_consumer
        queues = consumer.app.amqp.queues.consume_from
        tasks.cancel_by_queue(self._queue)
        self._empty()  # what was sent again, as it took long
        for queue in queues.values():
            tasks.add_queue(queue)
        tasks.consume()
        self.say()
        logger.info("This node takes tasks now, from %s.", ", ".join(sorted(queues)) or "no queue")

    def _ask(self) -> None:
        """Put a task into this node's own queue, unless Redis is full: then nodes have to make room first."""
        own.asked, own.error = time.monotonic(), ""
        try:
            self._empty()
            self._send()
        except ResponseError as error:
            if not is_full(error):
                raise
            own.error = f"It could not be sent, since Redis is full: {error}"
            if not own.failed:
                logger.warning("Redis is full, so this node begins without a proof that it works: %s", error)
                own.at, own.excused = time.time(), True
                _tell(Probation.end)

    def _send(self) -> None:
        """Send the task by this connection, and past the app's routes, which may not know it."""
        amqp = self._consumer.app.amqp
        message = amqp.as_task_v2(uuid(), NAME, expires=PATIENCE, time_limit=LIMIT, ignore_result=True)
        producer = amqp.Producer(self._consumer.connection.default_channel, auto_declare=False)
        producer.publish(
            message.body,
            exchange="",
            routing_key=self._queue,
            serializer=self._consumer.app.conf.task_serializer,
            headers=message.headers,
            **message.properties,
        )

    def _empty(self) -> None:
        """Remove what is in this node's own queue."""
        with self._consumer.connection.default_channel.conn_or_acquire() as client:
            client.delete(self._queue)

    def _look(self) -> None:
        """Say that the proof is not there yet, and try again if it failed or was lost."""
        if not self._is_at_work():
            return  # the next connection begins anew
        if own.at is None:
            self._complain()
        elif not self._consumes():
            self.end()  # which did not come to its end
        if own.at is None or not self._consumes():
            self._look_later()

    def _complain(self) -> None:
        """Say that the proof is not there, and ask for another unless one is under way."""
        waited = time.monotonic() - own.asked
        own.failed = own.failed or waited > LIMIT
        logger.log(
            logging.ERROR if own.failed else logging.WARNING,
            "This node has not run the task by which it proves that it works, and takes no other. %s",
            own.error or "It has not ended yet.",
        )
        runs = any(request.name == NAME for request in copied(state.active_requests))
        if own.error or (waited > PATIENCE and not runs):
            self._ask()

    def _look_later(self) -> None:
        """Look again in a while, and only once, however often this is said."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._consumer.timer.call_after(LOOK, self.loop, (self._look,))

    def _is_at_work(self) -> bool:
        """Return whether the consumer has a connection, which it may just have lost, and does not stop."""
        channel = getattr(self._consumer.task_consumer, "channel", None)
        connected = getattr(channel, "connection", None) is not None
        return connected and self._consumer.blueprint.state == bootsteps.RUN

    def _consumes(self) -> bool:
        """Return whether this node consumes its queues."""
        tasks, queues = self._consumer.task_consumer, self._consumer.app.amqp.queues.consume_from
        return all(tasks.consuming_from(queue.name) for queue in queues.values())

    def _hurry(self, **_: Any) -> None:
        """Do not let the node's stop wait for a proof as for a task of others: nobody misses it.

        A pool of threads cannot end it.
        """
        if own.at is None:
            timer = threading.Timer(HURRY, os.kill, (os.getpid(), signal.SIGQUIT))
            timer.daemon = True
            timer.start()


def _tell(what: Callable[[Probation], None]) -> None:
    """Let this process's node do something; whatever thread this is, its loop does it."""
    if current := Probation.current:
        current.loop(partial(what, current))
