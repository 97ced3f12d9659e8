# SPDX-License-Identifier: MIT
"""kombu's channel, for a Redis that refuses some queues, or all writes, and sends floods of broadcasts."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from functools import cached_property
from queue import Empty
from time import monotonic
from typing import TYPE_CHECKING, Any

from redis.exceptions import NoPermissionError, ResponseError

from fleet_runtime.broker import functions
from fleet_runtime.broker.oom import is_full
from fleet_runtime.compat import older_kombu
from fleet_runtime.transport import refused, tuning
from fleet_runtime.transport.pubsub import NotYet
from fleet_runtime.transport.refused import RefusedQueues, is_refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

logger = logging.getLogger(__name__)


class BaseChannel(older_kombu.Channel):
    """A channel that goes on with the queues that it may consume, and at the memory limit of Redis.

    Attributes:
        skips_refused: Whether a queue that Redis refuses is left out, and the others are consumed. False for
            senders, which are to get the error.
        on_refused: Is called when the queues that are left out have changed.
        listened_at: When it was last polled for broadcast messages, by the monotonic clock.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Connect, as kombu does; nothing is consumed yet."""
        self.skips_refused = False
        self.on_refused: Callable[[], object] = lambda: None
        self.listened_at: float | None = None
        self._refused = RefusedQueues(self)
        self._pooled_client: Any = None
        super().__init__(*args, **kwargs)

    @cached_property
    def client(self) -> Any:
        """A client of the channel's pool. kombu's waits for messages, and so has a connection of its own."""
        return self._create_client()

    @contextmanager
    def conn_or_acquire(self, client: Any = None) -> Iterator[Any]:
        """Yield a client of the channel's pool.

        kombu makes one for each call, which takes longer than the call (kombu 5.7, redis-py 8.1).
        """
        pooled = self._pooled_client
        if client is None and (pooled is None or pooled.connection_pool is not self._pool):
            pooled = self._pooled_client = self._create_client()
        yield client or pooled

    def wake(self) -> None:
        """Let the poller look again, unless the channel is closed."""
        if self.connection is not None:
            self.connection.cycle.wake()

    # --- queues that Redis refuses ---

    @property
    def refused(self) -> dict[str, str]:
        """The queues that are left out, each with the reason."""
        return self._refused.reasons

    @property
    def active_queues(self) -> list[str]:
        """The queues that are consumed, without those that Redis refuses."""
        queues: list[str] = super().active_queues
        return [queue for queue in queues if queue not in self.refused] if self.refused else queues

    def refusal(self, queue: str) -> str:
        """Return which command Redis refuses, and why, if this node may not consume a queue; else ""."""
        keys = [self._q_for_pri(queue, priority) for priority in self.priority_steps]
        with self.conn_or_acquire() as client:
            return refused.consume_refusal(client, queue, keys, self.unacked_key, self.unacked_index_key)

    def fanout_refusal(self, exchange: str, routing_key: str) -> str:
        """Return why this node may not subscribe to an exchange of the type fanout; "" if it may."""
        with self.conn_or_acquire() as client:
            return refused.subscribe_refusal(client, self._get_publish_topics(exchange, routing_key))

    def on_queues_changed(self) -> None:
        """Consume other queues than before: some are refused, or no more."""
        self._update_queue_cycle()
        self.on_refused()

    def basic_consume(self, queue: str, *args: Any, **kwargs: Any) -> Any:
        """Consume a queue, unless Redis refuses it."""
        known = queue in self._fanout_queues or queue in self.refused
        if self.skips_refused and not known and (reason := self.refusal(queue)):
            self._refused.add(queue, reason)
        return super().basic_consume(queue, *args, **kwargs)

    # --- broadcast messages ---

    def _receive(self) -> bool:
        """Deliver broadcast messages, for as long as one turn of the loop may take.

        kombu goes on while there are more, so that a flood of them keeps a node from all else.
        """
        client, until = self.subclient, monotonic() + tuning.FANOUT_TURN_S
        while True:
            try:
                self._receive_one(client)
            except NotYet:
                break
            except Empty:
                pass
            if client.connection is None or not client.connection.can_read(timeout=0):
                break
            if monotonic() > until:
                self.connection.cycle.receive_later(self)
                break
        return True

    def _receive_one(self, c: Any) -> Any:
        """Deliver one broadcast message; leave out the queues whose subscription Redis refuses."""
        try:
            return super()._receive_one(c)
        except NoPermissionError as error:
            if not self.skips_refused:
                raise
            for queue in tuple(self.active_fanout_queues):
                if reason := self.fanout_refusal(*self._fanout_queues[queue]):
                    self._refused.add(queue, reason)
            if not self.refused:
                raise
            logger.debug("A subscription was refused: %s", error)
            self._in_listen = None  # so that the others are subscribed to again
            return None

    # --- a Redis that refuses writes ---

    def _queue_bind(self, *args: Any) -> None:
        """Bind a queue to its exchange; at the memory limit it is taken to be bound by an earlier start."""
        try:
            super()._queue_bind(*args)
        except ResponseError as error:
            if self.skips_refused and is_refusal(error):
                self._refused.add(args[-1], f"SADD: {error}")
                return
            if not is_full(error):
                raise
            logger.warning("Redis is full, and the queue %s is taken to be bound: %s", args[-1], error)

    def _size(self, queue: str) -> int:
        """Return how many messages a queue has. kombu's transaction is refused at the memory limit."""
        with self.conn_or_acquire() as client, client.pipeline(transaction=False) as pipe:
            for priority in self.priority_steps:
                pipe.llen(self._q_for_pri(queue, priority))
            replies = pipe.execute(raise_on_error=False)
        for error in replies:
            if isinstance(error, ResponseError) and self.skips_refused and is_refusal(error):
                return 0  # whether it can be consumed is asked when it is to be consumed
            if isinstance(error, Exception):
                raise error
        return sum(replies)

    def maybe_refresh_binding_expiry(self) -> None:
        """Keep queues that expire alive, unless Redis is full or lacks the function.

        kombu would log a traceback each second, and tries again in any case.
        """
        try:
            super().maybe_refresh_binding_expiry()
        except (ResponseError, functions.FunctionMissingError) as error:
            if not (is_full(error) or functions.is_missing(error)):
                raise
