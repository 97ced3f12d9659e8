# SPDX-License-Identifier: MIT
"""What becomes of a message whose task fails for good, or whose task kills who runs it.

Celery decides what is final: what it would drop for a failure is moved to the dead letters, before Celery
acknowledges it. What it puts back into the queue, or retries, is not touched.
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
from celery.worker.request import Request
from kombu.exceptions import ContentDisallowed, DecodeError
from kombu.transport import virtual
from kombu.utils.json import dumps

from fleet_runtime.dead_letters import store
from fleet_runtime.dead_letters.model import COUNTED, End, Reason
from fleet_runtime.inspect import probe
from fleet_runtime.messages.headers import RECOVERED
from fleet_runtime.messages.sent_at import SENT
from fleet_runtime.prefork.time_limits import requested

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger(__name__)

# Headers of the runtime's own. A task would find them in `request.headers`, and a retry would send them on.
OWN_HEADERS = (RECOVERED, SENT)

# What is raised for a message that Celery itself knows what to do with.
KNOWN_FAULTS = (InvalidTaskError, ContentDisallowed, DecodeError)


class Burial(NamedTuple):
    """A message on its way to the dead letters, as `dead_letters.bury` wants it."""

    message: Any
    end: End
    node: str
    started: float | None = None
    held: bool = True


# What Redis has refused so far, by delivery tag. It is held still.
postponed: dict[str, Burial] = {}
_one_loss_at_a_time = threading.RLock()


class Mortal(Request):  # type: ignore[misc]  # celery ships no types
    """A request that leaves a letter when its task fails for good."""

    acknowledged: bool
    time_limits: tuple[float | None, float | None]
    _end: End | None = None
    _buried = False

    def __init__(self, message: Any, *args: Any, **kwargs: Any) -> None:
        """Read a message.

        Raises:
            InvalidTaskError: It is no message of a task. Celery 5.7 raises a KeyError, a TypeError, or
                another one for most of these, now or later, which ends the node.
        """
        try:
            super().__init__(message, *args, **kwargs)
            _require_sound(self)
        except KNOWN_FAULTS:
            raise
        except Exception as error:
            raise InvalidTaskError(f"{type(error).__name__}: {error}") from error
        for name in OWN_HEADERS:
            self._request_dict.pop(name, None)  # Celery's copy; the message keeps its own
        task = self.task
        self.time_limits = requested(self.time_limits, (task.time_limit, task.soft_time_limit))

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> Any:
        """Handle a task's exception, or the loss of its process."""
        self._end = self._judge(exc_info)
        if self._end and self.acknowledged and not self.task.acks_late:
            self._bury()  # Celery has nothing more to acknowledge
        try:
            with self._unless_poison():
                return super().on_failure(exc_info, send_failed_event, return_ok)
        except Exception as error:
            self._settle(error)
            raise

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Handle a time limit."""
        if not soft:
            self._end = End.of(Reason.TIMEOUT, TimeLimitExceeded(timeout))
        super().on_timeout(soft, timeout)

    def acknowledge(self) -> None:
        """Acknowledge the message; one that is dead is moved first."""
        if self._end and not self.acknowledged and not self._bury():
            return
        super().acknowledge()
        at_once = getattr(self.message.channel, "flush_soon", None)  # kombu's own channels lack it
        if at_once and not self.task.acks_late:
            at_once()

    def reject(self, requeue: bool = False) -> None:
        """Reject the message; one that is not to come back is moved first."""
        if not (requeue or self.acknowledged):
            self._end = self._end or End.of(Reason.REJECTED, sys.exception())
            if not self._bury():
                return
        super().reject(requeue)

    def kills(self) -> bool:
        """Return whether this has killed who ran it too often to be run again.

        Only what was handed out before costs a question to Redis. If that cannot be asked, it is run: else
        nothing would run for as long as its answer takes.
        """
        headers = self._message.headers
        if not headers.get("redelivered"):
            return False
        recovered = bool(headers.get(RECOVERED))
        try:
            # A recovered message was held by a node that died. Its mark goes, so that this counts once.
            record = self._unmarked() if recovered else ""
            losses = store.count_losses(self._message, more=recovered, record=record)
        except Exception:
            logger.warning("The losses of %s[%s] cannot be read.", self.name, self.id, exc_info=True)
            return False
        return losses >= store.settings().max_losses

    def refuse(self) -> None:
        """Let this fail without another try, as Celery fails what lost its process."""
        try:
            raise WorkerLostError("The process that ran this task died, too often for another try.")
        except WorkerLostError as error:
            self._end = End.of(Reason.POISON, error)
            info = ExceptionInfo()
        with self._unless_poison():
            super().on_failure(info)
        if not self.acknowledged:  # Celery takes a task without late acknowledgement to be so already
            self.acknowledge()

    def _announce_revoked(self, reason: str, terminated: bool, signum: Any, expired: bool) -> None:
        """Drop the message of a task that was revoked, or that expired."""
        # A probe that nobody waits for is worth nothing.
        if expired and self.name != probe.NAME and store.settings().dead_letter_expired:
            self._end = End(Reason.EXPIRED, f"It was to start before {self.expires}.")
        super()._announce_revoked(reason, terminated, signum, expired)

    def _success_was_stored(self) -> Any:
        """Return the result of a task that lost its process only after it was done: that is no failure."""
        found = super()._success_was_stored()
        if found:
            self._end = None
        return found

    def _judge(self, exc_info: Any) -> End | None:
        """Return how this ends, should Celery drop it now; None if that were no failure."""
        error = raised(exc_info)
        reason: Reason | None = Reason.FAILED
        if isinstance(error, (Retry, Ignore, Terminated)):
            reason = None
        elif isinstance(error, Reject):
            reason = None if error.requeue else Reason.REJECTED
        elif isinstance(error, (WorkerLostError, SystemExit, KeyboardInterrupt)):
            reason = None if self._already_cancelled or self._already_revoked else self._lose()
        elif isinstance(error, TimeLimitExceeded):
            reason = Reason.TIMEOUT
        return End.of(reason, error, str(exc_info.traceback)) if reason else None

    def _lose(self) -> Reason:
        """Count that the process is lost, and return what this is if it does not run again."""
        if state.should_terminate or not (self.task.acks_late and self.task.reject_on_worker_lost):
            return Reason.LOST
        try:
            losses = store.count_losses(self._message, more=True)
        except Exception:
            logger.warning("The loss of %s[%s] cannot be counted.", self.name, self.id, exc_info=True)
            return Reason.LOST
        return Reason.POISON if losses >= store.settings().max_losses else Reason.LOST

    @contextmanager
    def _unless_poison(self) -> Iterator[None]:
        """Keep Celery from putting poison back into its queue.

        It asks the task, and no one else, whether to (celery 5.7, Request.on_failure). Nothing else asks
        meanwhile: in a pool of threads, several tasks may end so at a time, one after another.
        """
        if not (self._end and self._end.reason in COUNTED):
            yield
            return
        task = self.task
        with _one_loss_at_a_time:
            kept = task.reject_on_worker_lost
            task.reject_on_worker_lost = kept and self._end.reason != Reason.POISON
            try:
                yield
            finally:
                task.reject_on_worker_lost = kept

    def _settle(self, error: Exception) -> None:
        """Acknowledge a message whose failure could not be handled to its end, after moving it.

        Else it would be held for as long as this node lives, with the place that it takes.
        """
        if self.acknowledged or self._already_cancelled or self._already_revoked:
            return
        self._end = self._end or End.of(Reason.FAILED, error)
        self.acknowledge()

    def _bury(self) -> bool:
        """Move the message to the dead letters; return whether Celery may acknowledge it now.

        If it cannot be moved, it stays among what the node holds. So what goes wrong here must not go on to
        Celery, which would then drop it.
        """
        if self._buried or not self._end:
            return True
        self._buried = True
        what = f"Task {self.name}[{self.id}] failed for good, and"
        held = self.task.acks_late or not self.acknowledged
        if bury(what, Burial(self._message, self._end, self.hostname, self.time_start, held)):
            return True
        self.acknowledged = True
        return False

    def _unmarked(self) -> str:
        """Return the message's record without the mark of a recovered one."""
        raw, delivery = self._message._raw, self._message.delivery_info
        headers = {name: value for name, value in raw["headers"].items() if name != RECOVERED}
        return str(dumps([{**raw, "headers": headers}, delivery["exchange"], delivery["routing_key"]]))


class FleetRequest(Mortal):
    """Celery's own request, which most tasks have."""


def raised(exc_info: Any) -> Any:
    """Return the exception that a task has raised, whichever process it was in."""
    error = exc_info.exception
    return error.exc if isinstance(error, ExceptionWithTraceback) else error


def adopt(task: Any) -> None:
    """Let the requests of a task leave letters, whatever class they are of."""
    given = symbol_by_name(task.Request)
    if not issubclass(given, Mortal):
        task.Request = FleetRequest if given is Request else _mixed(given)


def bury(what: str, burial: Burial) -> bool:
    """Move a message to the dead letters; return whether it is there, so that Celery may drop it.

    If it cannot be moved, because Redis is full or away, this node keeps it, and tries again with each beat.
    Should it end before, the message runs again, rather than being lost.

    Args:
        what: What it is, and that it is dead: the beginning of a sentence.
        burial: The message.
    """
    try:
        _bury(burial)
    except Exception:
        logger.critical("%s cannot be moved to the dead letters. This node keeps it, and tries again.",
                        what, exc_info=True)  # fmt: skip
        postponed[burial.message.delivery_tag] = burial
        # It is no more among what this node has reserved, or no other message would find room.
        virtual.QoS.ack(burial.message.channel.qos, burial.message.delivery_tag)
        return False
    return True


def bury_postponed(channel: Any) -> None:
    """Move to the dead letters what could not be moved there before."""
    for tag, burial in tuple(postponed.items()):
        burial.message.channel = channel
        try:
            _bury(burial)
        except Exception as error:
            logger.warning("Messages that wait for the dead letters: %d. %s", len(postponed), error)
            continue
        del postponed[tag]


def _bury(burial: Burial) -> None:
    """Move a message to the dead letters."""
    message, end, node, started, held = burial
    store.bury(message, end, node=node, started=started, held=held)


@cache
def _mixed(given: type[Any]) -> type[Any]:
    """Return a class of requests as a subclass that leaves letters."""
    return type(given.__name__, (Mortal, given), {})


def _require_sound(request: Mortal) -> None:
    """Refuse what would fail only after the node has taken the task on.

    Raises:
        InvalidTaskError: A header is not what it must be.
    """
    headers = request.request_dict
    embedded = request._payload[2]
    limits = headers.get("timelimit") or (None, None)
    faults = {
        "id": not (isinstance(request.id, str) and request.id),
        "timelimit": len(limits) != 2 or not all(isinstance(one, (int, float, type(None))) for one in limits),
        "stamped_headers": not isinstance(headers.get("stamped_headers") or [], (list, tuple)),
        "stamps": not isinstance(headers.get("stamps") or {}, dict),
        "retries": not isinstance(headers.get("retries") or 0, int),
        "the body's third part": not isinstance(embedded or {}, dict),
    }
    if any(faults.values()):
        raise InvalidTaskError(f"{', '.join(name for name, is_so in faults.items() if is_so)} cannot be used")
