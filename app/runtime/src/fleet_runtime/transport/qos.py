# SPDX-License-Identifier: MIT
"""kombu's account of unacknowledged messages, for messages that the fetch has recorded already."""

from __future__ import annotations

import logging
from time import time
from typing import TYPE_CHECKING, Any

from kombu.transport import redis as stock
from kombu.transport import virtual
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps, loads
from redis.exceptions import ResponseError

from fleet_runtime.broker import functions, scripts
from fleet_runtime.broker.oom import is_full
from fleet_runtime.transport.decode import RecordedPayload

if TYPE_CHECKING:
    from collections.abc import Iterable

logger = logging.getLogger(__name__)


def acknowledge(client: Any, unacked: str, index: str, tags: Iterable[str]) -> None:
    """Acknowledge messages, and wait for the reply.

    Args:
        client: A client of redis-py.
        unacked: Key of the node's hash of unacknowledged messages.
        index: Key of the node's sorted set of their times.
        tags: Delivery tags.
    """
    functions.run(client, scripts.FETCH_AND_ACK, [unacked, index], [0, 0, 0, 0, *tags])


def redelivered(channel: Any, record: bytes, *, fanout: bool, **headers: Any) -> tuple[str, list[str]]:
    """Return the message of a record as it goes back, marked as redelivered, and the lists that it goes to.

    Args:
        channel: A channel that knows the exchanges of the app.
        record: The record of an unacknowledged message.
        fanout: Whether a message of an exchange of the type fanout has lists, too.
        headers: More headers of the message.

    Raises:
        LookupError: No queue is bound to its exchange.
        Exception: It is no record of a message.
    """
    message, exchange, routing_key = loads(bytes_to_str(record))
    message["headers"].update(headers, redelivered=True)
    message["properties"]["delivery_info"]["redelivered"] = True
    is_left_out = exchange and not fanout and channel.typeof(exchange).type == "fanout"
    queues = () if is_left_out else channel._lookup(exchange, routing_key)
    if not queues:
        raise LookupError(f"no queue is bound to {exchange!r} with the routing key {routing_key!r}")
    priority = channel._get_message_priority(message, reverse=False)
    return dumps(message), [channel._q_for_pri(queue, priority) for queue in queues]


class QoS(stock.QoS):
    """Settles messages by scripts, and leaves acknowledgements to the channel, which sends many at once."""

    def append(self, message: Any, delivery_tag: str) -> None:
        """Count a message as unacknowledged, and record it unless its fetch has."""
        if type(message._raw) is RecordedPayload:
            virtual.QoS.append(self, message, delivery_tag)
        else:
            super().append(message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge a message, with the next command that the channel sends if it will send one."""
        virtual.QoS.ack(self, delivery_tag)
        self.channel.acknowledge(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Reject a message; a message that is requeued goes behind all others of its queue."""
        if not requeue:
            self.ack(delivery_tag)
            return
        self.restore_by_tag(delivery_tag, leftmost=True)
        virtual.QoS.ack(self, delivery_tag)
        self.channel.wake()  # there is room for another message

    def restore_by_tag(self, tag: str, client: Any = None, leftmost: bool = False) -> None:
        """Put a message back into its queues; if none is bound to its exchange, it stays unacknowledged.

        Args:
            tag: Its delivery tag.
            client: A client of redis-py, or None.
            leftmost: Whether it goes behind all others of its queue; else it is the next one.
        """
        with self.channel.conn_or_acquire(client) as redis:
            while record := redis.hget(self.unacked_key, tag):
                try:
                    message, lists = redelivered(self.channel, record, fanout=True)
                except self.channel.connection_errors:
                    raise
                except Exception:
                    logger.critical("A message cannot go back to its queue: %s", tag, exc_info=True)
                    return
                keys = [self.unacked_key, self.unacked_index_key, *lists]
                args = [tag, record, message, "LPUSH" if leftmost else "RPUSH"]
                if functions.run(redis, scripts.REQUEUE_ONE, keys, args):
                    return

    def restore_visible(self, *args: Any, **kwargs: Any) -> None:
        """Requeue messages that are unacknowledged for longer than the visibility timeout.

        Messages that this node knows of stay: they wait for their ETA, or run. Those of a dead node come back
        by its lease. On a Redis that refuses writes nothing is done: kombu calls this with each connection,
        and an error would end the node.
        """
        try:
            self._renew()
            super().restore_visible(*args, **{**kwargs, "interval": 1})  # RESTORE_INTERVAL_S is the interval
        except ResponseError as error:
            if not is_full(error):
                raise
            logger.debug("Messages beyond the visibility timeout stay unacknowledged: %s", error)

    def _renew(self) -> None:
        """Set the time of the overdue messages that this node knows of to now."""
        now = time()
        with self.channel.conn_or_acquire() as client:
            overdue = client.zrange(self.unacked_index_key, 0, now - self.visibility_timeout, byscore=True)
            known = {tag: now for tag in overdue if self._knows(bytes_to_str(tag))}
            if known:
                client.zadd(self.unacked_index_key, known, xx=True)

    def _knows(self, tag: str) -> bool:
        """Return whether a message came by this connection, and is not settled."""
        channels = getattr(self.channel.connection, "channels", None) or [self.channel]
        return any(tag in channel.qos._delivered for channel in channels)
