"""A Redis transport that takes a message and records who holds it in one step.

kombu's takes a message out of its queue by one command (BRPOP), and records by the next that the node has
it. A node that dies between the two loses the message, and so does a Redis that refuses the second one. Here
a script does both. A script cannot wait, so what waits is a command that changes nothing: a move of the
oldest message of a list to where it is (BLMOVE), on a connection of its own for each list. It tells that
there is something, and the script takes it.

Messages and queues stay kombu's own: producers, and nodes without this transport, work on the same queues.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Hashable, Iterator
from contextlib import contextmanager, suppress
from math import inf
from queue import Empty
from time import monotonic
from typing import Any
from weakref import finalize

from kombu.transport import redis as stock
from kombu.transport import virtual
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps, loads
from redis.exceptions import ConnectionError as NoConnectionError
from redis.exceptions import NoScriptError, ResponseError

from fleet_runtime import fullness, reading
from fleet_runtime.dead_letters import Held
from fleet_runtime.fullness import is_full

logger = logging.getLogger(__name__)

# Seconds that a connection waits for a list. Until then nobody notices that the other end is gone.
WAIT = 10
# Seconds between two looks at a Redis that is too full to be waited for, and between two words about it.
LOOK, WORD = 1, 60
# Seconds for a last answer, as a channel is closed.
LAST = 5
# Seconds between two searches for what is held for longer than the visibility timeout. A node without a loop
# of its own would search as often as it waits.
RESTORE = 60

# Takes the oldest message of the first list that has one. It is recorded before it leaves the list, so that
# a Redis that refuses to write leaves it there; with the queue that it came from, and not the exchange: that
# may have put it into other queues, too. Another one of them that is taken by the same node, and what is no
# message, gets a tag of its own. Returns the place of the list, the tag and the message.
# KEYS: unacked, unacked_index, lists. ARGV: for each list, its queue; nothing if it is not to be recorded
FETCH = (
    fullness.ALLOWED
    + """
local time = redis.call('TIME')
for at = 3, #KEYS do
  local item = redis.call('LINDEX', KEYS[at], -1)
  if item then
    local tag = 'malformed:' .. redis.sha1hex(item)
    local record = item
    local good, message = pcall(cjson.decode, item)
    local properties = good and type(message) == 'table' and message.properties
    local info = type(properties) == 'table' and properties.delivery_info
    if type(info) == 'table' and type(properties.delivery_tag) == 'string'
        and type(info.exchange) == 'string' and type(info.routing_key) == 'string' then
      tag = properties.delivery_tag
      while redis.call('HEXISTS', KEYS[1], tag) == 1 do
        tag = tag .. '+'
      end
      record = '[' .. item .. ', "", ' .. cjson.encode(ARGV[at - 2]) .. ']'
    end
    if ARGV[at - 2] ~= '' then
      redis.call('HSET', KEYS[1], tag, record)
      redis.call('ZADD', KEYS[2], time[1] + time[2] / 1000000, tag)
    end
    redis.call('RPOP', KEYS[at])
    return {at - 3, tag, item}
  end
end
return false
"""
)


# Forgets a message that is held, and puts it into lists, if any are given and it is still what was read. It
# is a script because a full Redis refuses all transactions: nothing could be acknowledged.
# KEYS: unacked, unacked_index, lists. ARGV: tag [, record that was read, message, LPUSH or RPUSH]
SETTLE = (
    fullness.ALLOWED
    + """
local tag, record, message, push = unpack(ARGV)
if record and redis.call('HGET', KEYS[1], tag) ~= record then
  return 0
end
for at = 3, #KEYS do
  redis.call(push, KEYS[at], message)
end
redis.call('HDEL', KEYS[1], tag)
redis.call('ZREM', KEYS[2], tag)
return 1
"""
)


class Script:
    """A script of Redis, which is sent once."""

    def __init__(self, text: str) -> None:
        """Remember it."""
        self.text = text
        self.name = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    def __call__(self, client: Any, keys: list[str], words: list[Any]) -> Any:
        """Run it."""
        try:
            return client.evalsha(self.name, len(keys), *keys, *words)
        except NoScriptError:
            client.script_load(self.text)
            return client.evalsha(self.name, len(keys), *keys, *words)


fetch, settle = Script(FETCH), Script(SETTLE)


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
        """Acknowledge a message."""
        with self.channel.conn_or_acquire() as client:
            settle(client, [self.unacked_key, self.unacked_index_key], [delivery_tag])
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
        had_none = not self.can_consume()
        virtual.QoS.ack(self, delivery_tag)
        connection = self.channel.connection
        if had_none and isinstance(connection, Transport):  # not a closed one, nor kombu's own
            connection.cycle.wake()

    def restore_by_tag(self, tag: str, client: Any = None, leftmost: bool = False) -> None:
        """Put a message back; one for which there is no place stays among what the node holds."""
        with self.channel.conn_or_acquire(client) as redis:
            while record := redis.hget(self.unacked_key, tag):
                try:
                    message, lists = self._read(record)
                except self.channel.connection_errors:
                    raise
                except Exception:
                    logger.critical("A message cannot go back: %r", record, exc_info=True)
                    return
                names = [self.unacked_key, self.unacked_index_key, *lists]
                if settle(redis, names, [tag, record, message, "LPUSH" if leftmost else "RPUSH"]):
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

        kombu asks for it with each connection, and an error there ends the node.
        """
        try:
            super().restore_visible(*args, **kwargs)
        except ResponseError as error:
            if not is_full(error):
                raise
            logger.debug("What is held for long stays so, since Redis is full: %s", error)


class Lane(Hashable):
    """A connection that waits for one list, or fetches.

    Attributes:
        client: Its client.
        pending: What was asked and not answered: `wait`, `fetch` or nothing.
        fileno: Of the connection that a poller watches.
    """

    def __init__(self, channel: Channel, key: str) -> None:
        """Prepare."""
        self.channel = channel
        self.key = key
        self.client = channel._create_client(asynchronous=True)
        self.pending = ""
        self.asked_at = 0.0
        self.fileno: int | None = None
        self._fetched: list[tuple[str, str, bool]] = []

    def __hash__(self) -> int:
        """Each is one of its own."""
        return id(self)

    @property
    def connection(self) -> Any:
        """The connection, if it was ever made."""
        return getattr(self.client, "connection", None)

    def wait(self) -> None:
        """Ask to be told when there is something in the list."""
        self._ask("wait", "BLMOVE", self.key, self.key, "RIGHT", "RIGHT", WAIT)

    def fetch(self) -> None:
        """Ask for the next message of any list."""
        channel = self.channel
        self._fetched = channel.lists()
        names = [channel.unacked_key, channel.unacked_index_key, *(key for key, _, _ in self._fetched)]
        records = [queue if record else "" for _, queue, record in self._fetched]
        self._ask("fetch", "EVALSHA", fetch.name, len(names), *names, *records)

    def read(self) -> bool:
        """Read the answer, and deliver a message if that is what it is.

        Raises:
            Empty: It is none.
        """
        asked, self.pending = self.pending, ""
        if not asked:  # nothing was asked: the other end is gone
            self.connection.disconnect()
            raise Empty
        try:
            answer = self.client.parse_response(self.connection, "EVALSHA" if asked == "fetch" else "BLMOVE")
        except NoScriptError:
            with self.channel.conn_or_acquire() as client:
                client.script_load(fetch.text)
            self.channel.has_more = True
            raise Empty from None
        except ResponseError as error:
            if is_full(error):
                self.channel.pause(error)
                raise Empty from None
            self.connection.disconnect()
            raise NoConnectionError(f"Redis refuses to hand out messages: {error}") from error
        except self.channel.connection_errors:
            self.connection.disconnect()
            raise
        if asked == "wait":
            if answer is not None:
                self.channel.has_more = True
                if self.channel.may_fetch():
                    self.fetch()
            raise Empty
        self.channel.has_more = bool(answer)
        if not answer:
            raise Empty
        place, tag, item = answer
        _, queue, recorded = self._fetched[int(place)]
        self.channel.deliver(queue, bytes_to_str(tag), item, recorded=recorded)
        return True

    def is_overdue(self, grace: float) -> bool:
        """Return whether an answer should have come, so that the connection is dead."""
        if not self.pending or not self.connection or self.connection._sock is None:
            return False
        late = monotonic() - self.asked_at > WAIT + grace
        return late and not stock._socket_readable(self.connection._sock)

    def close(self) -> None:
        """End."""
        if self.connection is not None:
            self.connection.disconnect()
            self.client.connection = None

    def _ask(self, pending: str, *command: Any) -> None:
        """Send a command."""
        self.pending = pending
        self.asked_at = self.channel._brpop_sent_at = monotonic()
        self.connection.send_command(*command)


class Channel(stock.Channel):  # type: ignore[misc]  # kombu ships no types
    """kombu's channel, which takes messages by the script."""

    QoS = QoS

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Begin."""
        self.lanes: dict[str, Lane] = {}
        self.recorded: set[str] = set()
        self.has_more = True
        self._no_ack: set[str] = set()
        self._pooled: Any = None
        self._paused_until = 0.0
        self._said_at = -inf
        super().__init__(*args, **kwargs)

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
        self.has_more = True
        return super().basic_consume(queue, no_ack, *args, **kwargs)

    def lists(self) -> list[tuple[str, str, bool]]:
        """Return the lists in their order, each with its queue and whether to record what is in it."""
        queues = self._queue_cycle.consume(len(self.active_queues))
        return [
            (self._q_for_pri(queue, priority), queue, queue not in self._no_ack)
            for priority in self.priority_steps
            for queue in queues
        ]

    def deliver(self, queue: str, tag: str, item: bytes, *, recorded: bool) -> None:
        """Hand over what was fetched from a queue."""
        self._queue_cycle.rotate(queue)
        held = Held(self.unacked_key, self.unacked_index_key, tag) if recorded else None
        if recorded:
            self.recorded.add(tag)
        try:
            reading.deliver(self, item, queue, held=held)
        finally:
            self.recorded.discard(tag)

    def advance(self, register: Any) -> None:
        """Ask for what is to be asked next, and let a poller know of new connections."""
        self._match_lanes()
        for lane in self.lanes.values():
            register(lane)
        if monotonic() < self._paused_until or not self.may_fetch():
            return
        idle = [lane for lane in self.lanes.values() if not lane.pending]
        if self.has_more and idle:
            idle[0].fetch()
        elif not self.has_more:
            for lane in idle:
                lane.wait()

    def pause(self, error: ResponseError) -> None:
        """Look again later, since Redis cannot be waited for."""
        now = monotonic()
        self._paused_until = now + LOOK
        self.has_more = True
        if now > self._said_at + WORD:
            self._said_at = now
            logger.warning("Redis is full, and is asked for messages every %d s: %s", LOOK, error)
        if self.connection.cycle.loop is not None:
            self.connection.cycle.loop.call_later(LOOK, int)  # else it may sleep for longer

    def may_fetch(self) -> bool:
        """Return whether there is room for a message, and none under way."""
        return self.qos.can_consume() and not any(lane.pending == "fetch" for lane in self.lanes.values())

    def _queue_bind(self, *args: Any) -> None:
        """Bind a queue to its exchange, which an earlier start has done already if Redis is full now."""
        try:
            super()._queue_bind(*args)
        except ResponseError as error:
            if not is_full(error):
                raise
            logger.warning("Redis is full, and the queue %s is taken to be bound: %s", args[-1], error)

    def _size(self, queue: str) -> int:
        """Return how many messages a queue has: kombu's way is a transaction, which a full Redis refuses."""
        with self.conn_or_acquire() as client, client.pipeline(transaction=False) as pipe:
            for priority in self.priority_steps:
                pipe.llen(self._q_for_pri(queue, priority))
            return sum(pipe.execute())

    def maybe_refresh_binding_expiry(self) -> None:
        """Keep queues that expire alive, unless Redis is full: kombu would log a traceback each second."""
        try:
            super().maybe_refresh_binding_expiry()
        except ResponseError as error:
            if not is_full(error):
                raise

    def _match_lanes(self) -> None:
        """Have a lane for each list, and none for others."""
        wanted = [key for key, _, _ in self.lists()]
        for key in [key for key, lane in self.lanes.items() if key not in wanted and lane.pending != "fetch"]:
            self.lanes[key].close()
            del self.lanes[key]
        for key in wanted:
            if key not in self.lanes:
                self.lanes[key] = Lane(self, key)

    def _close_clients(self) -> None:
        """Close all connections."""
        for lane in self.lanes.values():
            lane.close()
        self.lanes.clear()
        super()._close_clients()

    def close(self) -> None:
        """Close; a message that is under way is still delivered, and goes back to its queue."""
        for lane in self.lanes.values():
            if lane.pending == "fetch" and lane.connection and lane.connection._sock is not None:
                lane.connection._sock.settimeout(LAST)
                try:
                    lane.read()
                except Empty:
                    pass
                except self.connection_errors:
                    logger.debug("A message may be under way as the channel closes.", exc_info=True)
        super().close()

    def _on_connection_disconnect(self, connection: Any) -> None:
        """Forget what was asked on a connection."""
        for lane in self.lanes.values():
            if lane.connection is connection:
                lane.pending = ""
                self.has_more = True
                if self.connection is not None:
                    self.connection.cycle.forget(lane)
        super()._on_connection_disconnect(connection)


class Poller(stock.MultiChannelPoller):  # type: ignore[misc]  # kombu ships no types
    """kombu's poller, for channels with several connections.

    Attributes:
        loop: The loop of the node, if it has one.
    """

    loop: Any = None

    def __init__(self) -> None:
        """Begin."""
        super().__init__()
        self._alarm: int | None = None
        self._restored_at = -inf

    def wake(self) -> None:
        """Let who waits look again.

        kombu's poller would do so when something else happens, or its time is over: after two seconds, if
        tasks end in greenlets and the node runs as many as it may.
        """
        if self.loop is not None:
            self.loop.call_soon(int)
        elif self._alarm is not None:
            os.eventfd_write(self._alarm, 1)

    def get(self, callback: Any, timeout: float | None = None) -> Any:
        """Wait for an event, without a loop."""
        if self._alarm is None:
            self._alarm = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            finalize(self, os.close, self._alarm)
            self.poller.register(self._alarm, stock.READ)
        return super().get(callback, timeout)

    def handle_event(self, fileno: int, event: int) -> Any:
        """Handle what has come."""
        if fileno == self._alarm:
            os.eventfd_read(fileno)
            return None
        return super().handle_event(fileno, event)

    def maybe_restore_messages(self) -> None:
        """Hand out again what was held for longer than the visibility timeout, now and then."""
        now = monotonic()
        if now > self._restored_at + RESTORE:
            self._restored_at = now
            super().maybe_restore_messages()

    def on_poll_start(self) -> None:
        """Ask whatever is to be asked."""
        for channel in self._channels:
            if channel.active_queues:
                channel.advance(self._register_lane)
            if channel.active_fanout_queues:
                self._register_LISTEN(channel)

    def on_readable(self, fileno: int) -> Any:
        """Read an answer."""
        _, type_ = self._fd_to_chan.get(fileno, (None, None))
        if isinstance(type_, Lane):
            return type_.read()
        return super().on_readable(fileno)

    def maybe_check_brpop_health(self) -> None:
        """Drop connections that do not answer.

        Raises:
            NoConnectionError: A message may have been under way. Then it is held, and comes back as the node
                connects anew.
        """
        for channel in self._channels:
            for lane in list(channel.lanes.values()):
                if channel.health_check_interval and lane.is_overdue(channel.health_check_interval):
                    logger.warning("Redis does not answer on a connection, which is dropped.")
                    fetched = lane.pending == "fetch"
                    lane.connection.disconnect()
                    if fetched:
                        raise NoConnectionError("Redis did not say whether it handed out a message.")

    def forget(self, lane: Lane) -> None:
        """Watch a lane's connection no more: the number of its file may soon be another's."""
        self._chan_to_sock.pop((lane.channel, lane.client, lane), None)
        fileno, lane.fileno = lane.fileno, None
        if fileno is not None and self._fd_to_chan.get(fileno) == (lane.channel, lane):
            del self._fd_to_chan[fileno]
            with suppress(OSError):  # epoll has forgotten a closed file by itself
                (self.loop.remove if self.loop is not None else self.poller.unregister)(fileno)

    def _register_lane(self, lane: Lane) -> None:
        """Watch a lane's connection."""
        if not self._client_registered(lane.channel, lane.client, lane):
            lane.pending = ""
            self._register(lane.channel, lane.client, lane)
            lane.fileno = lane.connection._sock.fileno()


class Transport(stock.Transport):  # type: ignore[misc]  # kombu ships no types
    """kombu's transport, with these channels."""

    Channel = Channel

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Begin."""
        super().__init__(*args, **kwargs)
        self.cycle = Poller()

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Let a node's loop run this."""
        self.cycle.loop = loop
        super().register_with_event_loop(connection, loop)
