# SPDX-License-Identifier: MIT
"""Celery's consumer and requests as they are since version 5.7, for Celery 5.5 and 5.6 as well.

With Celery 5.7 as the oldest supported version this module can go, and Celery's own classes take the place of
those at its end.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from billiard.common import human_status
from billiard.einfo import ExceptionInfo, ExceptionWithTraceback
from celery import states
from celery.exceptions import WorkerLostError
from celery.utils.saferepr import saferepr
from celery.worker import state
from celery.worker.consumer import Consumer as StockConsumer
from celery.worker.request import Request as StockRequest
from vine import ppartial, promise

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)


class OlderConsumer(StockConsumer):
    """Celery's consumer, which acknowledges at once, and closes a lost connection."""

    connection: Any

    def call_soon_ack(self, p: Any, *args: Any, **kwargs: Any) -> Any:
        """Acknowledge or reject in the loop, or at once if there is none.

        Celery's waits for the next turn of the consumer, which may be seconds later. A message whose
        connection is lost before that was never acknowledged.
        """
        call = ppartial(p, *args, **kwargs)
        if self.hub:
            return self.hub.call_soon(call)
        try:
            call()
        except Exception:
            logger.exception("A message could not be acknowledged.")
        return call

    def create_task_handler(self, promise: Callable[..., Any] = promise) -> Any:
        """Return the handler of messages."""

        def promise_ack(function: Any, *args: Any, **options: Any) -> Any:
            return promise(self.call_soon_ack if function == self.call_soon else function, *args, **options)

        return super().create_task_handler(promise=promise_ack)

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Prepare for the next connection. Without this, the lost one would be fetched from until then."""
        super().on_connection_error_after_connected(exc)
        connection, self.connection = self.connection, None
        if connection:
            with suppress(Exception):
                connection.close()

    def add_task_queue(self, queue: Any, *args: Any, **options: Any) -> Any:
        """Consume one more queue, with the next connection, too."""
        queues = self.app.amqp.queues
        if queue in queues:
            queues.select_add(queues[queue])
        return super().add_task_queue(queue, *args, **options)


class OlderRequest(StockRequest):
    """Celery's request, which knows a process that was lost."""

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> Any:
        """Handle an exception of the task, or a crash of its process."""
        error = exc_info.exception
        if isinstance(error, ExceptionWithTraceback):
            error = error.exc
        if isinstance(error, (SystemExit, KeyboardInterrupt)):
            # billiard 4.3 reports that a task ends its process. billiard 4.2 finds the process lost.
            if self._already_cancelled or self._already_revoked:
                state.task_ready(self)
                return None
            exc_info = _lost_process(error)
            error = exc_info.exception
        is_lost = isinstance(getattr(error, "exc", error), WorkerLostError)
        if is_lost and (meta := self._success_was_stored()):
            logger.warning("Task %s[%s] succeeded before its process was lost.", self.name, self.id)
            state.task_ready(self)
            if self.task.acks_late:
                self.acknowledge()
            result = saferepr(meta.get("result"), self.task.resultrepr_maxsize)
            self.send_event("task-succeeded", result=result, runtime=None)
            return None
        return super().on_failure(exc_info, send_failed_event, return_ok)

    def _success_was_stored(self) -> Any:
        """Return the stored result if the task has succeeded; else False."""
        if self.ignore_result:
            return False
        try:
            meta = self.task.backend._get_task_meta_for(self.id)
        except Exception:  # the failure is handled without it
            return False
        return meta if meta["status"] == states.SUCCESS else False


def _lost_process(error: BaseException) -> ExceptionInfo:
    """Return the error of a process that a task has ended."""
    code = getattr(error, "code", 0)
    status = human_status(code if isinstance(code, int) else int(code is not None))
    try:
        raise WorkerLostError(f"Worker exited prematurely: {status}.")
    except WorkerLostError:
        return ExceptionInfo()


IS_OLDER = not hasattr(StockConsumer, "call_soon_ack")
Consumer: Any = OlderConsumer if IS_OLDER else StockConsumer
Request: Any = OlderRequest if IS_OLDER else StockRequest


def scheduled(consumer: Any) -> dict[Any, Any]:
    """Return the requests that wait for their ETA, each with its entry in the timer of the consumer."""
    if not IS_OLDER:
        while True:
            with suppress(RuntimeError):  # another thread has changed the set
                return {request: request._eta_timer_entry for request in state.scheduled_requests}
    entries = [scheduled.entry for scheduled in consumer.timer.queue]
    return {
        entry.args[0]: entry
        for entry in entries
        if not entry.canceled and entry.args and isinstance(entry.args[0], StockRequest)
    }
