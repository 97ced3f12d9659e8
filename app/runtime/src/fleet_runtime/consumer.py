"""What becomes of messages that are none, or for no task of this app: they go to the dead letters.

Celery logs them and drops them. Some it cannot even read, and ends.
"""

from __future__ import annotations

import logging
from functools import partial, wraps
from queue import Empty
from typing import TYPE_CHECKING, Any

import kombu
from celery.exceptions import InvalidTaskError
from celery.worker.consumer import Consumer
from kombu.exceptions import ContentDisallowed
from kombu.transport.redis import Channel
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import loads

from fleet_runtime import dead_letters
from fleet_runtime.dead_letters import End, Reason
from fleet_runtime.logs import about
from fleet_runtime.request import Mortal, adopt, release

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

# Whose Channel._brpop_read is the one that `read_queue` stands for.
READER_TESTED = frozenset({"5.7.0"})


class FleetConsumer(Consumer):  # type: ignore[misc]  # celery ships no types
    """Celery's consumer, which drops nothing."""

    def __init__(self, on_task_request: Callable[[Any], Any], *args: Any, **kwargs: Any) -> None:
        """Stand between what the node takes from its queues and its pool."""
        super().__init__(partial(_hand_over, on_task_request), *args, **kwargs)
        guard_reading(self.hostname)

    def update_strategies(self) -> None:
        """Prepare for each task that there is."""
        for task in self.app.tasks.values():
            adopt(task)
        super().update_strategies()

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
                return handle(message)

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

    def on_decode_error(self, message: Any, exc: BaseException) -> None:
        """Handle a message whose body cannot be read."""
        if self._bury(message, End.of(Reason.UNDECODABLE, exc)):
            super().on_decode_error(message, exc)

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
        """Move a message to the dead letters; return whether Celery may drop it now.

        If it cannot be moved, it stays among what the node holds, and comes back from there.
        """
        try:
            dead_letters.bury(message, end, node=self.hostname)
        except Exception:
            logger.critical("A message cannot be moved to the dead letters: %r", message, exc_info=True)
            release(message)
            return False
        return True


def guard_reading(node: str) -> None:
    """Let kombu's reading of queues stop at nothing.

    What is in a queue and no message at all raises where kombu reads it, outside of any handler, and ends the
    node; the item itself is lost (kombu 5.7, Channel._brpop_read).
    """
    if kombu.__version__ not in READER_TESTED:
        logger.warning(
            "With kombu %s, an item in a queue that is no message ends the node: this release of the runtime "
            "knows %s.", kombu.__version__, ", ".join(sorted(READER_TESTED))
        )  # fmt: skip
        return

    def _brpop_read(channel: Any, **options: Any) -> bool:
        return read_queue(channel, node, **options)

    Channel._brpop_read = _brpop_read


def read_queue(channel: Any, node: str, **options: Any) -> bool:
    """Read an item that was waited for, and deliver it: kombu's Channel._brpop_read, line by line.

    Only what is no message goes another way.
    """
    try:
        try:
            answer = channel.client.parse_response(channel.client.connection, "BRPOP", **options)
        except channel.connection_errors:
            channel.client.connection.disconnect()
            raise
        if not answer:
            raise Empty
        key, item = answer
        queue = bytes_to_str(key).rsplit(channel.sep, 1)[0]
        channel._queue_cycle.rotate(queue)
        _deliver(channel, item, queue, node)
        return True
    finally:
        channel._in_poll = None
        channel._flush_brpop_reauth()


def _deliver(channel: Any, item: bytes, queue: str, node: str) -> None:
    """Deliver what was in a queue, or bury it."""
    try:
        message = loads(bytes_to_str(item))
    except Exception as error:
        _bury_item(channel, item, queue, node, error)
        return
    try:
        channel.connection._deliver(message, queue)
    except Exception:
        # Looked at only now, because it takes as long again to read it. Whatever the error is: to kombu, even
        # a KeyError is one of the connection, which is made anew without the item.
        fault = _fault(channel, message)
        if fault is None:
            raise
        _bury_item(channel, item, queue, node, fault)


def _fault(channel: Any, message: Any) -> Exception | None:
    """Return what is wrong with an item, if it is not what kombu puts into queues."""
    try:
        read = channel.Message(message, channel=channel)
        _, _ = read.delivery_info["exchange"], read.delivery_info["routing_key"]
        if not isinstance(read.delivery_tag, str):
            raise TypeError("its delivery tag is no text")
    except Exception as error:
        return error
    return None


def _bury_item(channel: Any, item: bytes, queue: str, node: str, error: Exception) -> None:
    """Move an item that was in a queue to the dead letters."""
    logger.error("An item in the queue %s is no message, and goes to the dead letters: %s", queue, error)
    try:
        with channel.conn_or_acquire() as client:
            dead_letters.bury_raw(client, item, End.of(Reason.MALFORMED, error), node=node, queue=queue)
    except Exception:
        logger.critical("It cannot be moved there, and is lost: %r", item, exc_info=True)


def _hand_over(hand_over: Callable[[Any], Any], request: Any) -> None:
    """Give a task to the pool, unless it has killed who ran it too often."""
    if isinstance(request, Mortal) and request.kills():
        request.refuse()
    else:
        hand_over(request)
