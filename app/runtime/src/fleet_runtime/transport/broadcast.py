# SPDX-License-Identifier: MIT
"""Reads what is sent to all who listen: control commands, events and results. What is none is dropped.

Whoever may publish on such a channel may publish anything there, and every node of the fleet hears it. kombu
and Celery take it for a message of their own (kombu 5.7, Channel._receive_one; celery 5.7, Pidbox.on_message,
Gossip.on_message, ResultConsumer._drain_one), and what they raise then ends the node, connects it anew, or
fails whoever waits for a result. Here it is dropped and counted, and the log has a line a minute of it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from functools import wraps
from queue import Empty
from typing import Any

from celery.backends.redis import ResultConsumer
from celery.utils.imports import symbol_by_name
from kombu.exceptions import OperationalError
from kombu.pidbox import Node
from kombu.transport.redis import Channel
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import loads
from redis.exceptions import DataError, RedisError, ResponseError

from fleet_runtime.compat.surface import may_replace
from fleet_runtime.transport import pubsub as subscription

logger = logging.getLogger(__name__)

SILENCE = 60.0  # seconds between two lines about the same kind of item
SHOWN = 200  # characters of an error in such a line
# Lamport clocks are below this; Celery would add to a larger one for ever, and send it on.
LARGEST_CLOCK = 2**53

# What takes control commands: by its name, because only a node is to import it.
MAILBOX = "celery.worker.pidbox:Pidbox"
RESULT_CONSUMER = "celery.backends.redis:ResultConsumer"
CONTROL, EVENT, RESULT = "control commands", "events and control commands", "results"
OTHERWISE = "What is no message on a channel of commands, events or results may end this process."


class Dropped:
    """Counts what was dropped, and says so now and then.

    Attributes:
        counts: How many items of each kind were dropped since this process started.
    """

    def __init__(self) -> None:
        """Count nothing yet."""
        self.counts: Counter[str] = Counter()
        self._said_at: dict[str, float] = {}
        self._one_at_a_time = threading.Lock()

    def add(self, kind: str, error: BaseException) -> None:
        """Count an item, and log it unless another of its kind was logged less than a minute ago.

        Args:
            kind: What should have been on the channel.
            error: What is wrong with the item.
        """
        with self._one_at_a_time:
            self.counts[kind] += 1
            count, now = self.counts[kind], time.monotonic()
            if now < self._said_at.get(kind, -SILENCE) + SILENCE:
                return
            self._said_at[kind] = now
        logger.error(
            "An item on a channel of %s is none, and is dropped (%d so far): %s", kind, count, said(error)
        )


dropped = Dropped()


def said(error: BaseException) -> str:
    """Return an error in a few words, whatever its text does."""
    try:
        text = str(error)
    except Exception:
        text = "(its text cannot be read)"
    return f"{type(error).__name__}: {text[:SHOWN]}"


def is_of_broker(error: BaseException) -> bool:
    """Return whether the broker raises this, and not what it delivered.

    DataError is the exception: redis-py raises it for arguments that Redis cannot be sent.
    """
    return isinstance(error, (RedisError, OSError, OperationalError)) and not isinstance(error, DataError)


def guard() -> None:
    """Let a node drop what is no message on the channels that it listens to."""
    guard_fanout()
    guard_control()
    guard_results()


def guard_fanout() -> None:
    """Drop what cannot be delivered, of what was published to an exchange of the type fanout."""
    original = may_replace("kombu.transport.redis:Channel", "_receive_one", OTHERWISE)
    if original is None:
        return

    @wraps(original)
    def _receive_one(channel: Any, client: Any) -> Any:
        try:
            response = subscription.read(client)
        except channel.connection_errors:
            channel._in_listen = None
            raise
        if not isinstance(response, (list, tuple)):
            return None
        heard = channel._handle_message(client, response)
        if not (bytes_to_str(heard["type"]).endswith("message") and heard["data"]):
            return None
        try:
            name = bytes_to_str(heard["channel"])
            topic = name.partition(".")[2] if name.startswith("/") else name
            message = loads(bytes_to_str(heard["data"]))
            return channel._deliver_fanout_message(message, topic.split("/", 1)[0])
        except Empty:
            raise
        except Exception as error:
            if is_of_broker(error):
                raise
            dropped.add(EVENT, error)
            return None

    Channel._receive_one = _receive_one


def guard_control() -> None:
    """Drop what is no control command, and what the broker refuses of an answer.

    Celery makes the node's mailbox anew for each, with a new connection.
    """
    original = may_replace(MAILBOX, "on_message", OTHERWISE)
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
                logger.warning("The answer to a control command cannot be sent: %s", said(error))
                pidbox.reset()
            else:
                dropped.add(CONTROL, error)

    @wraps(Node.on_decode_error)
    def on_decode_error(node: Any, message: Any, error: Exception) -> None:
        dropped.add(CONTROL, error)

    mailbox.on_message = on_message
    Node.on_decode_error = on_decode_error  # of a mailbox with a greenlet of its own


def guard_results() -> None:
    """Drop what is no result on the channel of one, so that whoever waits goes on waiting."""
    state = may_replace(RESULT_CONSUMER, "on_state_change", OTHERWISE)
    drain = may_replace(RESULT_CONSUMER, "_drain_one", OTHERWISE) if state else None
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
    def _drain_one(consumer: Any, pubsub: Any, timeout: float | None) -> Any:
        try:
            return drain(consumer, pubsub, timeout)
        except Exception as error:
            if is_of_broker(error) or not _is_of_decoding(error):
                raise
            dropped.add(RESULT, error)
            return True

    ResultConsumer.on_state_change, ResultConsumer._drain_one = on_state_change, _drain_one


def _require_command(body: Any, message: Any) -> None:
    """Refuse what is no control command.

    Raises:
        TypeError: A part of it is of another type than kombu's mailbox takes.
        ValueError: Its clock is none.
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
        found = body.get(name)
        _require(isinstance(found, allowed), f"its {name} is of the type {type(found).__name__}")
    reply_to = body.get("reply_to") or {}
    for name in ("exchange", "routing_key") if reply_to else ():
        _require(isinstance(reply_to.get(name), str), f"its reply_to has no {name}")
    _require(isinstance(message.headers, dict), "its headers are no mapping")
    clock = message.headers.get("clock") or 0
    if type(clock) is not int or not 0 <= clock < LARGEST_CLOCK:
        raise ValueError("its clock is no number that a clock has")


def _require(is_so: bool, otherwise: str) -> None:
    """Raise a TypeError with a text unless something is so."""
    if not is_so:
        raise TypeError(otherwise)


def _fault_of_result(meta: Any) -> Exception | None:
    """Return what is wrong with what should be the state of a task, if anything is."""
    if not isinstance(meta, dict):
        return TypeError(f"it is of the type {type(meta).__name__}")
    for name in ("status", "task_id"):
        if not isinstance(meta.get(name), str):
            return TypeError(f"its {name} is no text")
    return None


def _is_of_decoding(error: BaseException) -> bool:
    """Return whether an error was raised where a published result is decoded, and not by who waits for it."""
    frame = error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_name == "decode_result":
            return True
        frame = frame.tb_next
    return False
