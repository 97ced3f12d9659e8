# SPDX-License-Identifier: MIT
"""Drops malformed items on the channels of control commands, events and results.

A client that may publish on such a channel may publish anything there, and every node of the fleet receives
it. kombu and Celery take it for a message (kombu 5.7, Channel._receive_one; celery 5.7, Pidbox.on_message,
Gossip.on_message, ResultConsumer._drain_one). The exception that follows ends the node, makes it reconnect,
or fails the client that waits for a result. Here such an item is dropped, counted, and logged once a minute.

The patches get `may_replace` from their caller. It returns the original, and refuses one that another package
has replaced.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from functools import wraps
from queue import Empty
from typing import TYPE_CHECKING, Any

from celery.backends.redis import ResultConsumer
from celery.utils.imports import symbol_by_name
from kombu.pidbox import Node
from kombu.transport.redis import Channel
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import loads
from redis.exceptions import DataError, ResponseError

from fleet_runtime.broker.errors import BROKER_ERRORS
from fleet_runtime.compat import older_kombu, older_results
from fleet_runtime.transport import pubsub

if TYPE_CHECKING:
    from collections.abc import Callable

    #: Takes owner and attribute; returns the original, or None if it is replaced already.
    MayReplace = Callable[[str, str], Callable[..., Any] | None]

logger = logging.getLogger(__name__)

#: Least time between two log lines about the same kind of item.
LOG_INTERVAL_S = 60.0
#: Characters of an error in such a line.
ERROR_LENGTH = 200
#: Lamport clocks are below this; Celery would go on from a larger one for ever, and send it to other nodes.
LARGEST_CLOCK = 2**53

#: The handler of control commands: by its name, because only a node is to import it.
MAILBOX = "celery.worker.pidbox:Pidbox"
RESULT_CONSUMER = "celery.backends.redis:ResultConsumer"
CONTROL, EVENT, RESULT = "control commands", "events and control commands", "results"


class Dropped:
    """Counts dropped items, and logs them now and then.

    Attributes:
        counts: How many items of each kind were dropped since this process started.
    """

    def __init__(self) -> None:
        """Start with nothing."""
        self.counts: Counter[str] = Counter()
        self._logged_at: dict[str, float] = {}
        self._lock = threading.Lock()

    def add(self, kind: str, error: BaseException) -> None:
        """Count an item, and log it unless another of its kind was logged less than a minute ago.

        Args:
            kind: What the channel is for.
            error: What is wrong with the item.
        """
        with self._lock:
            self.counts[kind] += 1
            count, now = self.counts[kind], time.monotonic()
            if now < self._logged_at.get(kind, -LOG_INTERVAL_S) + LOG_INTERVAL_S:
                return
            self._logged_at[kind] = now
        logger.error(
            "An item on a channel of %s is none, and is dropped (%d so far): %s",
            kind,
            count,
            described(error),
        )


dropped = Dropped()


def described(error: BaseException) -> str:
    """Return the type and the beginning of the text of an error, even if its text cannot be read."""
    try:
        text = str(error)
    except Exception:
        text = "(its text cannot be read)"
    return f"{type(error).__name__}: {text[:ERROR_LENGTH]}"


def is_of_broker(error: BaseException) -> bool:
    """Return whether an error is one of the broker, and not one of an item that the broker has delivered.

    DataError is not: redis-py raises it for arguments that cannot be sent to Redis.
    """
    return isinstance(error, BROKER_ERRORS) and not isinstance(error, DataError)


def patch(may_replace: MayReplace) -> None:
    """Let a node drop malformed items on all channels that it listens to."""
    patch_fanout(may_replace)
    patch_control(may_replace)
    patch_results(may_replace)


def patch_fanout(may_replace: MayReplace) -> None:
    """Drop items that cannot be delivered, of exchanges of the type fanout."""
    original = may_replace("kombu.transport.redis:Channel", "_receive_one")
    if original is None:
        return

    @wraps(original)
    def _receive_one(channel: Any, client: Any) -> Any:
        try:
            response = pubsub.read(client)
        except channel.connection_errors:
            channel._in_listen = None
            raise
        if not isinstance(response, (list, tuple)):
            return None
        received = channel._handle_message(client, response)
        if not (bytes_to_str(received["type"]).endswith("message") and received["data"]):
            return None
        try:
            name = bytes_to_str(received["channel"])
            topic = name.partition(".")[2] if name.startswith("/") else name
            message = loads(bytes_to_str(received["data"]))
            return older_kombu.deliver_fanout(channel, message, topic.split("/", 1)[0])
        except Empty:
            raise
        except Exception as error:
            if is_of_broker(error):
                raise
            dropped.add(EVENT, error)
            return None

    Channel._receive_one = _receive_one


def patch_control(may_replace: MayReplace) -> None:
    """Drop malformed control commands, and replies that the broker refuses.

    Celery makes a new mailbox with a new connection for each of them.
    """
    original = may_replace(MAILBOX, "on_message")
    if original is None:
        return
    mailbox = symbol_by_name(MAILBOX)

    @wraps(original)
    def on_message(pidbox: Any, body: Any, message: Any) -> None:
        try:
            _require_command(body, message)
            pidbox._forward_clock()
            pidbox.node.handle_message(body, message)
        except Exception as error:
            if is_of_broker(error) and not isinstance(error, ResponseError):
                logger.warning("The reply to a control command cannot be sent: %s", described(error))
                pidbox.reset()
            else:
                dropped.add(CONTROL, error)

    @wraps(Node.on_decode_error)
    def on_decode_error(node: Any, message: Any, error: Exception) -> None:
        dropped.add(CONTROL, error)

    mailbox.on_message = on_message
    Node.on_decode_error = on_decode_error  # of a mailbox with a greenlet of its own


def patch_results(may_replace: MayReplace) -> None:
    """Drop malformed items on the channel of a result, so that the client goes on waiting for the result."""
    state = may_replace(RESULT_CONSUMER, "on_state_change")
    drain = may_replace(RESULT_CONSUMER, older_results.DECODES) if state else None
    if state is None or drain is None:
        return

    @wraps(state)
    def on_state_change(consumer: Any, meta: Any, message: Any) -> None:
        fault = _fault_of_result(meta)
        if fault is None:
            state(consumer, meta, message)
        else:
            dropped.add(RESULT, fault)

    @wraps(drain)
    def receive(consumer: Any, *args: Any, **options: Any) -> Any:
        try:
            return drain(consumer, *args, **options)
        except Exception as error:
            if is_of_broker(error) or not _is_of_decoding(error):
                raise
            dropped.add(RESULT, error)
            return True

    ResultConsumer.on_state_change = on_state_change
    setattr(ResultConsumer, older_results.DECODES, receive)


def _require_command(body: Any, message: Any) -> None:
    """Check that a message is a control command.

    Raises:
        TypeError: A part has a type that kombu's mailbox does not take.
        ValueError: The clock is out of range.
    """
    types: dict[str, tuple[type, ...]] = {
        "method": (str,),
        "arguments": (dict, type(None)),
        "destination": (list, tuple, str, type(None)),
        "pattern": (str, type(None)),
        "matcher": (str, type(None)),
        "reply_to": (dict, type(None)),
    }
    _require(isinstance(body, dict), f"its body is of the type {type(body).__name__}")
    for name, allowed in types.items():
        value = body.get(name)
        _require(isinstance(value, allowed), f"its {name} is of the type {type(value).__name__}")
    reply_to = body.get("reply_to") or {}
    for name in ("exchange", "routing_key") if reply_to else ():
        _require(isinstance(reply_to.get(name), str), f"its reply_to has no {name}")
    _require(isinstance(message.headers, dict), "its headers are no mapping")
    clock = message.headers.get("clock") or 0
    if type(clock) is not int or not 0 <= clock < LARGEST_CLOCK:
        raise ValueError(f"its clock is not a whole number from 0 to {LARGEST_CLOCK}")


def _require(condition: bool, error: str) -> None:
    """Raise a TypeError with a text unless a condition holds."""
    if not condition:
        raise TypeError(error)


def _fault_of_result(meta: Any) -> Exception | None:
    """Return what is wrong with the published state of a task; None if nothing is."""
    if not isinstance(meta, dict):
        return TypeError(f"it is of the type {type(meta).__name__}")
    for name in ("status", "task_id"):
        if not isinstance(meta.get(name), str):
            return TypeError(f"its {name} is no text")
    return None


def _is_of_decoding(error: BaseException) -> bool:
    """Return whether an error comes from decoding a result, and not from the client that waits for it."""
    frame = error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_name == "decode_result":
            return True
        frame = frame.tb_next
    return False
