"""A Redis transport that takes a message and records who holds it in one step.

kombu's takes a message out of its queue by one command (BRPOP), and records by the next that the node has
it. A node that dies between the two loses the message, and so does a Redis that refuses the second one. Here
a script does both. A script cannot wait, so what waits is a command that changes nothing: a move of the
oldest message of a list to where it is (BLMOVE), on a connection of its own for each list. It tells that
there is something, and the script takes it.

Messages and queues stay kombu's own: producers, and nodes without this transport, work on the same queues.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable
from queue import Empty
from time import monotonic
from typing import Any

from kombu.transport import redis as stock
from kombu.transport import virtual
from kombu.utils.encoding import bytes_to_str
from redis.exceptions import ConnectionError as NoConnectionError
from redis.exceptions import NoScriptError, ResponseError

from fleet_runtime import reading
from fleet_runtime.dead_letters import Held

logger = logging.getLogger(__name__)

# Seconds that a connection waits for a list. Until then nobody notices that the other end is gone.
WAIT = 10

# Takes the oldest message of the first list that has one. It is recorded before it leaves the list, so that
# a Redis that refuses to write (full, or without disk) leaves it there. What is no message is recorded by a
# tag of its own. Returns the place of the list, the tag and the message.
# KEYS: unacked, unacked_index, lists. ARGV: for each list, whether to record
FETCH = """
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
      record = '[' .. item .. ', ' .. cjson.encode(info.exchange)
        .. ', ' .. cjson.encode(info.routing_key) .. ']'
    end
    if ARGV[at - 2] == '1' then
      redis.call('HSET', KEYS[1], tag, record)
      redis.call('ZADD', KEYS[2], time[1] + time[2] / 1000000, tag)
    end
    redis.call('RPOP', KEYS[at])
    return {at - 3, tag, item}
  end
end
return false
"""


class QoS(stock.QoS):  # type: ignore[misc]  # kombu ships no types
    """kombu's account of what was taken, which need not write down what the script did."""

    def append(self, message: Any, delivery_tag: str) -> None:
        """Count a message as reserved."""
        recorded = getattr(self.channel, "recorded", ())  # kombu's own channels do not have it
        if delivery_tag in recorded:
            virtual.QoS.append(self, message, delivery_tag)
        else:
            super().append(message, delivery_tag)


class Lane(Hashable):
    """A connection that waits for one list, or fetches.

    Attributes:
        client: Its client.
        pending: What was asked and not answered: `wait`, `fetch` or nothing.
    """

    def __init__(self, channel: Channel, key: str) -> None:
        """Prepare."""
        self.channel = channel
        self.key = key
        self.client = channel._create_client(asynchronous=True)
        self.pending = ""
        self.asked_at = 0.0
        self._fetched: list[tuple[str, bool]] = []

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
        names = [channel.unacked_key, channel.unacked_index_key, *(key for key, _ in self._fetched)]
        records = [int(record) for _, record in self._fetched]
        self._ask("fetch", "EVALSHA", channel.script, len(names), *names, *records)

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
                client.script_load(FETCH)
            self.channel.has_more = True
            raise Empty from None
        except ResponseError as error:
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
        key, recorded = self._fetched[int(place)]
        self.channel.deliver(key, bytes_to_str(tag), item, recorded=recorded)
        return True

    def is_overdue(self, grace: float) -> bool:
        """Return whether an answer should have come, so that the connection is dead."""
        if not self.pending or not self.connection or self.connection._sock is None:
            return False
        late = monotonic() - self.asked_at > WAIT + grace
        return late and not stock._socket_readable(self.connection._sock)

    def close(self) -> None:
        """End."""
        connection, self.client.connection = self.connection, None
        if connection is not None:
            connection.disconnect()

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
        super().__init__(*args, **kwargs)
        self.script = self.client.register_script(FETCH).sha

    def basic_consume(self, queue: str, no_ack: bool = False, *args: Any, **kwargs: Any) -> Any:
        """Consume from a queue; what is not to be acknowledged is not recorded."""
        (self._no_ack.add if no_ack else self._no_ack.discard)(queue)
        self.has_more = True
        return super().basic_consume(queue, no_ack, *args, **kwargs)

    def lists(self) -> list[tuple[str, bool]]:
        """Return the lists of the queues in the order in which they are looked at, and whether to record."""
        queues = self._queue_cycle.consume(len(self.active_queues))
        return [
            (self._q_for_pri(queue, priority), queue not in self._no_ack)
            for priority in self.priority_steps
            for queue in queues
        ]

    def deliver(self, key: str, tag: str, item: bytes, *, recorded: bool) -> None:
        """Hand over what was fetched from a list."""
        queue = key.rsplit(self.sep, 1)[0]
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
        if not self.may_fetch():
            return
        idle = [lane for lane in self.lanes.values() if not lane.pending]
        if self.has_more and idle:
            idle[0].fetch()
        elif not self.has_more:
            for lane in idle:
                lane.wait()

    def may_fetch(self) -> bool:
        """Return whether there is room for a message, and none under way."""
        return self.qos.can_consume() and not any(lane.pending == "fetch" for lane in self.lanes.values())

    def _match_lanes(self) -> None:
        """Have a lane for each list, and none for others."""
        wanted = [key for key, _ in self.lists()]
        for key in [key for key, lane in self.lanes.items() if key not in wanted and lane.pending != "fetch"]:
            self.lanes.pop(key).close()
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
        super()._on_connection_disconnect(connection)


class Poller(stock.MultiChannelPoller):  # type: ignore[misc]  # kombu ships no types
    """kombu's poller, for channels with several connections."""

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
        """Drop connections that do not answer."""
        for channel in self._channels:
            for lane in list(channel.lanes.values()):
                if channel.health_check_interval and lane.is_overdue(channel.health_check_interval):
                    logger.warning("Redis does not answer on a connection, which is dropped.")
                    lane.connection.disconnect()

    def _register_lane(self, lane: Lane) -> None:
        """Watch a lane's connection."""
        if not self._client_registered(lane.channel, lane.client, lane):
            lane.pending = ""
            self._register(lane.channel, lane.client, lane)


class Transport(stock.Transport):  # type: ignore[misc]  # kombu ships no types
    """kombu's transport, with these channels."""

    Channel = Channel

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Begin."""
        super().__init__(*args, **kwargs)
        self.cycle = Poller()
