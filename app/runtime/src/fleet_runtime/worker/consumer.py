# SPDX-License-Identifier: MIT
"""What becomes of messages that are none, or for no task of this app: they go to the dead letters.

Celery logs them and drops them. Some it cannot even read, and ends.
"""

from __future__ import annotations

import logging
import time
import warnings
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial, wraps
from typing import TYPE_CHECKING, Any

from celery.exceptions import CPendingDeprecationWarning, InvalidTaskError
from celery.worker.consumer import Consumer
from celery.worker.control import control_command
from kombu.exceptions import ContentDisallowed
from redis.exceptions import ResponseError

from fleet_runtime.broker import functions
from fleet_runtime.compat.surface import may_replace
from fleet_runtime.dead_letters.model import End, Reason
from fleet_runtime.inspect.queues import consumed
from fleet_runtime.logging.celery_logging import about
from fleet_runtime.recovery import inflight
from fleet_runtime.transport import broadcast
from fleet_runtime.transport.channel import Channel
from fleet_runtime.worker import readiness
from fleet_runtime.worker.request import Burial, Mortal, adopt, bury
from fleet_runtime.worker.transports import patch_brpop

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

# Tasks that wait here for their rate limit, and make room for others. More leave room for other nodes.
LIMITED = 100
PAUSE = 1.0  # seconds until the next attempt, if Redis has refused something


class FleetConsumer(Consumer):  # type: ignore[misc]  # celery ships no types
    """Celery's consumer, which drops nothing."""

    def __init__(self, on_task_request: Callable[[Any], Any], *args: Any, **kwargs: Any) -> None:
        """Stand between what the node takes from its queues and its pool."""
        # Tells the others how it is, at once; set by `recovery`, which does so again and again.
        self.announce: Callable[[], None] = lambda: None
        # Of those that wait for their rate limit: the ones for which others may be reserved.
        self.limited: set[Any] = set()
        super().__init__(partial(_hand_over, on_task_request), *args, **kwargs)
        patch_brpop()
        broadcast.patch(may_replace)

    def start(self) -> None:
        """Consume until the node stops, or until something ends it that nobody has foreseen."""
        try:
            super().start()
        except Exception:
            # What is held is left to others, as if the process had died: it counts as a loss then.
            inflight.Held.crashed = True
            raise

    def connect(self) -> Any:
        """Connect; of the queues that this node consumes, those that Redis refuses are left out."""
        connection = super().connect()
        channel = connection.default_channel
        if isinstance(channel, Channel):
            channel.skips_refused, channel.on_refused = True, partial(self.call_soon, self._tell)
        return connection

    @property
    def refused(self) -> dict[str, str]:
        """The queues that this node should consume, and that Redis refuses, each with the reason."""
        channel = getattr(self.task_consumer, "channel", None)
        refused = getattr(channel, "refused", {})
        if not refused:
            return {}
        names = consumed(self.app, self.hostname)  # that of a Broadcast queue is none that anybody knows
        return {names.get(queue, queue): reason for queue, reason in refused.items()}

    def _tell(self) -> None:
        """Tell the others how this node is, if it is connected."""
        if self.connection and self.task_consumer:
            self.announce()

    def refusal(self, queue: Any) -> str:
        """Return why this node cannot consume a queue, in a sentence; nothing if it can."""
        if not (isinstance(queue, str) and queue):
            return f"{queue!r:.100} is no name of a queue."
        channel = getattr(self.task_consumer, "channel", None)
        if not isinstance(channel, Channel) or not (reason := channel.refusal(queue)):
            return ""
        return (
            f"Redis refuses the queue {queue}: {reason}. Its access rules have the queues of the inventory, "
            "and a key of that name must be a list."
        )

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Prepare for another connection."""
        with warnings.catch_warnings():
            # That what runs should be cancelled then: it need not be, since it is acknowledged later.
            warnings.simplefilter("ignore", CPendingDeprecationWarning)
            super().on_connection_error_after_connected(exc)
        _pause_if_refused(exc)

    def on_connection_error_before_connected(self, exc: Exception) -> None:
        """Say that there is no connection, and prepare for another one in the same way."""
        super().on_connection_error_before_connected(exc)
        _pause_if_refused(exc)

    def update_strategies(self) -> None:
        """Prepare for each task that there is."""
        readiness.own_task(self.app.tasks[readiness.NAME])
        for task in self.app.tasks.values():
            adopt(task)
        super().update_strategies()

    def add_task_queue(
        self,
        queue: str,
        exchange: str | None = None,
        exchange_type: str | None = None,
        routing_key: str | None = None,
        **options: Any,
    ) -> None:
        """Consume a queue, too, unless Redis refuses it; not before this node has proved that it works."""
        if refusal := self.refusal(queue):
            logger.error("A queue cannot be consumed. %s", refusal)
            return
        if readiness.own.at is not None:
            super().add_task_queue(queue, exchange, exchange_type, routing_key, **options)
            return
        queues = self.app.amqp.queues
        if queue in queues:  # as Celery does it; the rest follows at the end of the probation
            queues.select_add(queues[queue])
        else:
            options["exchange"] = queue if exchange is None else exchange
            options["exchange_type"] = "direct" if exchange_type is None else exchange_type
            queues.select_add(queue, routing_key=routing_key, **options)

    def on_close(self) -> None:
        """Forget what waits, as the connection is closed."""
        self.limited.clear()
        super().on_close()

    def _limit_task(self, request: Any, bucket: Any, tokens: int) -> Any:
        """Let a task wait for its rate limit; as for one with an ETA, another one may be reserved."""
        self._make_room_for(request)
        return super()._limit_task(request, bucket, tokens)

    def _limit_post_eta(self, request: Any, bucket: Any, tokens: int) -> Any:
        """Let a task wait for its rate limit whose time has come."""
        self._make_room_for(request)
        return super()._limit_post_eta(request, bucket, tokens)

    def _limit_move_to_pool(self, request: Any) -> None:
        """Let a task run that has waited for its rate limit."""
        if request in self.limited:
            self.limited.discard(request)
            self.qos.decrement_eventually()
        super()._limit_move_to_pool(request)

    def _make_room_for(self, request: Any) -> None:
        """Let another task be reserved beside one that waits, unless `worker_eta_task_limit` forbids it."""
        before = self.qos.value
        if len(self.limited) < LIMITED and self.qos.increment_eventually() > before:
            self.limited.add(request)

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], Any]:
        """Return what is called with each message."""
        handle = super().create_task_handler(*args, **kwargs)

        @wraps(handle)
        def on_task_received(message: Any) -> Any:
            try:
                self._require_readable(message)
            except (InvalidTaskError, ContentDisallowed) as error:
                return self.on_invalid_task(None, message, error)
            except Exception as error:
                return self.on_decode_error(message, error)
            with about(message):
                try:
                    _count_if_delayed(message)
                    return handle(message)
                except Exception as error:
                    # Before the pool has it: `ending` sees to what fails from then on.
                    if broadcast.is_of_broker(error):
                        raise
                    return self.on_invalid_task(None, message, error)

        return on_task_received

    def on_unknown_message(self, body: Any, message: Any) -> None:
        """Handle a message that says nothing of a task."""
        if self._bury(message, End(Reason.INVALID, "It names no task.")):
            super().on_unknown_message(body, message)

    def on_unknown_task(self, body: Any, message: Any, exc: BaseException) -> None:
        """Handle a message for a task that this app does not have."""
        if self._bury(message, End(Reason.UNREGISTERED, f"There is no task {exc} in this app.")):
            super().on_unknown_task(body, message, exc)

    def on_invalid_task(self, body: Any, message: Any, exc: BaseException) -> None:
        """Handle a message that cannot be one of a task, or whose serializer is not accepted."""
        reason = Reason.UNDECODABLE if isinstance(exc, ContentDisallowed) else Reason.INVALID
        if self._bury(message, End.of(reason, exc)):
            super().on_invalid_task(body, message, exc)
            self._tell_caller(message, exc)

    def on_decode_error(self, message: Any, exc: BaseException) -> None:
        """Handle a message whose body cannot be read; the node's mailbox asks for its own here, too."""
        if message.channel is not getattr(self.task_consumer, "channel", None):
            broadcast.dropped.add(broadcast.CONTROL, exc)
            return
        if self._bury(message, End.of(Reason.UNDECODABLE, exc)):
            super().on_decode_error(message, exc)
            self._tell_caller(message, exc)

    def _tell_caller(self, message: Any, error: BaseException) -> None:
        """Store that a task has failed whose message cannot be read, if its headers say which it is.

        Celery stores nothing, and whoever asked for the result waits for ever.
        """
        headers = message.headers if isinstance(message.headers, dict) else {}
        name, task = headers.get("id"), self.app.tasks.get(str(headers.get("task")))
        wants_none = headers.get("ignore_result", getattr(task, "ignore_result", False))
        if wants_none or not (isinstance(name, str) and name):
            return
        failure = InvalidTaskError(f"The node could not read the message: {broadcast.described(error)}")
        try:
            self.app.backend.mark_as_failure(name, failure)
        except Exception as refusal:
            logger.warning("The failure of %s cannot be stored: %s", name, broadcast.described(refusal))

    def _require_readable(self, message: Any) -> None:
        """Refuse a message on which Celery's handler would fail with what it does not expect.

        Raises:
            InvalidTaskError: It has no name or no id where it should, or no arguments.
        """
        headers = message.headers
        if not isinstance(headers, dict) or "task" not in headers:
            return
        for name in ("task", "id"):
            if not (isinstance(headers.get(name), str) and headers[name]):
                raise InvalidTaskError(f"Its {name} is no text.")
        if headers["task"] in self.strategies and not isinstance(message.payload, (list, tuple, dict)):
            raise InvalidTaskError("Its body has no arguments.")

    def _bury(self, message: Any, end: End) -> bool:
        """Move a message to the dead letters; return whether Celery may drop it now."""
        return bury(f"A message ({end.reason})", Burial(message, end, self.hostname))


@control_command(  # type: ignore[untyped-decorator]  # celery ships no types
    args=[("queue", str), ("exchange", str), ("exchange_type", str), ("routing_key", str)],
    signature="<queue> [exchange [type [routing_key]]]",
)
def add_consumer(
    state: Any,
    queue: Any,
    exchange: str | None = None,
    exchange_type: str | None = None,
    routing_key: str | None = None,
    **options: Any,
) -> dict[str, str]:
    """Tell worker(s) to consume from task queue by name."""
    if refusal := state.consumer.refusal(queue):
        logger.error("A queue cannot be consumed. %s", refusal)
        return {"error": refusal}
    add = partial(_as_commanded, state.consumer.add_task_queue)
    state.consumer.call_soon(add, queue, exchange, exchange_type or "direct", routing_key, **options)
    return {"ok": f"add consumer {queue}"}


@control_command(args=[("queue", str)], signature="<queue>")  # type: ignore[untyped-decorator]
def cancel_consumer(state: Any, queue: Any, **_: Any) -> dict[str, str]:
    """Tell worker(s) to stop consuming from task queue by name."""
    if not isinstance(queue, str):
        return {"error": f"{queue!r:.100} is no name of a queue."}
    state.consumer.call_soon(partial(_as_commanded, state.consumer.cancel_task_queue), queue)
    return {"ok": f"no longer consuming from {queue}"}


def _as_commanded(do: Callable[..., Any], *args: Any, **options: Any) -> None:
    """Do in the node's loop what was commanded; what is wrong with the command does not end the node."""
    try:
        do(*args, **options)
    except Exception as error:
        if broadcast.is_of_broker(error):
            raise
        broadcast.dropped.add(broadcast.CONTROL, error)


def _count_if_delayed(message: Any) -> None:
    """Let the channel know of a message whose task waits for its time."""
    channel, headers = message.channel, message.headers
    if not (isinstance(channel, Channel) and isinstance(headers, dict) and headers.get("eta")):
        return
    with suppress(TypeError, ValueError):  # Celery's handler refuses what is no time
        at = datetime.fromisoformat(headers["eta"])
        channel.eta_count += (at if at.tzinfo else at.replace(tzinfo=UTC)) > datetime.now(UTC)


def _pause_if_refused(error: Exception) -> None:
    """Wait, if Redis has refused something, or lacks a function: it would answer the same again.

    A master that has become a replica does so until it is a master once more.
    """
    if isinstance(error, (ResponseError, functions.FunctionMissingError)):
        time.sleep(PAUSE)


def _hand_over(hand_over: Callable[[Any], Any], request: Any) -> None:
    """Give a task to the pool, unless it has killed who ran it too often."""
    if isinstance(request, Mortal) and request.kills():
        request.refuse()
    else:
        hand_over(request)
