# SPDX-License-Identifier: MIT
"""The requests of a node. A message whose task fails for good, or keeps crashing, becomes a dead letter.

Celery decides what is final. A message that Celery would drop after a failure is moved to the dead letters
before Celery acknowledges it. A message that Celery requeues, or retries, is left alone.
"""

from __future__ import annotations

import logging
import sys
import threading
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from billiard.einfo import ExceptionInfo, ExceptionWithTraceback
from celery.exceptions import (
    Ignore,
    InvalidTaskError,
    Reject,
    Retry,
    Terminated,
    TimeLimitExceeded,
    WorkerLostError,
)
from celery.utils.imports import symbol_by_name
from celery.worker import state
from kombu.exceptions import ContentDisallowed, DecodeError
from kombu.transport import virtual
from kombu.utils.json import dumps

from fleet_runtime.compat import older_worker
from fleet_runtime.dead_letters import store
from fleet_runtime.dead_letters.model import COUNTED_REASONS, End, Reason
from fleet_runtime.inspect import probe
from fleet_runtime.messages.headers import RECOVERED
from fleet_runtime.messages.sent_at import SENT
from fleet_runtime.prefork.time_limits import requested

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fleet_runtime.worker.context import WorkerContext

logger = logging.getLogger(__name__)

# Headers that the runtime adds. A task would find them in `request.headers`, and a retry would send them on.
OWN_HEADERS = (RECOVERED, SENT)

# Errors of messages that Celery handles itself.
HANDLED_BY_CELERY = (InvalidTaskError, ContentDisallowed, DecodeError)


class DeadLetterCandidate(NamedTuple):
    """A message on its way to the dead letters: the arguments of `store.move_message`."""

    message: Any
    end: End
    node: str
    started: float | None = None
    held: bool = True


# Held while a task's `reject_on_worker_lost` is changed.
_crash_lock = threading.RLock()


class DeadLetterRequest(older_worker.Request):
    """A request whose message becomes a dead letter when its task fails for good.

    Attributes:
        context: Of the node. `use_dead_letter_requests` makes a subclass that has it.
    """

    context: WorkerContext
    acknowledged: bool
    time_limits: tuple[float | None, float | None]
    _end: End | None = None
    _is_dead_lettered = False

    def __init__(self, message: Any, *args: Any, **kwargs: Any) -> None:
        """Parse a message.

        Raises:
            InvalidTaskError: It is not a message of a task. For most of these, Celery 5.7 raises a KeyError,
                a TypeError or another error, now or later, which ends the node.
        """
        try:
            super().__init__(message, *args, **kwargs)
            _require_sound(self)
        except HANDLED_BY_CELERY:
            raise
        except Exception as error:
            raise InvalidTaskError(f"{type(error).__name__}: {error}") from error
        for name in OWN_HEADERS:
            self._request_dict.pop(name, None)  # in Celery's copy; the message keeps its headers
        task = self.task
        self.time_limits = requested(self.time_limits, (task.time_limit, task.soft_time_limit))

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> Any:
        """Handle an exception of the task, or a crash of its process."""
        self._end = self._judge(exc_info)
        if self._end and self.acknowledged and not self.task.acks_late:
            self._to_dead_letters()  # it is acknowledged already, so Celery does not ask again
        try:
            with self._unless_poison():
                return super().on_failure(exc_info, send_failed_event, return_ok)
        except Exception as error:
            self._acknowledge_failure(error)
            raise

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Handle an exceeded time limit."""
        if not soft:
            self._end = End.of(Reason.TIMEOUT, TimeLimitExceeded(timeout))
        super().on_timeout(soft, timeout)

    def acknowledge(self) -> None:
        """Acknowledge the message, after moving it to the dead letters if its task failed for good."""
        if self._end and not self.acknowledged and not self._to_dead_letters():
            return
        super().acknowledge()
        at_once = getattr(self.message.channel, "flush_soon", None)  # channels of kombu lack it
        if at_once and not self.task.acks_late:
            at_once()

    def reject(self, requeue: bool = False) -> None:
        """Reject the message, after moving it to the dead letters if it is not requeued."""
        if not (requeue or self.acknowledged):
            self._end = self._end or End.of(Reason.REJECTED, sys.exception())
            if not self._to_dead_letters():
                return
        super().reject(requeue)

    def has_crashed_too_often(self) -> bool:
        """Return whether the message has crashed its process too often to run again.

        Only for a redelivered message is Redis asked. If Redis does not answer, the message runs: otherwise
        nothing would run until Redis answers.
        """
        headers = self._message.headers
        if not headers.get("redelivered"):
            return False
        recovered = bool(headers.get(RECOVERED))
        try:
            # The node that held a recovered message died. Its header goes, so that this crash counts once.
            record = self._record_without_recovered() if recovered else ""
            crash_count = store.count_crashes(self._message, more=recovered, record=record)
        except Exception:
            logger.warning("The crash count of %s[%s] cannot be read.", self.name, self.id, exc_info=True)
            return False
        return crash_count >= self.context.settings.max_crashes

    def fail_as_poison(self) -> None:
        """Fail the task without running it again, as Celery fails a task whose process crashed."""
        try:
            raise WorkerLostError("The process that ran this task has crashed too often to run it again.")
        except WorkerLostError as error:
            self._end = End.of(Reason.POISON, error)
            info = ExceptionInfo()
        with self._unless_poison():
            super().on_failure(info)
        if not self.acknowledged:  # Celery assumes that a task without late acknowledgement already is
            self.acknowledge()

    def _announce_revoked(self, reason: str, terminated: bool, signum: Any, expired: bool) -> None:
        """Handle the message of a task that was revoked, or that expired; a probe leaves no dead letter."""
        if expired and self.name != probe.NAME and self.context.settings.dead_letter_expired:
            self._end = End(Reason.EXPIRED, f"The task was to start before {self.expires}.")
        super()._announce_revoked(reason, terminated, signum, expired)

    def _success_was_stored(self) -> Any:
        """Return the stored result of a task whose process crashed only after it: that is not a failure."""
        result = super()._success_was_stored()
        if result:
            self._end = None
        return result

    def _judge(self, exc_info: Any) -> End | None:
        """Return how the task ends if Celery drops the message now; None if that is not a failure."""
        error = raised_exception(exc_info)
        reason: Reason | None = Reason.FAILED
        if isinstance(error, (Retry, Ignore, Terminated)):
            reason = None
        elif isinstance(error, Reject):
            reason = None if error.requeue else Reason.REJECTED
        elif isinstance(error, (WorkerLostError, SystemExit, KeyboardInterrupt)):
            reason = None if self._already_cancelled or self._already_revoked else self._count_crash()
        elif isinstance(error, TimeLimitExceeded):
            reason = Reason.TIMEOUT
        return End.of(reason, error, str(exc_info.traceback)) if reason else None

    def _count_crash(self) -> Reason:
        """Count a crash, and return the reason of the dead letter if the message does not run again."""
        if state.should_terminate or not (self.task.acks_late and self.task.reject_on_worker_lost):
            return Reason.LOST
        try:
            crash_count = store.count_crashes(self._message, more=True)
        except Exception:
            logger.warning("The crash of %s[%s] cannot be counted.", self.name, self.id, exc_info=True)
            return Reason.LOST
        return Reason.POISON if crash_count >= self.context.settings.max_crashes else Reason.LOST

    @contextmanager
    def _unless_poison(self) -> Iterator[None]:
        """Keep Celery from requeuing a poison message.

        Celery reads `task.reject_on_worker_lost` (celery 5.7, Request.on_failure), so it is false for the
        time of the call. The lock keeps the calls of other threads out: a pool of threads may end several
        tasks at a time.
        """
        if not (self._end and self._end.reason in COUNTED_REASONS):
            yield
            return
        task = self.task
        with _crash_lock:
            original = task.reject_on_worker_lost
            task.reject_on_worker_lost = original and self._end.reason != Reason.POISON
            try:
                yield
            finally:
                task.reject_on_worker_lost = original

    def _acknowledge_failure(self, error: Exception) -> None:
        """Dead-letter and acknowledge a message whose failure Celery could not handle.

        Otherwise it would stay unacknowledged for as long as this node lives, and take a slot.
        """
        if self.acknowledged or self._already_cancelled or self._already_revoked:
            return
        self._end = self._end or End.of(Reason.FAILED, error)
        self.acknowledge()

    def _to_dead_letters(self) -> bool:
        """Move the message to the dead letters; return whether Celery may acknowledge it now.

        A message that cannot be moved stays unacknowledged. No error may reach Celery, which would drop the
        message.
        """
        if self._is_dead_lettered or not self._end:
            return True
        self._is_dead_lettered = True
        what = f"Task {self.name}[{self.id}] failed for good, and"
        held = self.task.acks_late or not self.acknowledged
        candidate = DeadLetterCandidate(self._message, self._end, self.hostname, self.time_start, held)
        if move_or_postpone(what, candidate, self.context):
            return True
        self.acknowledged = True
        return False

    def _record_without_recovered(self) -> str:
        """Return the record of the message without the header of a recovered message."""
        raw, delivery = self._message._raw, self._message.delivery_info
        headers = {name: value for name, value in raw["headers"].items() if name != RECOVERED}
        return str(dumps([{**raw, "headers": headers}, delivery["exchange"], delivery["routing_key"]]))


def raised_exception(exc_info: Any) -> Any:
    """Return the exception that a task has raised, in this process or in a child process."""
    error = exc_info.exception
    return error.exc if isinstance(error, ExceptionWithTraceback) else error


def use_dead_letter_requests(task: Any, context: WorkerContext) -> None:
    """Let the requests of a task become dead letters, whatever class the app has given them."""
    original = symbol_by_name(task.Request)
    if getattr(original, "context", None) is not context:
        task.Request = _request_class(original, context)


def move_or_postpone(what: str, candidate: DeadLetterCandidate, context: WorkerContext) -> bool:
    """Move a message to the dead letters.

    If that fails, because Redis is full or away, this node keeps the message, and tries again with each
    heartbeat of its lease. If the node dies before that, the message runs again, and is not lost.

    Args:
        what: The message and its state, as the beginning of a log record.
        candidate: The message.
        context: The context of the node.

    Returns:
        Whether the message is a dead letter, so that Celery may drop it.
    """
    try:
        store.move_message(*candidate, retention=store.Retention.of(context.settings))
    except Exception:
        logger.critical("%s cannot be moved to the dead letters. This node keeps it, and tries again.",
                        what, exc_info=True)  # fmt: skip
        context.postponed[candidate.message.delivery_tag] = candidate
        # The message no longer counts as prefetched, or this node would fetch no other in its place.
        virtual.QoS.ack(candidate.message.channel.qos, candidate.message.delivery_tag)
        return False
    return True


def retry_postponed(channel: Any, context: WorkerContext) -> None:
    """Move messages to the dead letters that could not be moved there before."""
    postponed = context.postponed
    for tag, candidate in tuple(postponed.items()):
        candidate.message.channel = channel
        try:
            store.move_message(*candidate, retention=store.Retention.of(context.settings))
        except Exception as error:
            logger.warning("Messages that wait for the dead letters: %d. %s", len(postponed), error)
            continue
        del postponed[tag]


@cache
def _request_class(original: type[Any], context: WorkerContext) -> type[Any]:
    """Return a subclass of a class of requests, whose messages become dead letters of a node."""
    bases = (original,) if issubclass(original, DeadLetterRequest) else (DeadLetterRequest, original)
    return type(original.__name__, bases, {"context": context})


def _require_sound(request: DeadLetterRequest) -> None:
    """Refuse a message that would fail only after the node has accepted it.

    Raises:
        InvalidTaskError: A header has a wrong type.
    """
    headers = request.request_dict
    embedded = request._payload[2]
    limits = headers.get("timelimit") or (None, None)
    faults = {
        "id": not (isinstance(request.id, str) and request.id),
        "timelimit": len(limits) != 2
        or any(not isinstance(each, (int, float, type(None))) for each in limits),
        "stamped_headers": not isinstance(headers.get("stamped_headers") or [], (list, tuple)),
        "stamps": not isinstance(headers.get("stamps") or {}, dict),
        "retries": not isinstance(headers.get("retries") or 0, int),
        "the body's third part": not isinstance(embedded or {}, dict),
    }
    if found := [name for name, is_fault in faults.items() if is_fault]:
        raise InvalidTaskError(f"{', '.join(found)} cannot be used")
