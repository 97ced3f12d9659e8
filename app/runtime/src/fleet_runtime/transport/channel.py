# SPDX-License-Identifier: MIT
"""A channel that fetches messages and records them as unacknowledged in one step.

kombu's channel removes a message from its queue by one command (BRPOP), and records it as unacknowledged by
the next. A node that dies between the two loses the message; so does a node whose Redis refuses the second.
Here a script does both, for as many messages as the pool has slots for, and acknowledges the settled ones
(broker/scripts/fetch_and_ack.lua). A script cannot wait for a message: a node that found none lets Redis
notify it of the next change of its lists (CLIENT TRACKING), and sends nothing meanwhile.

Messages and queues are kombu's own: producers, and nodes at the level `standard`, use the same queues.
"""

from __future__ import annotations

import logging
import threading
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any

from kombu.transport import redis as stock
from kombu.utils.scheduling import priority_cycle, round_robin_cycle
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError, ResponseError

from fleet_runtime.broker import functions, scripts
from fleet_runtime.broker.oom import is_full
from fleet_runtime.broker.unacked import UnackedRef
from fleet_runtime.transport import decode, fetch, tuning
from fleet_runtime.transport.ack_buffer import AckBuffer
from fleet_runtime.transport.backoff import Backoff
from fleet_runtime.transport.base_channel import BaseChannel
from fleet_runtime.transport.connection import TRACK_NEXT, PendingCommand, PipelinedConnection
from fleet_runtime.transport.eta import EtaRuns
from fleet_runtime.transport.prefetch import Prefetcher
from fleet_runtime.transport.qos import QoS, acknowledge
from fleet_runtime.transport.refused import is_refusal
from fleet_runtime.transport.subscription import Subscription

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fleet_runtime.transport.fetch import FetchedMessage

logger = logging.getLogger(__name__)

#: Transport option: most messages that one command fetches.
FETCH_LIMIT_OPTION = "fetch_limit"
FETCH_AND_ACK_SHA = functions.sha(scripts.FETCH_AND_ACK)


class Channel(BaseChannel):
    """A channel that fetches messages by a script.

    Attributes:
        fetcher: The connection that fetches; None before the first fetch.
        queues: The queues that it fetches from.
        asked_at: When it last asked for messages, by the monotonic clock. The watchdog reads it.
        fetch_limit: Most messages that one command fetches.
        nodes: How many nodes Redis may notify of a message. The heartbeat sets it; the default is many.
        eta_count: How many messages were delivered whose tasks wait for their ETA. Their handler counts them.
        lists: The lists of the consumed queues.
        lost_fetch: Whether the connection was lost with messages under way, and no error has told the node.
        prefetcher: Holds the messages for which there is no slot yet.
    """

    QoS = QoS
    fetch_limit = tuning.FETCH_BATCH
    nodes = tuning.BACKOFF_MAX_NODES
    from_transport_options = (*stock.Channel.from_transport_options, FETCH_LIMIT_OPTION)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Connect, as kombu does; nothing is consumed yet."""
        self.fetcher: PipelinedConnection | None = None
        self.queues: list[str] = []
        self.asked_at: float | None = None
        self.eta_count = 0
        self.lost_fetch = False
        self._acks = AckBuffer()
        self._backoff = Backoff()
        self._eta_runs = EtaRuns()
        self.lists = fetch.QueueLists()
        self._tracking = Subscription()
        self.prefetcher = Prefetcher(self)
        super().__init__(*args, **kwargs)

    # --- connections ---

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:
        """Return the parameters of connections. Those that a poller watches get push messages (RESP 3)."""
        parameters: dict[str, Any] = super()._connparams(asynchronous)
        return {**parameters, "protocol": 3} if asynchronous else parameters

    def _on_connection_disconnect(self, connection: Any) -> None:
        """Handle a connection that was closed or lost."""
        fetcher = self.fetcher
        if fetcher is not None and fetcher.connection is connection:
            self.lost_fetch = self.lost_fetch or fetcher.has_pending_fetch
            self._acks.put_back(fetcher.drop_pending())
            self._resubscribe()
            if self.connection is not None:
                self.connection.cycle.forget(self)
        super()._on_connection_disconnect(connection)

    def _close_clients(self) -> None:
        """Close all connections."""
        if self.fetcher is not None:
            self.fetcher.close()
        super()._close_clients()

    def close(self) -> None:
        """Close. Messages that are under way are delivered first; prefetched messages go back."""
        if not self.closed:
            self._try(self._wait_for_replies, self.flush, self.prefetcher.put_back)
        super().close()

    # --- consumers ---

    def basic_consume(self, queue: str, no_ack: bool = False, *args: Any, **kwargs: Any) -> Any:
        """Consume a queue. Messages that are not to be acknowledged are not recorded."""
        keys = [self._q_for_pri(queue, priority) for priority in self.priority_steps]
        self.lists.add(queue, keys, no_ack=no_ack)
        consumer = super().basic_consume(queue, no_ack, *args, **kwargs)
        self._resubscribe()
        return consumer

    def _basic_cancel(self, consumer_tag: str) -> Any:
        """Cancel a consumer. Prefetched messages go back now, and not when the last task has ended.

        Raises:
            ConnectionError: The connection is lost. The node is to make a new one, and to requeue what was
                under way.
        """
        cancelled = super()._basic_cancel(consumer_tag)
        self._resubscribe()
        if not self._closing:
            put_back = self.prefetcher.put_back
            if error := self._try(*(() if self.queues else (self._wait_for_replies, self.flush)), put_back):
                raise error
        return cancelled

    def _try(self, *steps: Callable[[], object]) -> Exception | None:
        """Do each of some steps, even if one fails. Returns the first error."""
        first = None
        for step in steps:
            try:
                step()
            except (*self.connection_errors, ResponseError) as error:
                logger.debug("The connection failed, and messages may be under way.", exc_info=True)
                first = first or error
        return first

    def _resubscribe(self) -> None:
        """Forget the state of the queues, and use those that are consumed now."""
        self.queues = self.active_queues
        self._tracking.reset()

    def on_queues_changed(self) -> None:
        """Fetch from other queues than before: some are refused, or no more."""
        self._resubscribe()
        super().on_queues_changed()

    def _is_stale_error(self, error: ResponseError, queues: Sequence[str], generation: int) -> bool:
        """Return whether a command failed for queues that are left out now: the connection is good."""
        if not is_refusal(error):
            return False
        found = self.skips_refused and self._refused.check(queues)
        return found or generation != self._tracking.generation

    # --- acknowledgements ---

    @property
    def will_send(self) -> bool:
        """Whether it will send something soon: it consumes, is connected, and its poller is not blocked.

        A poller without a loop is blocked while a delivered message waits for a slot of the pool.
        """
        if not self.queues or self.fetcher is None or not self.fetcher.is_open:
            return False
        cycle = self.connection.cycle
        return cycle.loop is not None or cycle.polls or threading.get_ident() == cycle.thread

    def acknowledge(self, tag: str) -> None:
        """Acknowledge a message with the next command, or by one of its own if none will be sent."""
        now = monotonic()
        self._acks.add(tag, now)
        self.prefetcher.rate.settled += 1
        if not self.will_send:
            self.flush()
            return
        cycle = self.connection.cycle
        if threading.get_ident() != cycle.thread:
            cycle.wake()
        elif self.fetcher is not None and now > max(self._acks.due_at, self._backoff.paused_until):
            self._fetch_and_ack(self.fetcher, 0)
        elif not self._acks.has_timer and (self.prefetcher.buffer.target or self._enough() > 1):
            self._acks.has_timer = True
            # on_poll_start is too late: a loop has set its timeout by then
            cycle.wake_in(tuning.ACK_LINGER_S)

    def flush_soon(self) -> None:
        """Let no acknowledgement wait for others: a task that may run once only is about to begin."""
        self._acks.flush_soon()

    def unconfirmed_acks(self) -> list[str]:
        """Return the tags of settled messages whose acknowledgement Redis has not confirmed."""
        return [*(self.fetcher.pending_tags if self.fetcher is not None else ()), *self._acks.tags]

    def flush(self) -> None:
        """Acknowledge all settled messages, and wait for the reply."""
        self._acks.has_timer = False
        while tags := self._acks.take():
            try:
                with self.conn_or_acquire() as client:
                    acknowledge(client, self.unacked_key, self.unacked_index_key, tags)
            except BaseException:
                self._acks.put_back(tags)
                raise

    def _wait_for_replies(self) -> None:
        """Wait for the replies that are under way."""
        if self.fetcher is not None:
            self.fetcher.wait_for_replies(tuning.CLOSE_TIMEOUT_S)

    # --- what to send next ---

    def next_poll_in(self) -> float:
        """Return after how many seconds to call `on_poll_start`, whatever happens."""
        now, at = monotonic(), inf
        if self._tracking.may_have_messages and self._backoff.not_before > now:
            at = self._backoff.not_before
        if self._acks:
            at = min(at, max(self._acks.due_at, self._backoff.paused_until))
        return max(0.0, min(at - now, tuning.POLL_INTERVAL_S))

    def on_poll_start(self, register: Callable[[Channel], object]) -> None:
        """Send the next command, if there is one to send.

        Args:
            register: Is called to let the poller watch a new connection.

        Raises:
            ConnectionError: The connection was lost, with messages under way.
        """
        fetcher = self.fetcher
        if fetcher is None:
            client = self._create_client(asynchronous=True)
            fetcher = self.fetcher = PipelinedConnection(client, self._tracking.on_invalidate)
        if self.lost_fetch:
            self.lost_fetch = False
            raise RedisConnectionError("A connection to Redis was lost by which messages were under way.")
        if fetcher.fileno is None or not fetcher.is_open:
            register(self)
        now = monotonic()
        if now > self._refused.retry_at:
            self._refused.retry()
        buffer = self.prefetcher.buffer
        if buffer:
            self.prefetcher.deliver(now)
        if now < self._backoff.paused_until:
            return
        is_fetching = fetcher.has_pending_fetch
        slots = more = target = 0
        if self._tracking.may_have_messages and now >= self._backoff.not_before:
            target = self.prefetcher.target(now)
            if not is_fetching:
                slots = 0 if buffer else self.free_slots()
                more = max(0, target - len(buffer))
        buffer.target = target
        runs_short = more > target // 2
        lingers = self._acks and now < self._acks.due_at
        if lingers and (is_fetching or not (runs_short or self._is_enough(slots))):
            return
        if slots or self._acks or runs_short:
            self._fetch_and_ack(fetcher, slots, more)
        elif fetcher.is_idle and self._tracking.is_due(now):
            fetcher.send(*self._track())

    @property
    def is_notified(self) -> bool:
        """Whether Redis has notified of a message that was not fetched since."""
        return self._tracking.may_have_messages and self._tracking.is_notified

    def free_slots(self) -> int:
        """Return for how many messages the node has a slot, at most what one command fetches."""
        qos = self.qos
        if not qos.can_consume():
            return 0
        if self.fetches_singly():
            return 1
        most = min(tuning.FETCH_BATCH, self.fetch_limit)
        qos._flush()  # settled messages do not count, whichever channel they came by
        return max(0, min(most, qos.prefetch_count - len(qos._delivered))) if qos.prefetch_count else most

    def _enough(self) -> int:
        """Return how many messages are worth a command of their own: half of the prefetch count."""
        return min(tuning.FETCH_BATCH, self.fetch_limit, (self.qos.prefetch_count or tuning.FETCH_BATCH) // 2)

    def _is_enough(self, slots: int) -> bool:
        """Return whether there is enough to fetch or to acknowledge for a command of its own."""
        enough = self._enough()
        return slots >= enough or len(self._acks) >= max(enough, self.prefetcher.buffer.target // 2)

    def fetches_singly(self) -> bool:
        """Return whether a condition, or an order of queues, has to be asked before each message.

        Celery may have put it here (worker_disable_prefetch), or an app.
        """
        return "can_consume" in vars(self.qos) or not isinstance(self._queue_cycle, round_robin_cycle)

    def _back_off(self, seconds: float) -> None:
        """Fetch no earlier than in some seconds."""
        self._backoff.delay(seconds, monotonic())
        self.connection.cycle.wake_in(seconds)

    # --- commands and their replies ---

    def _fetch_and_ack(self, fetcher: PipelinedConnection, slots: int, more: int = 0) -> None:
        """Acknowledge settled messages, fetch one for each free slot, and prefetch some more."""
        now, most = monotonic(), min(slots + more, tuning.FETCH_BATCH)
        tags = self._acks.take()
        self._acks.restart(now)
        queues = self._queue_cycle.consume(len(self.queues)) if most else []
        keys, args = self.lists.arguments(queues, in_turn=not isinstance(self._queue_cycle, priority_cycle))
        newest = 0 if self.fetches_singly() else self._eta_runs.newest(most)
        generation = self._tracking.generation
        unacked = (self.unacked_key, self.unacked_index_key)
        command = PendingCommand(
            (*self._script_call(), 2 + len(keys), *unacked, *keys, most, newest, *args, *tags),
            lambda reply: self._on_fetched(
                fetch.parse_reply(reply, queues, keys, most - newest), slots, most, now
            ),
            lambda error: self._on_fetch_error(error, tags, queues, generation),
            tags,
            is_fetch=most > 0,
        )
        if not most:
            fetcher.send(command)
            return
        # Redis does not notify a node of its own fetch, and stops tracking the lists that it reads.
        self._tracking.on_fetch()
        self.asked_at = now
        fetcher.send(command, *(self._track() if self._tracking.fell_short else ()))

    def _script_call(self) -> tuple[str, str]:
        """Return the command that calls the script, and the name that it takes."""
        return functions.command(FETCH_AND_ACK_SHA, self.client)

    def _track(self) -> tuple[PendingCommand, PendingCommand]:
        """Return the commands by which Redis notifies of the next message in any list."""
        now, tracking, queues = monotonic(), self._tracking, tuple(self.queues)
        tracking.on_subscribe(now)
        self.asked_at = now
        generation = tracking.generation
        return PendingCommand(TRACK_NEXT), PendingCommand(
            ("EXISTS", *self.lists.keys(queues)),
            lambda count: tracking.on_checked(count, generation),
            lambda error: self._is_stale_error(error, queues, generation),
        )

    def _on_fetched(self, messages: list[FetchedMessage], slots: int, most: int, sent_at: float) -> None:
        """Deliver fetched messages, and keep those for which there is no slot.

        Args:
            messages: The fetched messages.
            slots: For how many there is a slot.
            most: How many the command asked for.
            sent_at: When it was sent, by the monotonic clock.
        """
        if not most:
            return
        tracking = self._tracking
        tracking.fell_short = len(messages) < most
        if tracking.fell_short:
            self._eta_runs.clear()
        else:
            tracking.may_have_messages = True
        if wait := self._backoff.record_fetch(
            found=bool(messages), was_notified=tracking.is_notified, nodes=self.nodes
        ):
            self._back_off(wait)
        tracking.is_notified = False
        for message in messages:
            self._queue_cycle.rotate(message.queue)
        self.prefetcher.buffer.record_fetch(sent_at, monotonic())
        try:
            self.deliver_all(messages[:slots])
        finally:
            if surplus := messages[slots:]:
                self.prefetcher.keep(surplus, sent_at)

    def _on_fetch_error(
        self, error: ResponseError, tags: tuple[str, ...], queues: Sequence[str], generation: int
    ) -> bool:
        """Handle an error reply to a fetch. Returns whether the connection can still be used."""
        if functions.is_missing(error):
            self._on_missing_script(error)
        elif is_full(error):
            self.pause(error)
        elif not self._is_stale_error(error, queues, generation):
            return False
        self._tracking.may_have_messages = True
        self._acks.put_back(tags)
        return True

    def _on_missing_script(self, error: ResponseError) -> None:
        """Load the script that Redis lacks now; where only an administrator may, try again later."""
        functions.forget(FETCH_AND_ACK_SHA)
        try:
            if not functions.is_present(FETCH_AND_ACK_SHA, self.client):
                with self.conn_or_acquire() as client:
                    client.script_load(scripts.FETCH_AND_ACK)
        except NoPermissionError:
            self._back_off(tuning.OOM_RETRY_S)
            functions.forget(FETCH_AND_ACK_SHA)
            logger.error("%s", functions.missing(FETCH_AND_ACK_SHA, error))

    def pause(self, error: ResponseError) -> None:
        """Send nothing for a while, since Redis refuses writes now."""
        self._tracking.may_have_messages = True
        if self._backoff.pause(monotonic()):
            logger.warning(
                "Redis is full, and is asked for messages every %d s: %s", tuning.OOM_RETRY_S, error
            )
        self.connection.cycle.wake_in(tuning.OOM_RETRY_S)

    # --- delivery ---

    def deliver_all(self, messages: list[FetchedMessage]) -> None:
        """Deliver messages: all of them, even if one raises an error, since all are recorded."""
        errors = []
        for message in messages:
            try:
                self._deliver_one(message)
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def _deliver_one(self, message: FetchedMessage) -> None:
        """Deliver a message to its consumer."""
        self.connection.cycle.delivered = True
        queue = message.queue
        if queue in self.lists.no_ack:
            decode.deliver(self, message.item, queue)
            return
        before, runs = self.eta_count, self._eta_runs
        ref = UnackedRef(self.unacked_key, self.unacked_index_key, message.tag)
        decode.deliver(self, message.item, queue, ref)
        if self.eta_count > before:
            runs.add(queue)
        elif runs.lengths and not message.is_newest:
            runs.end(queue)

    def on_malformed(self, item: bytes, queue: str, ref: UnackedRef | None, error: Exception) -> None:
        """Log an item that is no message. Its text is not shown: it may be secret.

        Args:
            item: The item.
            queue: The queue that it was in.
            ref: Its record; None if it has none, and so is lost.
            error: What is wrong with it.
        """
        fate = f"stays unacknowledged as {ref.tag}" if ref else "is lost"
        logger.critical(
            "An item of %d bytes in the queue %s is no message, and %s: %s",
            len(item), queue, fate, type(error).__name__,
        )  # fmt: skip
