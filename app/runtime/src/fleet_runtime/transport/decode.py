# SPDX-License-Identifier: MIT
"""Decodes and delivers the items of queues. An item that is no message goes to `Channel.on_malformed`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps

from fleet_runtime.messages.json_decoder import loads

if TYPE_CHECKING:
    from fleet_runtime.broker.unacked import UnackedRef

#: Prefix of the delivery tags that `fetch_and_ack` gives to items that it cannot parse.
MALFORMED = "malformed:"


class RecordedPayload(dict[str, Any]):
    """The payload of a message that its fetch has recorded as unacknowledged."""


def deliver(channel: Any, item: bytes, queue: str, ref: UnackedRef | None = None) -> None:
    """Deliver an item of a queue to its consumer; to `channel.on_malformed` if it is no message.

    Args:
        channel: The channel that fetched it.
        item: The item.
        queue: The queue that it was in.
        ref: Where the fetch has recorded it; None if it has not.
    """
    try:
        message = loads(bytes_to_str(item))
    except Exception as error:
        channel.on_malformed(item, queue, ref, error)
        return
    try:
        if ref:
            if ref.tag != message["properties"]["delivery_tag"]:
                if ref.tag.startswith(MALFORMED):  # to the script: Lua parses less JSON than Python does
                    if fault := _fault(channel, message):
                        raise fault
                    _record(channel, item, queue, ref)
                message["properties"]["delivery_tag"] = ref.tag
            message = RecordedPayload(message)
        channel.connection._deliver(message, queue)
    except Exception:
        # Checked only now, because the check takes as long as the decoding. For any error: kombu takes even a
        # KeyError for a lost connection, and makes a new one without the item.
        fault = _fault(channel, message)
        if fault is None:
            raise
        channel.on_malformed(item, queue, ref, fault)


def _record(channel: Any, item: bytes, queue: str, ref: UnackedRef) -> None:
    """Record a message as `fetch_and_ack` would have done, if it could have parsed it."""
    with channel.conn_or_acquire() as client:
        client.hset(ref.unacked, ref.tag, b"[%b, %b, %b]" % (item, b'""', dumps(queue).encode()))


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
