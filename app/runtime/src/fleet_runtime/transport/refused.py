# SPDX-License-Identifier: MIT
"""Queues that Redis refuses to a node: it consumes the others, and tries these again.

Access rules may not name a queue, or a key of its name is no list. Without this, the node would lose its
connection over it again and again, and consume nothing.
"""

from __future__ import annotations

import logging
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError, ResponseError

from fleet_runtime.broker import functions, scripts
from fleet_runtime.transport import tuning

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

logger = logging.getLogger(__name__)


def is_refusal(error: ResponseError) -> bool:
    """Return whether Redis refuses a command because of its key, and would refuse it again."""
    return isinstance(error, NoPermissionError) or str(error).startswith("WRONGTYPE")


def consume_refusal(client: Any, queue: str, keys: Sequence[str], unacked: str, index: str) -> str:
    """Return which command Redis refuses, and why, if a node may not consume a queue; else "".

    Args:
        client: A client of redis-py.
        queue: The queue.
        keys: Its lists.
        unacked: The node's hash of unacknowledged messages.
        index: The node's sorted set of their times.
    """
    command = "LLEN"
    try:
        for key in keys:
            client.llen(key)
        command = "the function that takes messages"
        functions.run(client, scripts.FETCH_AND_ACK, [unacked, index, *keys], [0, 0, 0, 1, queue])
    except ResponseError as error:
        if is_refusal(error):
            return f"{command}: {error}"
        raise
    return ""


def subscribe_refusal(client: Any, topics: Iterable[str]) -> str:
    """Return why Redis refuses to let a node subscribe to topics; "" if it allows it.

    Raises:
        ConnectionError: Redis does not answer.
    """
    with client.pubsub() as listener:
        try:
            for topic in topics:
                listener.execute_command("PSUBSCRIBE", topic)
                if listener.parse_response(block=False, timeout=tuning.CLOSE_TIMEOUT_S) is None:
                    raise RedisConnectionError("Redis does not answer to a PSUBSCRIBE.")
        except NoPermissionError as error:
            return f"PSUBSCRIBE: {error}"
    return ""


class RefusedQueues:
    """The queues of a channel that are left out.

    Attributes:
        reasons: What Redis refuses, and why, for each queue that is left out.
        retry_at: When to try them again, by the monotonic clock; inf if there is none.
    """

    def __init__(self, channel: Any) -> None:
        """Start without one, for a channel of the transport."""
        self.reasons: dict[str, str] = {}
        self.retry_at = inf
        self._channel = channel
        self._fanout: dict[str, tuple[str, str]] = {}  # exchange and routing key of queues for broadcasts

    def add(self, queue: str, reason: str) -> None:
        """Leave a queue out until Redis allows it."""
        channel = self._channel
        if queue in channel._fanout_queues:
            self._fanout[queue] = channel._fanout_queues.pop(queue)
        if queue in self._fanout:  # its name is random, so the exchange tells the operator more
            exchange, _ = self._fanout[queue]
            reason = f"{reason} (a queue of the exchange {exchange}, whose messages go to every node)"
        if self.reasons.get(queue) != reason:
            logger.error(
                "Redis refuses the queue %s, which this node should consume: %s. It consumes its other "
                "queues, and looks again every %d s. Either the access rules do not name the queue, or a key "
                "of its name is no list.", queue, reason, tuning.REFUSED_RETRY_S
            )  # fmt: skip
        self.reasons[queue] = reason
        self.retry_at = monotonic() + tuning.REFUSED_RETRY_S
        channel.active_fanout_queues.discard(queue)
        channel.on_queues_changed()

    def check(self, queues: Iterable[str]) -> bool:
        """Leave out those of some queues that Redis refuses. Returns whether there is one."""
        found = {queue: reason for queue in queues if (reason := self._channel.refusal(queue))}
        for queue, reason in found.items():
            self.add(queue, reason)
        return bool(found)

    def retry(self) -> None:
        """Consume the queues again that Redis allows now."""
        channel = self._channel
        self.retry_at = monotonic() + tuning.REFUSED_RETRY_S
        for queue in tuple(self.reasons):
            fanout = self._fanout.get(queue)
            if queue not in channel._active_queues:  # it was cancelled meanwhile
                self._remove(queue)
            elif reason := channel.fanout_refusal(*fanout) if fanout else channel.refusal(queue):
                self.add(queue, reason)
            else:
                logger.warning("Redis allows the queue %s now, and this node consumes it.", queue)
                self._remove(queue)
                if fanout:
                    channel._fanout_queues[queue] = fanout
                    channel._fanout_to_queue[fanout[0]] = queue
                    channel.active_fanout_queues.add(queue)
                    channel._in_listen = None  # so that it is subscribed to
        if not self.reasons:
            self.retry_at = inf
        channel.on_queues_changed()

    def _remove(self, queue: str) -> None:
        """Leave a queue out no more."""
        del self.reasons[queue]
        self._fanout.pop(queue, None)
