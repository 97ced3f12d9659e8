# SPDX-License-Identifier: MIT
"""The readiness gate: a node fetches nothing from its queues until it has run a task of its own.

A node whose app is broken seems healthy until it runs something, and by then it has fetched tasks. So each
node begins with a queue of its own, and sends a self-test to it. The node consumes its queues once that has
passed. A node that has only reconnected to its broker goes on at once.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
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
from fleet_runtime.recovery.inflight import snapshot
from fleet_runtime.worker.context import WorkerContext
from fleet_runtime.worker.request import DeadLetterRequest, raised_exception

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery import Celery
    from celery.worker.consumer import Consumer

logger = logging.getLogger(__name__)

# Name of the self-test. A release before has this name, too.
NAME = "fleet.proof"
# Seconds between two checks of a self-test that has not passed. Then a failed one is sent again.
CHECK_INTERVAL_S = 10.0
# Seconds that the self-test may run, in pools that can end a task.
TIME_LIMIT_S = 30.0
# Seconds after which a self-test that does not run expires, and is sent again.
EXPIRES_S = 60.0
# Seconds that a node which stops waits for its self-test.
STOP_TIMEOUT_S = 5.0
# Seconds after a soft shutdown in which the process ends by itself.
EXIT_TIMEOUT_S = 5.0


class SelfTestTask(Task):
    """A task that the app's instrumentation does not see: no signal is sent for it, and nothing traces it.

    It is not a task of the app. Otherwise the app's counts, spans and transactions would have one for each
    start of a node: OpenTelemetry uses signals, and Sentry the function that builds the tracer of a task.
    """

    Strategy = "fleet_runtime.worker.readiness:strategy"

    @property
    def __trace__(self) -> Callable[..., Any]:
        """The function by which Celery runs this task."""
        return self._run_untraced

    @__trace__.setter
    def __trace__(self, tracer: Callable[..., Any]) -> None:
        """Ignore the tracer that Celery, or an instrumentation in its place, builds for each task."""

    def _run_untraced(self, uuid: str, args: Any, kwargs: Any, request: Any = None) -> Any:
        """Run the task as Celery's tracer runs a task without a result (celery 5.7, trace.build_tracer)."""
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
    """Register the self-test with an app."""

    @app.task(name=NAME, base=SelfTestTask, shared=False)
    def self_test() -> None:
        """Do nothing: that it runs is the test."""


def strategy(task: Any, app: Celery, consumer: Any) -> Callable[..., None]:
    """Return the handler of messages of the self-test: Celery's strategy without signal, log and rate limit.

    Args:
        task: The self-test.
        app: The app.
        consumer: The consumer of the node.
    """
    request_class = create_request_cls(
        task.Request, task, consumer.pool, consumer.hostname, consumer.event_dispatcher, app=app
    )

    def handle(message: Any, body: Any, ack: Any, reject: Any, callbacks: Any) -> None:
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

    return handle


def configure_task(task: Any) -> None:
    """Set the options of the self-test, whatever the app's annotations set for all tasks.

    It is acknowledged late: with early acknowledgement, it would pass when it begins.
    """
    task.acks_late, task.ignore_result, task.send_events, task.rate_limit = True, True, False, None
    task.time_limit, task.soft_time_limit = TIME_LIMIT_S, None
    task.Request, task.Strategy = SelfTestRequest, SelfTestTask.Strategy


class SelfTestRequest(DeadLetterRequest):
    """The request of the self-test, whose end the readiness gate waits for.

    However it ends, its message is dropped: it leaves no dead letter and no result, and sends no signal.
    After a failure, another self-test is sent.
    """

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> Any:
        """Record an exception of the task, or a crash of its process."""
        error = raised_exception(exc_info)
        self._fail(f"{type(error).__name__}: {error}")

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Record an exceeded hard time limit. After a soft one, its exception follows."""
        if not soft:
            self._fail(f"It did not end within its time limit of {timeout:g} s.")

    def acknowledge(self) -> None:
        """Acknowledge the message, and open the gate if the task succeeded.

        Celery 5.7 calls no method of the request at success, but this one, since the task is acknowledged
        late.
        """
        super().acknowledge()
        self_test = self.context.self_test
        if self.id in state.successful_requests and self_test.passed_at is None:
            self_test.passed_at, self_test.error = time.time(), ""
            self._call_gate(ReadinessGate.open)

    def fail_as_poison(self) -> None:
        """Record that the process crashes each time."""
        self._fail("The process that ran it died, each time.")

    def _announce_revoked(self, reason: str, terminated: bool, signum: Any, expired: bool) -> None:
        """Record that the task expired or was revoked."""
        self._fail(f"It was {reason}.")

    def _fail(self, error: str) -> None:
        """Record a failure, and drop the message."""
        self.context.self_test.error, self.context.self_test.failed = error, True
        state.task_ready(self)
        self.acknowledge()
        self._call_gate(ReadinessGate.announce)

    def _call_gate(self, method: Callable[[ReadinessGate], None]) -> None:
        """Let the loop of the node call a method of the gate; this may be another thread."""
        if gate := self.context.readiness_gate:
            gate.call_soon(partial(method, gate))

    def _to_dead_letters(self) -> bool:
        """Let Celery drop the message."""
        return True


class ReadinessGate(bootsteps.StartStopStep):
    """Holds the queues of a node back until its self-test has passed."""

    # It needs the consumer, and the messages that the node held before are requeued first.
    requires = ("fleet_runtime.worker.bootsteps:Recovery",)

    def __init__(self, consumer: Any, **options: Any) -> None:
        """Create the gate of a consumer."""
        super().__init__(consumer, **options)
        context = WorkerContext.of(consumer)
        context.readiness_gate = self
        self._consumer = consumer
        self._self_test = context.self_test
        self._queue = keys.self_test_queue(context.node)
        self._timer: Any = None
        self.call_soon = consumer.call_soon
        signals.worker_shutting_down.connect(self._bound_stop, weak=False, dispatch_uid="fleet.readiness")

    def start(self, consumer: Consumer) -> None:
        """Close the gate on a new connection, unless the self-test has passed."""
        if self._self_test.passed_at is not None:
            return
        for queue in consumer.task_consumer.queues:
            consumer.task_consumer.cancel_by_queue(queue)
        # The queue is not declared: no exchange routes to it, and nothing of it stays.
        consumer.task_consumer.add_queue(probe.direct(self._queue, no_declare=True))
        self._begin_test()
        self._check_later()

    def announce(self) -> None:
        """Publish the state of the node, if it is connected."""
        if self._is_running():
            self._consumer.announce()

    def open(self) -> None:
        """Consume the queues, if the node is connected. On the next connection the gate stays open."""
        if not self._is_running():
            return
        consumer, tasks = self._consumer, self._consumer.task_consumer
        queues = consumer.app.amqp.queues.consume_from
        tasks.cancel_by_queue(self._queue)
        self._empty_queue()  # a slow self-test was sent again
        for queue in queues.values():
            tasks.add_queue(queue)
        tasks.consume()
        self.announce()
        logger.info("This node takes tasks now, from %s.", ", ".join(sorted(queues)) or "no queue")

    def _begin_test(self) -> None:
        """Send a self-test. If Redis is full, skip it: nodes have to make room first."""
        test = self._self_test
        test.started, test.error = time.monotonic(), ""
        try:
            self._empty_queue()
            self._send()
        except ResponseError as error:
            if not is_full(error):
                raise
            test.error = f"It could not be sent, since Redis is full: {error}"
            if not test.failed:
                logger.warning("Redis is full, so this node begins without a self-test: %s", error)
                test.passed_at, test.skipped = time.time(), True
                self.call_soon(self.open)

    def _send(self) -> None:
        """Send the self-test on this connection, without the app's routes, which may not know it."""
        amqp = self._consumer.app.amqp
        message = amqp.as_task_v2(
            uuid(), NAME, expires=EXPIRES_S, time_limit=TIME_LIMIT_S, ignore_result=True
        )
        producer = amqp.Producer(self._consumer.connection.default_channel, auto_declare=False)
        producer.publish(
            message.body,
            exchange="",
            routing_key=self._queue,
            serializer=self._consumer.app.conf.task_serializer,
            headers=message.headers,
            **message.properties,
        )

    def _empty_queue(self) -> None:
        """Delete the queue of the self-test."""
        with self._consumer.connection.default_channel.conn_or_acquire() as client:
            client.delete(self._queue)

    def _check(self) -> None:
        """Log that the self-test has not passed, and send it again if it failed or was lost."""
        if not self._is_running():
            return  # the next connection begins again
        if self._self_test.passed_at is None:
            self._report()
        elif not self._consumes():
            self.open()  # an attempt before was interrupted
        if self._self_test.passed_at is None or not self._consumes():
            self._check_later()

    def _report(self) -> None:
        """Log that the self-test has not passed, and send another one unless one is under way."""
        test = self._self_test
        waited = time.monotonic() - test.started
        test.failed = test.failed or waited > TIME_LIMIT_S
        logger.log(
            logging.ERROR if test.failed else logging.WARNING,
            "This node has not passed its self-test, and takes no other task. %s",
            test.error or "It has not ended yet.",
        )
        runs = any(request.name == NAME for request in snapshot(state.active_requests))
        if test.error or (waited > EXPIRES_S and not runs):
            self._begin_test()

    def _check_later(self) -> None:
        """Start the timer of the next check, in place of the one before."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._consumer.timer.call_after(CHECK_INTERVAL_S, self.call_soon, (self._check,))

    def _is_running(self) -> bool:
        """Return whether the consumer is connected, as far as it knows, and does not stop."""
        channel = getattr(self._consumer.task_consumer, "channel", None)
        connected = getattr(channel, "connection", None) is not None
        return connected and self._consumer.blueprint.state == bootsteps.RUN

    def _consumes(self) -> bool:
        """Return whether this node consumes its queues."""
        tasks, queues = self._consumer.task_consumer, self._consumer.app.amqp.queues.consume_from
        return all(tasks.consuming_from(queue.name) for queue in queues.values())

    def _bound_stop(self, **_: Any) -> None:
        """Stop the node at once if it waits only for its self-test, which a pool of threads cannot end."""
        if self._self_test.passed_at is None:
            soft_shutdown_s = self._consumer.app.conf.worker_soft_shutdown_timeout
            threading.Thread(target=_end_process, args=(soft_shutdown_s,), name="stop", daemon=True).start()


def _end_process(soft_shutdown_s: float) -> None:
    """End this process by a soft shutdown, and if a thread outlives that, without waiting for it.

    Python joins the threads of a pool as it ends. Until 3.12 it took a thread whose join a signal had
    interrupted for ended; from 3.13 on it waits for as long as the self-test runs.

    Args:
        soft_shutdown_s: Seconds for which Celery's soft shutdown waits for tasks.
    """
    time.sleep(STOP_TIMEOUT_S)
    os.kill(os.getpid(), signal.SIGQUIT)
    time.sleep(soft_shutdown_s + EXIT_TIMEOUT_S)
    os._exit(os.EX_OK)
