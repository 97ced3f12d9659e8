# SPDX-License-Identifier: MIT
"""The consumer of a node, which drops no message.

Celery logs and drops a message that is not valid, or that is for no task of this app; some of these end the
node. Here they become dead letters.
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
from celery.worker.control import control_command
from kombu.exceptions import ContentDisallowed
from redis.exceptions import ResponseError

from fleet_runtime.broker import functions
from fleet_runtime.compat import older_worker
from fleet_runtime.dead_letters.model import End, Reason
from fleet_runtime.inspect.queues import consumed
from fleet_runtime.logging.celery_logging import MessageContext
from fleet_runtime.transport import broadcast
from fleet_runtime.transport.channel import Channel
from fleet_runtime.worker import readiness
from fleet_runtime.worker.context import WorkerContext
from fleet_runtime.worker.request import (
    DeadLetterCandidate,
    DeadLetterRequest,
    move_or_postpone,
    use_dead_letter_requests,
)

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

# Tasks that wait for their rate limit, and for which others are fetched. With more, this node would take all
# of a queue from other nodes.
RATE_LIMITED_MAX = 100
# Seconds until the next attempt to connect, if Redis has refused a command.
REFUSED_RETRY_S = 1.0


class FleetConsumer(older_worker.Consumer):
    """Celery's consumer, with dead letters for the messages that Celery drops."""

    def __init__(self, on_task_request: Callable[[Any], Any], *args: Any, **kwargs: Any) -> None:
        """Create a consumer with Celery's arguments.

        Args:
            on_task_request: Gives a request to the pool.
            args: Other arguments of Celery's consumer.
            kwargs: The same.
        """
        # Publishes the facts of this node at once. The `Recovery` step sets it.
        self.announce: Callable[[], None] = lambda: None
        # Requests that wait for their rate limit, and for which others may be prefetched.
        self.limited: set[Any] = set()
        super().__init__(partial(_hand_over, on_task_request), *args, **kwargs)

    def start(self) -> None:
        """Consume until the node stops, or until an unexpected error ends it."""
        try:
            super().start()
        except Exception:
            # The messages are requeued as those of a dead node, so that a crash is counted.
            if in_flight := WorkerContext.of(self).in_flight:
                in_flight.crashed = True
            raise

    def connect(self) -> Any:
        """Connect. Queues that Redis refuses are not consumed."""
        connection = super().connect()
        channel = connection.default_channel
        if isinstance(channel, Channel):
            channel.skips_refused = True
            channel.on_refused = partial(self.call_soon, self._announce_if_connected)
        return connection

    @property
    def refused(self) -> dict[str, str]:
        """The queues that this node should consume and that Redis refuses, with the reasons."""
        channel = getattr(self.task_consumer, "channel", None)
        refused = getattr(channel, "refused", {})
        if not refused:
            return {}
        names = consumed(self.app, self.hostname)  # a Broadcast queue has a random name
        return {names.get(queue, queue): reason for queue, reason in refused.items()}

    def _announce_if_connected(self) -> None:
        """Publish the facts of this node, if it is connected."""
        if self.connection and self.task_consumer:
            self.announce()

    def refusal(self, queue: Any) -> str:
        """Return in a sentence why this node cannot consume a queue; an empty string if it can."""
        if not (isinstance(queue, str) and queue):
            return f"{queue!r:.100} is not the name of a queue."
        channel = getattr(self.task_consumer, "channel", None)
        if not isinstance(channel, Channel) or not (reason := channel.refusal(queue)):
            return ""
        return (
            f"Redis refuses the queue {queue}: {reason}. Its access rules have the queues of the inventory, "
            "and a key of that name must be a list."
        )

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Prepare for the next connection."""
        with warnings.catch_warnings():
            # Celery recommends to cancel running tasks. Here they are acknowledged on the next connection.
            warnings.simplefilter("ignore", CPendingDeprecationWarning)
            super().on_connection_error_after_connected(exc)
        _pause_if_refused(exc)

    def on_connection_error_before_connected(self, exc: Exception) -> None:
        """Log that there is no connection, and wait if Redis has refused a command."""
        super().on_connection_error_before_connected(exc)
        _pause_if_refused(exc)

    def update_strategies(self) -> None:
        """Build the strategy of each task, with requests that become dead letters."""
        readiness.configure_task(self.app.tasks[readiness.NAME])
        context = WorkerContext.of(self)
        for task in self.app.tasks.values():
            use_dead_letter_requests(task, context)
        super().update_strategies()
        if in_flight := WorkerContext.of(self).in_flight:
            for name, strategy in self.strategies.items():
                self.strategies[name] = in_flight.settling(strategy)

    def add_task_queue(
        self,
        queue: str,
        exchange: str | None = None,
        exchange_type: str | None = None,
        routing_key: str | None = None,
        **options: Any,
    ) -> None:
        """Consume one more queue, unless Redis refuses it; not before the self-test has passed."""
        if refusal := self.refusal(queue):
            logger.error("A queue cannot be consumed. %s", refusal)
            return
        if WorkerContext.of(self).self_test.passed_at is not None:
            super().add_task_queue(queue, exchange, exchange_type, routing_key, **options)
            return
        queues = self.app.amqp.queues
        if queue in queues:  # as Celery does; the readiness gate consumes the queue when it opens
            queues.select_add(queues[queue])
        else:
            options["exchange"] = queue if exchange is None else exchange
            options["exchange_type"] = "direct" if exchange_type is None else exchange_type
            queues.select_add(queue, routing_key=routing_key, **options)

    def on_close(self) -> None:
        """Forget the requests that wait for their rate limit, as the connection is closed."""
        self.limited.clear()
        super().on_close()

    def _limit_task(self, request: Any, bucket: Any, tokens: int) -> Any:
        """Let a request wait for its rate limit, and prefetch another one, as for a request with an ETA."""
        self._make_room_for(request)
        return super()._limit_task(request, bucket, tokens)

    def _limit_post_eta(self, request: Any, bucket: Any, tokens: int) -> Any:
        """Let a request wait for its rate limit whose ETA has come."""
        self._make_room_for(request)
        return super()._limit_post_eta(request, bucket, tokens)

    def _limit_move_to_pool(self, request: Any) -> None:
        """Run a request that has waited for its rate limit."""
        if request in self.limited:
            self.limited.discard(request)
            self.qos.decrement_eventually()
        super()._limit_move_to_pool(request)

    def _make_room_for(self, request: Any) -> None:
        """Prefetch another message beside one that waits, unless `worker_eta_task_limit` forbids it."""
        before = self.qos.value
        if len(self.limited) < RATE_LIMITED_MAX and self.qos.increment_eventually() > before:
            self.limited.add(request)

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], Any]:
        """Return the handler of messages."""
        handle = super().create_task_handler(*args, **kwargs)

        @wraps(handle)
        def on_task_received(message: Any) -> Any:
            try:
                self._require_readable(message)
            except (InvalidTaskError, ContentDisallowed) as error:
                return self.on_invalid_task(None, message, error)
            except Exception as error:
                return self.on_decode_error(message, error)
            with MessageContext(message):
                try:
                    _count_if_delayed(message)
                    return handle(message)
                except Exception as error:
                    # The pool does not have it yet. From then on, `task_end` handles errors.
                    if broadcast.is_of_broker(error):
                        raise
                    return self.on_invalid_task(None, message, error)

        return on_task_received

    def on_unknown_message(self, body: Any, message: Any) -> None:
        """Handle a message that does not name a task."""
        if self._to_dead_letters(message, End(Reason.INVALID, "It does not name a task.")):
            super().on_unknown_message(body, message)

    def on_unknown_task(self, body: Any, message: Any, exc: BaseException) -> None:
        """Handle a message for a task that this app does not have."""
        if self._to_dead_letters(message, End(Reason.UNREGISTERED, f"There is no task {exc} in this app.")):
            super().on_unknown_task(body, message, exc)

    def on_invalid_task(self, body: Any, message: Any, exc: BaseException) -> None:
        """Handle a message that is not valid for a task, or whose serializer is not accepted."""
        reason = Reason.UNDECODABLE if isinstance(exc, ContentDisallowed) else Reason.INVALID
        if self._to_dead_letters(message, End.of(reason, exc)):
            super().on_invalid_task(body, message, exc)
            self._store_failure(message, exc)

    def on_decode_error(self, message: Any, exc: BaseException) -> None:
        """Handle a message whose body cannot be decoded; the mailbox calls this for its messages, too."""
        if message.channel is not getattr(self.task_consumer, "channel", None):
            broadcast.dropped.add(broadcast.CONTROL, exc)
            return
        if self._to_dead_letters(message, End.of(Reason.UNDECODABLE, exc)):
            super().on_decode_error(message, exc)
            self._store_failure(message, exc)

    def _store_failure(self, message: Any, error: BaseException) -> None:
        """Store that a task has failed whose message cannot be read, if its headers have the task's id.

        Celery stores nothing, so that a caller would wait for the result for ever.
        """
        headers = message.headers if isinstance(message.headers, dict) else {}
        task_id, task = headers.get("id"), self.app.tasks.get(str(headers.get("task")))
        ignores_result = headers.get("ignore_result", getattr(task, "ignore_result", False))
        if ignores_result or not (isinstance(task_id, str) and task_id):
            return
        failure = InvalidTaskError(f"The node could not read the message: {broadcast.described(error)}")
        try:
            self.app.backend.mark_as_failure(task_id, failure)
        except Exception as refusal:
            logger.warning("The failure of %s cannot be stored: %s", task_id, broadcast.described(refusal))

    def _require_readable(self, message: Any) -> None:
        """Refuse a message on which Celery's handler would fail with an unexpected error.

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

    def _to_dead_letters(self, message: Any, end: End) -> bool:
        """Move a message to the dead letters; return whether Celery may drop it now."""
        candidate = DeadLetterCandidate(message, end, self.hostname)
        return move_or_postpone(f"A message ({end.reason})", candidate, WorkerContext.of(self))


def register_commands() -> None:
    """Register the commands about queues in place of Celery's, with which an error of Redis ends the node."""
    arguments = [("queue", str), ("exchange", str), ("exchange_type", str), ("routing_key", str)]
    control_command(args=arguments, signature="<queue> [exchange [type [routing_key]]]")(add_consumer)
    control_command(args=arguments[:1], signature="<queue>")(cancel_consumer)


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


def cancel_consumer(state: Any, queue: Any, **_: Any) -> dict[str, str]:
    """Tell worker(s) to stop consuming from task queue by name."""
    if not isinstance(queue, str):
        return {"error": f"{queue!r:.100} is not the name of a queue."}
    state.consumer.call_soon(partial(_as_commanded, state.consumer.cancel_task_queue), queue)
    return {"ok": f"no longer consuming from {queue}"}


def _as_commanded(do: Callable[..., Any], *args: Any, **options: Any) -> None:
    """Carry out a command in the loop of the node. An error of the command does not end the node."""
    try:
        do(*args, **options)
    except Exception as error:
        if broadcast.is_of_broker(error):
            raise
        broadcast.dropped.add(broadcast.CONTROL, error)


def _count_if_delayed(message: Any) -> None:
    """Tell the channel of a message whose ETA has not come."""
    channel, headers = message.channel, message.headers
    if not (isinstance(channel, Channel) and isinstance(headers, dict) and headers.get("eta")):
        return
    with suppress(TypeError, ValueError):  # Celery's handler refuses an invalid time
        eta = datetime.fromisoformat(headers["eta"])
        channel.eta_count += (eta if eta.tzinfo else eta.replace(tzinfo=UTC)) > datetime.now(UTC)


def _pause_if_refused(error: Exception) -> None:
    """Wait, if Redis has refused a command, or lacks a function: it would refuse the next one, too.

    For example, a master that has become a replica refuses until it is a master again.
    """
    if isinstance(error, (ResponseError, functions.FunctionMissingError)):
        time.sleep(REFUSED_RETRY_S)


def _hand_over(hand_over: Callable[[Any], Any], request: Any) -> None:
    """Give a request to the pool, unless its message has crashed its process too often."""
    if isinstance(request, DeadLetterRequest) and request.has_crashed_too_often():
        request.fail_as_poison()
    else:
        hand_over(request)
