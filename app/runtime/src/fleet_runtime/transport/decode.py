# SPDX-License-Identifier: MIT
"""Reads what is in queues, whatever it is: what is no message goes to the dead letters, and ends no node."""

from __future__ import annotations

import logging
import os
from functools import wraps
from queue import Empty
from typing import TYPE_CHECKING, Any

from kombu.transport.redis import Channel
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps, loads

from fleet_runtime.compat.surface import may_replace
from fleet_runtime.dead_letters import store
from fleet_runtime.dead_letters.model import End, Reason
from fleet_runtime.logging import redact

if TYPE_CHECKING:
    from fleet_runtime.dead_letters.store import Held

logger = logging.getLogger(__name__)

OTHERWISE = "An item in a queue that is no message ends this node."

# How the tag begins of what the script that takes messages cannot read.
MALFORMED = "malformed:"


def node() -> str:
    """Return the name of this node."""
    return os.environ.get("FLEET_NODE", "")


def guard() -> None:
    """Let kombu's reading of queues stop at nothing.

    What is in a queue and no message at all raises where kombu reads it, outside of any handler, and ends the
    node; the item itself is lost (kombu 5.7, Channel._brpop_read).
    """
    original = may_replace("kombu.transport.redis:Channel", "_brpop_read", OTHERWISE)
    if original is not None:
        Channel._brpop_read = wraps(original)(read_queue)


def read_queue(channel: Any, **options: Any) -> bool:
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
        deliver(channel, item, queue)
        return True
    finally:
        channel._in_poll = None
        channel._flush_brpop_reauth()


def deliver(channel: Any, item: bytes, queue: str, *, held: Held | None = None) -> None:
    """Deliver what was in a queue, or bury it.

    Args:
        channel: By which it came.
        item: What was in the queue.
        queue: Its name.
        held: Where it is recorded, if it is.
    """
    try:
        message = loads(bytes_to_str(item))
    except Exception as error:
        _bury(channel, item, queue, held, error)
        return
    try:
        if held and held.tag != message["properties"]["delivery_tag"]:
            if held.tag.startswith(MALFORMED):  # to the script: Lua reads less than Python does
                if fault := _fault(channel, message):
                    raise fault
                _record(channel, item, queue, held)
            message["properties"]["delivery_tag"] = held.tag  # by which it is settled
        channel.connection._deliver(message, queue)
    except Exception:
        # Looked at only now, because it takes as long again to read it. Whatever the error is: to kombu, even
        # a KeyError is one of the connection, which is made anew without the item.
        fault = _fault(channel, message)
        if fault is None:
            raise
        _bury(channel, item, queue, held, fault)


def _record(channel: Any, item: bytes, queue: str, held: Held) -> None:
    """Record a message as the script would have done, if it could have read it."""
    with channel.conn_or_acquire() as client:
        client.hset(held.unacked, held.tag, b"[%b, %b, %b]" % (item, b'""', dumps(queue).encode()))


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


def _bury(channel: Any, item: bytes, queue: str, held: Held | None, error: Exception) -> None:
    """Move an item that was in a queue to the dead letters."""
    what = redact.described(error)  # no more of it, because the error may quote the item
    logger.error("An item in the queue %s is no message, and goes to the dead letters: %s", queue, what)
    try:
        with channel.conn_or_acquire() as client:
            end = End.of(Reason.MALFORMED, error)
            store.bury_raw(client, item, end, node=node(), queue=queue, held=held)
    except Exception:
        fate = "stays with this node" if held else "is lost"
        shown = f"{len(item)} bytes" if redact.are_hidden() else repr(item)
        logger.critical("It cannot be moved there, and %s: %s", fate, shown, exc_info=True)
