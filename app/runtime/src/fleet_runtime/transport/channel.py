# SPDX-License-Identifier: MIT
"""A Redis transport that takes messages and records who holds them in one step.

kombu's takes a message out of its queue by one command (BRPOP), and records by the next that the node has
it. A node that dies between the two loses the message, and so does a Redis that refuses the second one. Here
a script does both, for as many messages as there is room for, and forgets those that are done. A script
cannot wait. A node that has found nothing lets Redis tell it of the next change (CLIENT TRACKING), on the
same connection and for all its lists at once, and asks nothing meanwhile.

Messages and queues stay kombu's own: producers, and nodes without this transport, work on the same queues.
"""

from __future__ import annotations

import logging
import os
import random
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from math import inf
from queue import Empty
from time import monotonic, time
from typing import Any, NamedTuple
from weakref import finalize

from kombu.transport import redis as stock
from kombu.transport import virtual
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps, loads
from kombu.utils.scheduling import priority_cycle, round_robin_cycle
from redis.exceptions import ConnectionError as NoConnectionError
from redis.exceptions import NoPermissionError, ResponseError

from fleet_runtime.bootstrap.plugins import without_prefix
from fleet_runtime.broker import functions, scripts
from fleet_runtime.broker.oom import is_full
from fleet_runtime.dead_letters.store import Held
from fleet_runtime.transport import decode
from fleet_runtime.transport.connection import TRACK_NEXT, Asked, Lane
from fleet_runtime.transport.pubsub import NotYet

logger = logging.getLogger(__name__)

# Seconds after which a node that waits looks by itself. Until then nobody notices that the other end is gone.
WAIT = 10
# Seconds between two questions to a Redis that writes nothing, and between two lines of the log about it.
RETRY_INTERVAL, LOG_INTERVAL = 1, 60
# Seconds for a last answer, as a channel is closed; and for a message that Redis has told of.
LAST, SOON = 5, 0.002
# Seconds between two searches for what is held for longer than the visibility timeout. A node without a loop
# of its own would search as often as it waits. It is a matter of days.
RESTORE = 600
# Messages that are taken at a time, at most, and acknowledged.
BATCH, ACKS = 100, 1000
# The transport option by which a node that runs what it takes one by one takes it so.
OPTION = "most_at_a_time"
# Seconds that an acknowledgement waits for others to go with.
LINGER = 0.01
# Seconds that a node does not look after it was told of messages, and others had taken them: up to the first
# figure, twice as long after each further time, so often; and so many times as long as there are nodes, or as
# the last says, if those are less. Redis tells all nodes that wait of each message, and with hundreds of them
# it would do little else. With a few, a message that finds the others busy need not wait.
FIRST, DOUBLED, MANY = 0.001, 10, 250
# What a node takes in advance, besides what it reserves: as much as it has run in so many seconds lately, and
# for each message that it reserves, at most so many. It goes back to its queue after so many seconds.
ADVANCE, FOR_EACH, BACK = 0.01, 4, 0.05
# Seconds over which the pace of a node is taken, at least.
SPAN = 0.005
# After so many messages in a row of a queue whose tasks wait for their time, as when a node starts that held
# many, what is due may stand behind tens of thousands more. Then one in so many is the newest of its list.
DELAYED_IN_ROW, NEWEST_OF = 100, 4
# Seconds until a queue that Redis refuses is looked at again.
AGAIN = 30.0
# Seconds that a node handles control commands and events in one turn of its loop; the rest is for the next.
TURN_OF_FANOUT = 0.1

FETCH_AND_ACK_SHA = functions.sha(scripts.FETCH_AND_ACK)


class Taken(NamedTuple):
    """A message that was taken, and not delivered.

    Attributes:
        place: The list from which it was taken.
        queue: To which that belongs.
        tag: By which it is held.
        item: As it was in the list.
        is_newest: Whether it was taken as the newest of its list.
    """

    place: str
    queue: str
    tag: str
    item: bytes
    is_newest: bool


class QoS(stock.QoS):  # type: ignore[misc]  # kombu ships no types
    """kombu's account of what was taken, which need not write down what the script did."""

    def append(self, message: Any, delivery_tag: str) -> None:
        """Count a message as reserved."""
        recorded = getattr(self.channel, "recorded", ())  # kombu's own channels do not have it
        if delivery_tag in recorded:
            virtual.QoS.append(self, message, delivery_tag)
        else:
            super().append(message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge a message: with the next that the channel sends, if it will send anything."""
        channel = self.channel
        if isinstance(channel, Channel):
            virtual.QoS.ack(self, delivery_tag)
            channel.acknowledge(delivery_tag)
            return
        with channel.conn_or_acquire() as client:
            acknowledge(client, self.unacked_key, self.unacked_index_key, [delivery_tag])
        self._make_room(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Reject a message, which goes behind all others of its queue if it is to come back."""
        if not requeue:
            self.ack(delivery_tag)
            return
        self.restore_by_tag(delivery_tag, leftmost=True)
        self._make_room(delivery_tag)

    def _make_room(self, delivery_tag: str) -> None:
        """Count a message as settled, and let a node that had no room for another one know."""
        virtual.QoS.ack(self, delivery_tag)
        if isinstance(self.channel.connection, Transport):  # not a closed one, nor kombu's own
            self.channel.connection.cycle.wake()

    def restore_by_tag(self, tag: str, client: Any = None, leftmost: bool = False) -> None:
        """Put a message back; one for which there is no place stays among what the node holds."""
        with self.channel.conn_or_acquire(client) as redis:
            while record := redis.hget(self.unacked_key, tag):
                try:
                    message, lists = self._read(record)
                except self.channel.connection_errors:
                    raise
                except Exception:
                    logger.critical("A message cannot go back to its queue: %s", tag, exc_info=True)
                    return
                names = [self.unacked_key, self.unacked_index_key, *lists]
                words = [tag, record, message, "LPUSH" if leftmost else "RPUSH"]
                if functions.run(redis, scripts.REQUEUE_ONE, names, words):
                    return

    def _read(self, record: bytes) -> tuple[str, list[str]]:
        """Return a message as it goes back, and the lists to which it belongs."""
        message, exchange, routing_key = loads(bytes_to_str(record))
        message["headers"]["redelivered"] = True
        message["properties"]["delivery_info"]["redelivered"] = True
        priority = self.channel._get_message_priority(message, reverse=False)
        queues = self.channel._lookup(exchange, routing_key)
        if not queues:
            raise ValueError(f"no queue is bound to {exchange!r} with the routing key {routing_key!r}")
        return dumps(message), [self.channel._q_for_pri(queue, priority) for queue in queues]

    def restore_visible(self, *args: Any, **kwargs: Any) -> None:
        """Hand out again what was held for longer than the visibility timeout, unless Redis is too full.

        What this node knows that it holds is not handed out: it waits for its ETA, or runs, and what a dead
        node held comes back by its lease. kombu asks for this with each connection, and an error there ends
        the node.
        """
        try:
            self._renew()
            super().restore_visible(*args, **{**kwargs, "interval": 1})  # each time: `RESTORE` says how often
        except ResponseError as error:
            if not is_full(error):
                raise
            logger.debug("What is held for long stays so, since Redis is full: %s", error)

    def _renew(self) -> None:
        """Count what this node knows that it holds as taken just now, if the visibility timeout is over."""
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


def acknowledge(client: Any, unacked: str, index: str, tags: Iterable[str]) -> None:
    """Acknowledge messages, and wait for the answer."""
    functions.run(client, scripts.FETCH_AND_ACK, [unacked, index], [0, 0, 0, 0, *tags])


def is_refusal(error: ResponseError) -> bool:
    """Return whether Redis refuses a command for a key, and would refuse it again."""
    return isinstance(error, NoPermissionError) or str(error).startswith("WRONGTYPE")


class Channel(stock.Channel):  # type: ignore[misc]  # kombu ships no types
    """kombu's channel, which takes messages by the script.

    Attributes:
        lane: The connection by which it takes them.
        queues: From which it takes them.
        recorded: Tags of messages that the script has recorded, and that are being delivered.
        most_at_a_time: A transport option: how many messages to take at a time, at most.
        nodes: How many nodes may be told of a message. Whoever knows it says so; else there may be many.
        skips_refused: Whether a queue that Redis refuses is left out, and the others are consumed. What sends
            to a queue is to get the error.
        refused: Queues that are left out, each with the reason.
        on_refused: Is called when there is another, or one less.
        delayed: How many messages were delivered whose tasks wait for their time; who handles them counts.
        listened_at: When it was last polled for what is sent to all nodes, by the monotonic clock.
    """

    QoS = QoS
    most_at_a_time = BATCH
    nodes = MANY
    from_transport_options = (*stock.Channel.from_transport_options, OPTION)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Begin."""
        self.lane: Lane | None = None
        self.listened_at: float | None = None
        self.queues: list[str] = []
        self.recorded: set[str] = set()
        self.delayed = self._owed_of_newest = 0
        self._delayed_in_row: dict[str, int] = {}  # by queue
        self._acks: deque[str] = deque()
        self._acks_since, self._lingers = inf, False
        self._no_ack: set[str] = set()
        self._keys: dict[str, list[str]] = {}
        self.skips_refused, self.refused = False, dict[str, str]()
        self._refused_fanout: dict[str, tuple[str, str]] = {}
        self.on_refused: Callable[[], object] = lambda: None
        self._refused_until = inf
        # What the script was told of its queues last, and for which it was.
        self._words_for: list[str] | None = None
        self._words: tuple[list[str], list[Any]] = ([], [])
        self._pooled: Any = None
        # Whether there may be messages, and whether Redis will tell when there are; since when the lists are
        # those that they are now, in changes; whether it told, and how often in a row for nothing.
        self._look, self._watched, self._watched_at = True, False, -inf
        self._change = 0
        self._was_short, self._may_hold = False, False
        self._was_notified, self._empty_answers = False, 0
        # What is taken in advance, and since when; how much of it there is to be; when the loop looks at it.
        self._ahead: deque[tuple[float, Taken]] = deque()
        self._wanted, self._alarm = 0, -inf
        # Whether Redis has answered so soon that what is taken in advance need not go back at once.
        self._answers_soon = True
        # Messages a second, and how many were done since when.
        self._pace, self._done, self._done_since = 0.0, 0, monotonic()
        self._not_before, self._paused_until, self._said_at = -inf, -inf, -inf
        super().__init__(*args, **kwargs)

    @cached_property
    def client(self) -> Any:
        """A client of the channel's pool; kombu's waits by it, and so has a connection of its own."""
        return self._create_client()

    @property
    def sends(self) -> bool:
        """Whether it sends something soon: it consumes, has a connection, and what polls is not held up.

        Without a loop it may wait for room in the pool, with a message in its hands.
        """
        if not self.queues or self.lane is None or not self.lane.is_open:
            return False
        cycle = self.connection.cycle
        return cycle.loop is not None or cycle.polls or threading.get_ident() == cycle.thread

    @contextmanager
    def conn_or_acquire(self, client: Any = None) -> Iterator[Any]:
        """Yield a client of the channel's pool.

        kombu makes a new one each time, which takes longer than what it is for (kombu 5.7, redis-py 8.1).
        """
        if client is None and (self._pooled is None or self._pooled.connection_pool is not self._pool):
            self._pooled = self._create_client()
        yield client or self._pooled

    def basic_consume(self, queue: str, no_ack: bool = False, *args: Any, **kwargs: Any) -> Any:
        """Consume from a queue; what is not to be acknowledged is not recorded."""
        (self._no_ack.add if no_ack else self._no_ack.discard)(queue)
        self._keys[queue] = [self._q_for_pri(queue, priority) for priority in self.priority_steps]
        known = queue in self._fanout_queues or queue in self.refused
        if self.skips_refused and not known and (reason := self.refusal(queue)):
            self._refuse(queue, reason)
        consumer = super().basic_consume(queue, no_ack, *args, **kwargs)
        self._look_anew()
        return consumer

    @property
    def active_queues(self) -> list[str]:
        """The queues to take messages from: all that are consumed, but for what Redis refuses."""
        queues: list[str] = super().active_queues
        return [queue for queue in queues if queue not in self.refused] if self.refused else queues

    def refusal(self, queue: str) -> str:
        """Return what Redis refuses, and why, if this node may not take messages from a queue; else nothing.

        A key of that name that is no list is refused, too.
        """
        lists = [self._q_for_pri(queue, priority) for priority in self.priority_steps]
        names = [self.unacked_key, self.unacked_index_key, *lists]
        command = "LLEN"
        try:
            with self.conn_or_acquire() as client:
                for key in lists:
                    client.llen(key)
                command = "the function that takes messages"
                functions.run(client, scripts.FETCH_AND_ACK, names, [0, 0, 0, 1, queue])
        except ResponseError as error:
            if is_refusal(error):
                return f"{command}: {error}"
            raise
        return ""

    def _refuse(self, queue: str, reason: str) -> None:
        """Leave a queue out until Redis allows it."""
        if queue in self._fanout_queues:
            self._refused_fanout[queue] = self._fanout_queues.pop(queue)
        if queue in self._refused_fanout:  # its name is another one in each node
            exchange, _ = self._refused_fanout[queue]
            reason = f"{reason} (a queue of the exchange {exchange}, whose messages go to every node)"
        if self.refused.get(queue) != reason:
            logger.error(
                "Redis refuses the queue %s, which this node should consume: %s. It consumes its other "
                "queues, and looks again every %d s. Either the access rules do not name the queue, or a key "
                "of its name is no list.", queue, reason, AGAIN
            )  # fmt: skip
        self.refused[queue] = reason
        self._refused_until = monotonic() + AGAIN
        self.active_fanout_queues.discard(queue)
        self._on_queues_changed()

    def _refuse_what_is(self, queues: Iterable[str], change: int) -> bool:
        """Leave out those of some queues that Redis refuses.

        Returns:
            Whether there is one, or was since these were asked for, so that the connection is good.
        """
        asked = queues if self.skips_refused else ()
        found = {queue: reason for queue in asked if (reason := self.refusal(queue))}
        for queue, reason in found.items():
            self._refuse(queue, reason)
        return bool(found) or change != self._change

    def _retry_refused(self) -> None:
        """Consume again what Redis allows now."""
        self._refused_until = monotonic() + AGAIN
        for queue in tuple(self.refused):
            to_all = self._refused_fanout.get(queue)
            if queue not in self._active_queues:  # it was cancelled
                del self.refused[queue]
                self._refused_fanout.pop(queue, None)
            elif reason := self._refusal_of_fanout(*to_all) if to_all else self.refusal(queue):
                self._refuse(queue, reason)
            else:
                logger.warning("Redis allows the queue %s now, and this node consumes it.", queue)
                del self.refused[queue]
                if to_all:
                    self._fanout_queues[queue] = self._refused_fanout.pop(queue)
                    self._fanout_to_queue[to_all[0]] = queue
                    self.active_fanout_queues.add(queue)
                    self._in_listen = None  # so that it is subscribed to
        if not self.refused:
            self._refused_until = inf
        self._on_queues_changed()

    def _on_queues_changed(self) -> None:
        """Take from other queues than before."""
        self._update_queue_cycle()
        self._look_anew()
        self.on_refused()

    def _basic_cancel(self, consumer_tag: str) -> Any:
        """Consume from a queue no more."""
        cancelled = super()._basic_cancel(consumer_tag)
        self._look_anew()
        if not self._closing:  # so that it goes back now, and not when the last task has ended
            steps = (self._give_back,) if self.queues else (self._finish, self.flush, self._give_back)
            if error := self._try(*steps):
                raise error  # so that the node connects anew, and gives back what was under way
        return cancelled

    def _try(self, *steps: Callable[[], object]) -> Exception | None:
        """Do each of some steps, though one fails; return the first error."""
        first = None
        for step in steps:
            try:
                step()
            except (*self.connection_errors, ResponseError) as error:
                logger.debug("Something may be under way as this ends.", exc_info=True)
                first = first or error
        return first

    def acknowledge(self, tag: str) -> None:
        """Acknowledge a message with what is sent next, if anything is."""
        now = monotonic()
        if not self._acks:
            self._acks_since = now
        self._acks.append(tag)
        self._done += 1
        if not self.sends:
            self.flush()
            return
        cycle = self.connection.cycle
        if threading.get_ident() != cycle.thread:
            cycle.wake()
        elif self.lane is not None and now > max(self._acks_since + LINGER, self._paused_until):
            self._turn(self.lane, 0)
        elif not self._lingers and (self._wanted or self._enough() > 1):
            self._lingers = True
            cycle.wake_in(LINGER)  # not as it advances: by then a loop knows already how long it will wait

    @property
    def is_notified(self) -> bool:
        """Whether Redis has told of a message, and it was not looked for yet."""
        return self._look and self._was_notified

    def acknowledge_at_once(self) -> None:
        """Let nothing that is done wait for others: a task that is to run once at most has begun."""
        self._acks_since = -inf

    def unacknowledged(self) -> list[str]:
        """Return the tags of what is done, and may not be acknowledged, on a channel that is lost."""
        return [*(self.lane.tags if self.lane is not None else ()), *self._acks]

    def _finish(self) -> None:
        """Wait for what is under way."""
        if self.lane is not None:
            self.lane.finish(LAST)

    def flush(self) -> None:
        """Acknowledge what waits for others to go with, and wait for the answer."""
        self._lingers = False
        while self._acks:
            tags = self._next_acks()
            try:
                with self.conn_or_acquire() as client:
                    acknowledge(client, self.unacked_key, self.unacked_index_key, tags)
            except BaseException:
                self._acks.extendleft(reversed(tags))
                raise

    def due(self) -> float:
        """Return after how many seconds to advance, whatever happens."""
        now, due = monotonic(), inf
        if self._look and self._not_before > now:
            due = self._not_before
        if self._acks:
            due = min(due, max(self._acks_since + LINGER, self._paused_until))
        return max(0.0, min(due - now, WAIT))

    def advance(self, register: Any) -> None:
        """Send what is to be sent next, and let a poller know of a new connection."""
        lane = self.lane
        if lane is None:
            lane = self.lane = Lane(self._create_client(asynchronous=True), self._on_change)
        if self._may_hold:
            self._may_hold = False
            raise NoConnectionError("A connection to Redis was lost by which messages were under way.")
        if lane.fileno is None or not lane.is_open:
            register(self)
        now = monotonic()
        if now > self._refused_until:
            self._retry_refused()
        if self._ahead:
            self._deliver_ahead(now)
        if now < self._paused_until:
            return
        takes = lane.takes
        room = more = self._wanted = 0
        if self._look and now >= self._not_before:
            self._wanted = self._in_advance(now)
            if not takes:
                room = 0 if self._ahead else self.room()
                more = max(0, self._wanted - len(self._ahead))
        runs_short = more > self._wanted // 2
        lingers = self._acks and now < self._acks_since + LINGER
        if lingers and (takes or not (runs_short or self._is_worth_a_turn(room))):
            return
        if room or self._acks or runs_short:
            self._turn(lane, room, more)
        elif lane.is_idle and (not (self._look or self._watched) or now > self._watched_at + WAIT):
            lane.ask(*self._watch())

    def room(self) -> int:
        """Return for how many messages there is room, up to how many are taken at a time."""
        qos = self.qos
        if not qos.can_consume():
            return 0
        if self._asks_each_time():
            return 1
        most = min(BATCH, self.most_at_a_time)
        qos._flush()  # what is settled does not count, whichever channel it came by
        return max(0, min(most, qos.prefetch_count - len(qos._delivered))) if qos.prefetch_count else most

    def _enough(self) -> int:
        """Return how many messages it takes to send something at once: half of what the node reserves."""
        return min(BATCH, self.most_at_a_time, (self.qos.prefetch_count or BATCH) // 2)

    def _in_advance(self, now: float) -> int:
        """Return how many messages to have here that there is no room for yet.

        With one for each process, a process waits for Redis between any two tasks, and each task wakes all of
        them. A node that has run many lately takes the next ones with the last. One that has to ask before
        each message does not, nor one without a loop, which could not give them back, nor one whose Redis is
        so far away that they would have to go back as they come.
        """
        elapsed = now - self._done_since
        if elapsed > SPAN:
            pace = self._done / elapsed
            self._pace = min(pace, (self._pace + pace) / 2)
            self._done, self._done_since = 0, now
        strict = self._asks_each_time() or self.most_at_a_time < BATCH or self._no_ack
        if strict or self.connection.cycle.loop is None or not self._answers_soon:
            return 0
        most: int = self.qos.prefetch_count * FOR_EACH
        return min(int(self._pace * ADVANCE), most, BATCH)

    def _asks_each_time(self) -> bool:
        """Return whether a condition, or an order of queues, is to be asked before each message.

        Celery may have put it here (worker_disable_prefetch), or an app.
        """
        return "can_consume" in vars(self.qos) or not isinstance(self._queue_cycle, round_robin_cycle)

    def _deliver_ahead(self, now: float) -> None:
        """Deliver what was taken in advance, as there is room; what waits for long is for others."""
        if self.give_back_what_waits(now):
            return
        room = min(self.room(), len(self._ahead))
        self._deliver([self._ahead.popleft()[1] for _ in range(room)])
        if room:
            self.connection.cycle.go_on()

    def give_back_what_waits(self, now: float | None = None) -> bool:
        """Put what was taken in advance back if it waits for long; return whether it did."""
        now = monotonic() if now is None else now
        if not self._ahead or now < self._ahead[0][0] + BACK:
            return False
        self._pace = 0.0
        self._give_back()
        return True

    def _keep(self, ahead: list[Taken], asked_at: float) -> None:
        """Keep what was taken in advance, for a while; of a queue that was cancelled meanwhile, not at all.

        The time is that of the question: the node may have stood still since, and others may have got it.
        """
        now = monotonic()
        self._ahead.extend((asked_at, one) for one in ahead)
        if any(one.queue not in self.queues for one in ahead):
            self._give_back()
        elif now > self._alarm:
            self._remind(now)

    def _remind(self, now: float) -> None:
        """Let the loop look as soon as the oldest has waited for too long."""
        wait = max(self._ahead[0][0] + BACK - now, BACK / 5)
        self._alarm = now + wait
        self.connection.cycle.loop.call_later(wait, self._on_alarm)

    def _on_alarm(self) -> None:
        """Look again later, if there is something; the loop looks now."""
        if self._ahead and not self.closed:
            self._remind(monotonic())

    def _give_back(self) -> None:
        """Put what was taken in advance back where it was."""
        ahead = [one for _, one in self._ahead]
        if not ahead:
            return
        names = [self.unacked_key, self.unacked_index_key, *(one.place for one in ahead)]
        words = [word for one in ahead for word in (one.tag, one.item)]
        try:
            with self.conn_or_acquire() as client:
                functions.run(client, scripts.UNPREFETCH, names, words)
        except ResponseError as error:
            if not is_full(error):
                raise
            now = monotonic()  # another time
            self._ahead = deque((now, one) for one in ahead)
            return
        self._ahead.clear()

    def _is_worth_a_turn(self, room: int) -> bool:
        """Return whether there is enough to send something at once, and not with what is done next."""
        enough = self._enough()
        return room >= enough or len(self._acks) >= max(enough, self._wanted // 2)

    def pause(self, error: ResponseError) -> None:
        """Look again later, since Redis writes nothing now."""
        self._look = True
        self._back_off(RETRY_INTERVAL)
        self._paused_until = self._not_before
        now = monotonic()
        if now > self._said_at + LOG_INTERVAL:
            self._said_at = now
            logger.warning("Redis is full, and is asked for messages every %d s: %s", RETRY_INTERVAL, error)

    def _turn(self, lane: Lane, room: int, more: int = 0) -> None:
        """Acknowledge what is done, and take as much as there is room for, and some more in advance."""
        now, most = monotonic(), min(room + more, BATCH)
        tags = self._next_acks()
        self._acks_since, self._lingers = now, False
        queues = self._queue_cycle.consume(len(self.queues)) if most else []
        if queues != self._words_for:
            self._words_for, self._words = list(queues), self._words_of(queues)
        (names, words), change, newest = self._words, self._change, self._newest(most)
        turn = Asked(
            (*self._turn_call(), len(names), *names, most, newest, *words, *tags),
            lambda taken: self._on_taken(
                self._read(taken, queues, names[2:], most - newest), room, most, now
            ),
            lambda error: self._on_refused(error, tags, queues, change),
            tags,
            takes=most > 0,
        )
        if not most:
            lane.ask(turn)
            return
        # What it takes out of a list, Redis does not tell it, and forgets that it is to tell of that list.
        self._look, self._watched, self._brpop_sent_at = False, False, self._acks_since
        lane.ask(turn, *(self._watch() if self._was_short else ()))

    def _newest(self, most: int) -> int:
        """Return how many of the messages that are taken are the newest of their list."""
        longest = max(self._delayed_in_row.values(), default=0)
        if longest < DELAYED_IN_ROW or self._asks_each_time():
            return 0
        newest, self._owed_of_newest = divmod(self._owed_of_newest + most, NEWEST_OF)
        return newest

    def _turn_call(self) -> tuple[str, str]:
        """Return how the script is called."""
        return functions.command(FETCH_AND_ACK_SHA, self.client)

    def _words_of(self, queues: list[str]) -> tuple[list[str], list[Any]]:
        """Return the keys that the script has for some queues, and what it is told of them."""
        names = [self.unacked_key, self.unacked_index_key]
        for lists in zip(*(self._keys[queue] for queue in queues), strict=True):
            names += lists
        in_turn = int(not isinstance(self._queue_cycle, priority_cycle))
        return names, [in_turn, len(queues), *("" if queue in self._no_ack else queue for queue in queues)]

    def _next_acks(self) -> tuple[str, ...]:
        """Return the tags of what is acknowledged next."""
        return tuple(self._acks.popleft() for _ in range(min(len(self._acks), ACKS)))

    def _watch(self) -> list[Asked]:
        """Return what lets Redis tell of the next message in any list."""
        self._watched, self._watched_at = True, monotonic()
        self._brpop_sent_at = self._watched_at  # by which the watchdog sees that messages are asked for
        change = self._change
        lists = [key for queue in self.queues for key in self._keys[queue]]

        def answered(count: int) -> None:
            if change == self._change:
                self._look = count > 0

        queues = tuple(self.queues)

        def refused(error: ResponseError) -> bool:
            return is_refusal(error) and self._refuse_what_is(queues, change)

        return [Asked(TRACK_NEXT), Asked(("EXISTS", *lists), answered, refused)]

    def _on_change(self) -> None:
        """Look again, since a list has changed."""
        self._look, self._watched, self._was_notified = True, False, True

    def _read(self, said: list[Any], queues: list[str], lists: list[str], oldest: int) -> list[Taken]:
        """Return what the script has taken from some lists, which are those of each queue by priority.

        Args:
            said: Its answer.
            queues: The queues that it was asked for.
            lists: Their lists.
            oldest: How many messages it was to take as the oldest of their lists; the others follow.
        """
        places = map(int, said[::3])
        return [
            Taken(lists[place], queues[place % len(queues)], bytes_to_str(tag), item, at >= oldest)
            for at, (place, tag, item) in enumerate(zip(places, said[1::3], said[2::3], strict=True))
        ]

    def _on_taken(self, taken: list[Taken], room: int, most: int, asked_at: float) -> None:
        """Deliver what was taken, and keep what was taken in advance."""
        if not most:
            return
        self._was_short = len(taken) < most
        if self._was_short:  # nothing is left to stand behind
            self._delayed_in_row.clear()
        self._look = self._look or not self._was_short
        self._empty_answers = min(self._empty_answers + 1, DOUBLED) if self._was_notified and not taken else 0
        self._was_notified = False
        if self._empty_answers:
            longest = FIRST * min(2**self._empty_answers, self.nodes, MANY)
            self._back_off(random.uniform(0, longest))  # noqa: S311 (no secret)
        for one in taken:
            self._queue_cycle.rotate(one.queue)
        self._answers_soon = monotonic() < asked_at + BACK / 2
        try:
            self._deliver(taken[:room])
        finally:
            if ahead := taken[room:]:
                self._keep(ahead, asked_at)

    def _back_off(self, seconds: float) -> None:
        """Look no earlier than in some seconds."""
        self._not_before = monotonic() + seconds
        self.connection.cycle.wake_in(seconds)

    def _deliver(self, taken: list[Taken]) -> None:
        """Hand over what was taken: all of it, though one has an error, since all of it is held."""
        errors = []
        for one in taken:
            try:
                self._deliver_one(one)
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def _deliver_one(self, taken: Taken) -> None:
        """Hand over what was taken from a queue."""
        self.connection.cycle.delivered = True
        if taken.queue in self._no_ack:
            decode.deliver(self, taken.item, taken.queue, held=None)
            return
        self.recorded.add(taken.tag)
        before = self.delayed
        try:
            held = Held(self.unacked_key, self.unacked_index_key, taken.tag)
            decode.deliver(self, taken.item, taken.queue, held=held)
        finally:
            self.recorded.discard(taken.tag)
        if self.delayed > before:
            self._delayed_in_row[taken.queue] = self._delayed_in_row.get(taken.queue, 0) + 1
        elif not taken.is_newest:
            self._delayed_in_row.pop(taken.queue, None)

    def _on_refused(
        self, error: ResponseError, tags: tuple[str, ...], queues: Iterable[str], change: int
    ) -> bool:
        """Handle an error in place of messages; return whether the connection can be of use still."""
        if functions.is_missing(error):
            self._on_missing(error)
        elif is_full(error):
            self.pause(error)
        elif not (is_refusal(error) and self._refuse_what_is(queues, change)):
            return False
        self._look = True
        self._acks.extendleft(reversed(tags))
        return True

    def _on_missing(self, error: ResponseError) -> None:
        """Load the script that Redis lacks now, or look again later, where only others may load it."""
        functions.forget(FETCH_AND_ACK_SHA)
        self._look = True
        try:
            if not functions.is_present(FETCH_AND_ACK_SHA, self.client):
                with self.conn_or_acquire() as client:
                    client.script_load(scripts.FETCH_AND_ACK)
        except NoPermissionError:
            self._back_off(RETRY_INTERVAL)
            functions.forget(FETCH_AND_ACK_SHA)
            logger.error("%s", functions.missing(FETCH_AND_ACK_SHA, error))

    def _look_anew(self) -> None:
        """Look at the lists, which are others now."""
        self._change += 1
        self._words_for = None
        self.queues = self.active_queues
        self._look, self._watched = True, False

    def _queue_bind(self, *args: Any) -> None:
        """Bind a queue to its exchange, which an earlier start has done already if Redis is full now."""
        try:
            super()._queue_bind(*args)
        except ResponseError as error:
            if self.skips_refused and is_refusal(error):
                self._refuse(args[-1], f"SADD: {error}")
                return
            if not is_full(error):
                raise
            logger.warning("Redis is full, and the queue %s is taken to be bound: %s", args[-1], error)

    def _size(self, queue: str) -> int:
        """Return how many messages a queue has: kombu's way is a transaction, which a full Redis refuses."""
        with self.conn_or_acquire() as client, client.pipeline(transaction=False) as pipe:
            for priority in self.priority_steps:
                pipe.llen(self._q_for_pri(queue, priority))
            answers = pipe.execute(raise_on_error=False)
        for error in answers:
            if isinstance(error, ResponseError) and self.skips_refused and is_refusal(error):
                return 0  # whether it can be consumed is asked when it is to be
            if isinstance(error, Exception):
                raise error
        return sum(answers)

    def maybe_refresh_binding_expiry(self) -> None:
        """Keep queues that expire alive, unless Redis is full or lacks the function.

        kombu would log a traceback each second, and tries again in any case.
        """
        try:
            super().maybe_refresh_binding_expiry()
        except (ResponseError, functions.FunctionMissingError) as error:
            if not (is_full(error) or functions.is_missing(error)):
                raise

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:
        """Return the parameters of connections; on those that a poller watches, Redis tells by itself."""
        parameters: dict[str, Any] = super()._connparams(asynchronous)
        return {**parameters, "protocol": 3} if asynchronous else parameters

    def _receive_one(self, c: Any) -> Any:
        """Deliver one message that was sent to all nodes; leave out those queues that Redis refuses."""
        try:
            return super()._receive_one(c)
        except NoPermissionError as error:
            if not self.skips_refused:
                raise
            for queue in tuple(self.active_fanout_queues):
                if refusal := self._refusal_of_fanout(*self._fanout_queues[queue]):
                    self._refuse(queue, refusal)
            if not self.refused:
                raise
            logger.debug("A subscription was refused: %s", error)
            self._in_listen = None  # so that the others are subscribed to again
            return None

    def _refusal_of_fanout(self, exchange: str, routing_key: str) -> str:
        """Return what Redis refuses, and why, if this node may not hear what is sent to all; else nothing."""
        with self.conn_or_acquire() as client, client.pubsub() as listener:
            try:
                for topic in self._get_publish_topics(exchange, routing_key):
                    listener.execute_command("PSUBSCRIBE", topic)
                    if listener.parse_response(block=False, timeout=LAST) is None:
                        raise NoConnectionError("Redis does not answer to a PSUBSCRIBE.")
            except NoPermissionError as error:
                return f"PSUBSCRIBE: {error}"
        return ""

    def _receive(self) -> bool:
        """Deliver what was sent to all nodes, for as long as one turn of the loop may take.

        kombu goes on while there is more, so that a flood of it keeps a node from all else.
        """
        client, until = self.subclient, monotonic() + TURN_OF_FANOUT
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

    def _close_clients(self) -> None:
        """Close all connections."""
        if self.lane is not None:
            self.lane.close()
        super()._close_clients()

    def close(self) -> None:
        """Close; what is under way is still delivered, and goes back to its queue."""
        if not self.closed:
            self._try(self._finish, self.flush, self._give_back)
        super().close()

    def _on_connection_disconnect(self, connection: Any) -> None:
        """Forget what was asked on a connection."""
        lane = self.lane
        if lane is not None and lane.connection is connection:
            self._may_hold = self._may_hold or lane.takes
            self._acks.extendleft(reversed(lane.forget()))
            self._look_anew()
            if self.connection is not None:
                self.connection.cycle.forget(self)
        super()._on_connection_disconnect(connection)


class Poller(stock.MultiChannelPoller):  # type: ignore[misc]  # kombu ships no types
    """kombu's poller, for channels that take messages by the script.

    Attributes:
        loop: The loop of the node, if it has one, and what it calls when there is something to read.
        thread: The thread, or greenlet, that polls.
        polls: Whether it does now.
        delivered: Whether a message was delivered since this was last asked.
    """

    loop: Any = None
    reader: Any = None

    def __init__(self) -> None:
        """Begin."""
        super().__init__()
        self.thread: int | None = None
        self.polls = False
        self.delivered = False
        self._alarm: int | None = None
        self._nudge: int | None = None
        self._restored_at, self._checked_at = -inf, -inf
        self._unread: set[Any] = set()  # channels that have read what they have not delivered

    def wake(self) -> None:
        """Let who waits look again.

        kombu's poller would do so when something else happens, or its time is over: after two seconds, if
        tasks end in greenlets and the node runs as many as it may.
        """
        if self.loop is not None:
            self.loop.call_soon(int)
        elif self._alarm is not None:
            os.eventfd_write(self._alarm, 1)

    def go_on(self) -> None:
        """Let the loop turn once more, if what was delivered before it waits has left it something to do.

        It has decided by then for how long to wait (kombu 5.7, Hub.create_loop).
        """
        if not self.loop._ready:
            return
        if self._nudge is None:
            self._nudge = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            finalize(self, os.close, self._nudge)
            self.loop.add_reader(self._nudge, os.eventfd_read, self._nudge)
        os.eventfd_write(self._nudge, 1)

    def receive_later(self, channel: Any) -> None:
        """Let a channel deliver what it has read of what was sent to all nodes, in the next turn."""
        if channel not in self._unread:
            self._unread.add(channel)
            if self.loop is not None:
                self.loop.call_soon(self._receive_rest, channel)
            else:
                self.wake()

    def _receive_rest(self, channel: Any) -> None:
        """Deliver what a channel has read, unless that was done, or the channel was closed, meanwhile."""
        self._unread.discard(channel)
        if channel.connection is None or not channel._in_listen:
            return
        connection = channel.subclient.connection
        if connection is not None and connection.can_read(timeout=0):
            channel._receive()

    def wake_in(self, seconds: float) -> None:
        """Let the node's loop look again in some seconds; without a loop, what waits asks how long to."""
        if self.loop is not None:
            self.loop.call_later(seconds, int)

    def get(self, callback: Any, timeout: float | None = None) -> Any:
        """Wait for an event, without a loop."""
        if self._alarm is None:
            self._alarm = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            finalize(self, os.close, self._alarm)
            self.poller.register(self._alarm, stock.READ)
        self._check_subscriptions()
        waits = [channel.due() for channel in self._channels if channel.queues]
        return super().get(callback, min(waits if timeout is None else [*waits, timeout], default=WAIT))

    def _check_subscriptions(self) -> None:
        """Ask now and then whether connections that have subscribed live; kombu does so only with a loop."""
        now = monotonic()
        seconds = min((channel.health_check_interval or inf for channel in self._channels), default=inf)
        if now > self._checked_at + seconds:
            self._checked_at = now
            self.maybe_check_subclient_health()

    @property
    def fds(self) -> Any:
        """What a loop does not watch yet; kombu would watch all files anew at each turn, by a system call."""
        if self.loop is None:
            return self._fd_to_chan
        readers = self.loop.readers
        return [fileno for fileno in self._fd_to_chan if readers.get(fileno, (None,))[0] != self.reader]

    def handle_event(self, fileno: int, event: int) -> Any:
        """Handle what has come."""
        self.polls = False
        if fileno == self._alarm:
            os.eventfd_read(fileno)
            for channel in tuple(self._unread):
                self._receive_rest(channel)
            return None
        if isinstance(self._fd_to_chan.get(fileno, (None, None))[1], Lane):
            return self.on_readable(fileno), self  # an error, too: kombu would ask its own connection for it
        return super().handle_event(fileno, event)

    def maybe_restore_messages(self) -> None:
        """Hand out again what was held for longer than the visibility timeout, now and then."""
        now = monotonic()
        if now > self._restored_at + RESTORE:
            self._restored_at = now
            super().maybe_restore_messages()

    def on_poll_start(self) -> None:
        """Ask whatever is to be asked."""
        self.thread = threading.get_ident()
        for channel in self._channels:
            if channel.queues:
                channel.advance(self._register_lane)
            else:
                channel.give_back_what_waits()
            if channel.active_fanout_queues:
                self._register_LISTEN(channel)
        self.polls = True

    def _register_LISTEN(self, channel: Any) -> None:  # noqa: N802 (kombu's name)
        """Watch a channel's connection for what is sent to all nodes, unless it is; kombu asks each time."""
        channel.listened_at = monotonic()
        client = vars(channel).get("subclient")
        connection = getattr(client, "connection", None)
        is_open = connection is not None and connection._sock is not None
        if not (is_open and channel._in_listen and (channel, client, "LISTEN") in self._chan_to_sock):
            super()._register_LISTEN(channel)

    def on_readable(self, fileno: int) -> Any:
        """Read what has come.

        Raises:
            Empty: No message was delivered.
        """
        channel, type_ = self._fd_to_chan.get(fileno, (None, None))
        if not isinstance(type_, Lane):
            return super().on_readable(fileno)
        self.delivered = False
        try:
            type_.read()
            if not self.delivered and channel.is_notified:
                # Not a turn of the loop later, for kombu gets the message itself, where this is told of it.
                channel.advance(self._register_lane)
                type_.read_within(SOON)
        except NoConnectionError:
            channel._may_hold = False  # it is told just now
            raise
        if not self.delivered:
            raise Empty
        return True

    def maybe_check_brpop_health(self) -> None:
        """Drop connections that do not answer.

        Raises:
            NoConnectionError: There was one. Messages may have been under way: they are held, and come back
                as the node connects anew.
        """
        for channel in self._channels:
            lane = channel.lane
            if (
                lane is not None
                and channel.health_check_interval
                and lane.is_overdue(channel.health_check_interval)
            ):
                lane.drop()
                channel._may_hold = False
                raise NoConnectionError("Redis does not answer on a connection, which was dropped.")

    def forget(self, channel: Any) -> None:
        """Watch a channel's connection no more: the number of its file may soon be another's."""
        lane = channel.lane
        self._chan_to_sock.pop((channel, lane.client, lane), None)
        fileno, lane.fileno = lane.fileno, None
        if fileno is not None and self._fd_to_chan.get(fileno) == (channel, lane):
            del self._fd_to_chan[fileno]
            with suppress(OSError):  # epoll has forgotten a closed file by itself
                (self.loop.remove if self.loop is not None else self.poller.unregister)(fileno)

    def _register_lane(self, channel: Any) -> None:
        """Watch a channel's connection."""
        lane = channel.lane
        if not self._client_registered(channel, lane.client, lane):
            self._register(channel, lane.client, lane)
            lane.fileno = lane.connection._sock.fileno()
            lane.begin()


class SentinelChannel(Channel, stock.SentinelChannel):  # type: ignore[misc]  # kombu ships no types
    """kombu's channel to the master that Sentinel names, which takes messages by the script."""

    from_transport_options = (*stock.SentinelChannel.from_transport_options, OPTION)

    def _sentinel_managed_pool(self, asynchronous: bool = False) -> Any:
        """Return a pool of connections to the master; kombu looks for URLs of its own scheme only."""
        client = self.connection.client
        urls, client.alt = client.alt, [without_prefix(url) for url in client.alt]
        try:
            return super()._sentinel_managed_pool(asynchronous)
        finally:
            client.alt = urls


class Transport(stock.Transport):  # type: ignore[misc]  # kombu ships no types
    """kombu's transport, with these channels."""

    Channel = Channel

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Begin."""
        super().__init__(*args, **kwargs)
        self.cycle = Poller()

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Let a node's loop run this."""
        self.cycle.loop, self.cycle.reader = loop, self.on_readable
        super().register_with_event_loop(connection, loop)


class SentinelTransport(Transport):
    """kombu's transport for Sentinel, with these channels."""

    default_port = stock.SentinelTransport.default_port
    Channel = SentinelChannel
