# SPDX-License-Identifier: MIT
"""The commands of a channel and their times, with fakes of the connection and the poller."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
from fleet_runtime.broker import functions
from fleet_runtime.compat import older_kombu
from fleet_runtime.transport import decode, tuning
from fleet_runtime.transport.channel import Channel
from fleet_runtime.transport.connection import TRACK_NEXT
from fleet_runtime.transport.fetch import parse_reply
from kombu.transport import redis as stock
from kombu.utils.scheduling import round_robin_cycle
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, ResponseError

if TYPE_CHECKING:
    from fleet_runtime.transport.connection import PendingCommand

NOW = 1000.0


class FakeFetcher:
    """Notes what is sent."""

    def __init__(self) -> None:
        """Be connected."""
        self.sent: list[PendingCommand] = []
        self.fileno: int | None = 7
        self.is_open = self.is_idle = True
        self.has_pending_fetch = False
        self.pending_tags = list[str]()

    def send(self, *commands: PendingCommand) -> None:
        """Note commands."""
        self.sent += commands


class FakeCycle:
    """A poller with a loop, in this thread."""

    def __init__(self) -> None:
        """Note when it is to wake."""
        self.loop: Any = self
        self.polls, self.delivered = True, False
        self.thread = threading.get_ident()
        self.wakes: list[float] = []

    def wake(self) -> None:
        """Note a wake-up."""
        self.wakes.append(0.0)

    def wake_in(self, seconds: float) -> None:
        """Note a wake-up."""
        self.wakes.append(seconds)

    def call_later(self, seconds: float, _: Any) -> None:
        """Note a timer of the loop."""
        self.wakes.append(seconds)

    def go_on(self) -> None:
        """Let the loop go on."""


class FakeConnection:
    """A transport."""

    def __init__(self) -> None:
        """Have a poller."""
        self.cycle = FakeCycle()


class FakeQoS:
    """An account of unacknowledged messages."""

    def __init__(self, prefetch_count: int) -> None:
        """Have room for some messages."""
        self.prefetch_count = prefetch_count
        self._delivered: dict[str, Any] = {}

    def can_consume(self) -> bool:
        """Return whether there is room."""
        return len(self._delivered) < self.prefetch_count

    def _flush(self) -> None:
        """Forget settled messages."""


class Clock:
    """The monotonic clock."""

    def __init__(self) -> None:
        """Start at NOW."""
        self.now = NOW

    def __call__(self) -> float:
        """Return the time."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Return the clock of the channel."""
    clock = Clock()
    for name in ("channel", "prefetch", "refused"):
        monkeypatch.setattr(f"fleet_runtime.transport.{name}.monotonic", clock)
    return clock


@pytest.fixture
def channel(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a channel that consumes one queue, with eight free slots."""
    monkeypatch.setattr(stock.Channel, "__init__", lambda channel: None)
    channel: Any = Channel()
    channel.unacked_key, channel.unacked_index_key = "unacked:one", "unacked_index:one"
    channel.connection, channel.closed = FakeConnection(), True
    channel._queue_cycle = round_robin_cycle(["default"])
    channel.lists.add("default", ["default"], no_ack=False)
    channel.queues, channel.fetcher = ["default"], FakeFetcher()
    monkeypatch.setattr(Channel, "qos", FakeQoS(8), raising=False)
    channel._script_call = lambda: ("FCALL", "fetch_and_ack")
    return channel


@pytest.fixture
def idle(channel: Any) -> Any:
    """Return a channel whose queues are known to be empty."""
    tracking = channel._tracking
    tracking.on_fetch()
    tracking.on_subscribe(NOW)
    tracking.on_checked(0, tracking.generation)
    return channel


@pytest.fixture
def delivered(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the items that are delivered."""
    items: list[Any] = []
    monkeypatch.setattr(decode, "deliver", lambda channel, item, *_: items.append(item))
    return items


def reply(*items: bytes) -> list[Any]:
    """Return a reply of the script."""
    return [part for number, item in enumerate(items) for part in (0, f"tag-{number}".encode(), item)]


def commands(channel: Any) -> list[str]:
    """Return the names of the commands that were sent, and forget them."""
    sent = [pending.command[0] for pending in channel.fetcher.sent]
    channel.fetcher.sent.clear()
    return sent


def poll(channel: Any) -> None:
    """Let the channel send what it has to send."""
    channel.on_poll_start(lambda _: None)


def test_on_poll_start_fetches_as_many_as_there_is_room_for(channel: Any) -> None:
    """With the keys of the node, and no tag."""
    poll(channel)
    (command,) = channel.fetcher.sent
    assert command.command == (
        "FCALL", "fetch_and_ack", 3, "unacked:one", "unacked_index:one", "default", 8, 0, 1, 1, "default"
    )  # fmt: skip
    assert command.is_fetch
    assert channel.asked_at == NOW


def test_on_poll_start_sends_one_fetch_at_a_time(channel: Any) -> None:
    """Messages under way take up the slots."""
    channel.fetcher.has_pending_fetch, channel.fetcher.is_idle = True, False
    poll(channel)
    assert commands(channel) == []


def test_on_poll_start_without_room_does_not_fetch(channel: Any) -> None:
    """Until a message is settled. It does track the queues, so that the connection is known to be alive."""
    channel.qos._delivered = dict.fromkeys("abcdefgh")
    poll(channel)
    poll(channel)
    assert commands(channel) == ["CLIENT", "EXISTS"]


def test_on_poll_start_tracks_empty_queues(channel: Any) -> None:
    """After a fetch that found nothing, and again when the poll interval is over."""
    channel._tracking.on_fetch()
    poll(channel)
    assert [pending.command for pending in channel.fetcher.sent] == [TRACK_NEXT, ("EXISTS", "default")]


def test_on_poll_start_of_an_idle_channel_sends_nothing(idle: Any, clock: Clock) -> None:
    """Redis notifies it. After the poll interval it looks by itself."""
    poll(idle)
    assert commands(idle) == []
    clock.now += tuning.POLL_INTERVAL_S + 1
    poll(idle)
    assert commands(idle) == ["CLIENT", "EXISTS"]


def test_on_poll_start_reports_a_lost_fetch_once(channel: Any) -> None:
    """The node connects again, and requeues what was under way."""
    channel.lost_fetch = True
    with pytest.raises(RedisConnectionError, match="messages were under way"):
        poll(channel)
    poll(channel)


def test_acknowledge_waits_for_others(idle: Any, clock: Clock) -> None:
    """A timer sees to it that they are sent, and only one; the next poll sends them when they are due."""
    idle.acknowledge("a")
    idle.acknowledge("b")
    poll(idle)
    assert commands(idle) == []
    assert idle.connection.cycle.wakes == [tuning.ACK_LINGER_S]
    assert idle.next_poll_in() == pytest.approx(tuning.ACK_LINGER_S)
    clock.now += tuning.ACK_LINGER_S
    poll(idle)
    ((command,)) = idle.fetcher.sent
    assert command.command[-2:] == ("a", "b")
    assert command.tags == ("a", "b")
    assert not command.is_fetch


def test_acknowledge_of_half_of_the_prefetch_count_goes_at_once(idle: Any) -> None:
    """It is worth a command."""
    for tag in "abcd":
        idle.acknowledge(tag)
    poll(idle)
    assert commands(idle) == ["FCALL"]


def test_acknowledge_goes_with_the_next_fetch(channel: Any) -> None:
    """One command does both."""
    channel.acknowledge("a")
    poll(channel)
    (command,) = channel.fetcher.sent
    assert (command.is_fetch, command.tags) == (True, ("a",))


def test_flush_soon_lets_an_acknowledgement_wait_for_nothing(idle: Any) -> None:
    """Its task may run once only."""
    idle.acknowledge("a")
    idle.flush_soon()
    poll(idle)
    assert commands(idle) == ["FCALL"]


def test_acknowledge_of_an_overdue_tag_sends_it(idle: Any, clock: Clock) -> None:
    """A solo pool runs tasks one after another in the loop, which does not poll meanwhile."""
    idle.acknowledge("a")
    clock.now += 2 * tuning.ACK_LINGER_S
    idle.acknowledge("b")
    assert commands(idle) == ["FCALL"]
    assert idle.unconfirmed_acks() == []


def test_acknowledge_in_another_thread_wakes_the_poller(idle: Any) -> None:
    """Which alone may send."""
    idle.connection.cycle.thread = -1
    idle.acknowledge("a")
    assert (commands(idle), idle.connection.cycle.wakes) == ([], [0.0])


@pytest.mark.parametrize("why", ["no queue", "not connected", "poller is blocked"])
def test_acknowledge_waits_for_its_reply_if_nothing_will_be_sent(
    channel: Any, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """By another connection."""
    flushed: list[str] = []
    monkeypatch.setattr(channel, "flush", lambda: flushed.append(why))
    if why == "no queue":
        channel.queues = []
    elif why == "not connected":
        channel.fetcher.is_open = False
    else:
        channel.connection.cycle.loop, channel.connection.cycle.polls = None, False
        channel.connection.cycle.thread = -1
    channel.acknowledge("a")
    assert flushed == [why]


def test_a_reply_is_delivered_in_order(channel: Any, delivered: list[Any]) -> None:
    """And the channel goes on if the fetch was full."""
    poll(channel)
    channel.fetcher.sent[0].on_reply(reply(*[b"%d" % number for number in range(8)]))
    assert delivered == [b"%d" % number for number in range(8)]
    assert channel._tracking.may_have_messages


def test_a_short_reply_is_followed_by_tracking(channel: Any, delivered: list[Any]) -> None:
    """The next fetch sends both in one write."""
    poll(channel)
    channel.fetcher.sent[0].on_reply(reply(b"one"))
    assert not channel._tracking.may_have_messages
    commands(channel)
    channel._tracking.on_invalidate()
    poll(channel)
    assert commands(channel) == ["FCALL", "CLIENT", "EXISTS"]


def test_all_messages_are_delivered_though_one_fails(channel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """All are recorded. The first error is raised."""
    items: list[bytes] = []

    def deliver(channel: Any, item: bytes, *_: Any) -> None:
        items.append(item)
        if item != b"two":
            raise RuntimeError(item)

    monkeypatch.setattr(decode, "deliver", deliver)
    poll(channel)
    with pytest.raises(RuntimeError, match="one"):
        channel.fetcher.sent[0].on_reply(reply(b"one", b"two", b"three"))
    assert items == [b"one", b"two", b"three"]


def test_an_empty_reply_after_a_notification_backs_off(
    idle: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another node was faster. The notification that comes meanwhile leads to no fetch."""
    monkeypatch.setattr("random.uniform", lambda least, most: most)
    idle._tracking.on_invalidate()
    poll(idle)
    idle.fetcher.sent.pop().on_reply([])
    (wait,) = idle.connection.cycle.wakes
    assert wait > 0
    assert idle._backoff.not_before == NOW + wait
    idle._tracking.on_invalidate()
    assert idle.next_poll_in() == pytest.approx(wait)
    poll(idle)
    assert "FCALL" not in commands(idle)
    clock.now += wait
    poll(idle)
    assert "FCALL" in commands(idle)


def test_a_fast_node_prefetches(channel: Any, clock: Clock, delivered: list[Any]) -> None:
    """As many as it settles in PREFETCH_WINDOW_S. The messages wait here for slots."""
    channel.prefetcher.rate.settled = 4000
    clock.now += 1
    poll(channel)
    assert channel.fetcher.sent[0].command[6] == 8 + 20
    channel.fetcher.sent.pop().on_reply(reply(*[b"%d" % number for number in range(10)]))
    assert delivered == [b"%d" % number for number in range(8)]
    assert [message.item for message in channel.prefetcher.buffer.messages] == [b"8", b"9"]
    channel.qos._delivered = dict.fromkeys("abcdefg")
    poll(channel)
    assert delivered[8:] == [b"8"]


@pytest.mark.parametrize("why", ["no loop", "far", "one at a time", "a condition", "no acknowledgement"])
def test_a_node_that_cannot_put_messages_back_does_not_prefetch(channel: Any, clock: Clock, why: str) -> None:
    """However fast it is."""
    channel.prefetcher.rate.settled = 4000
    clock.now += 1
    if why == "no loop":
        channel.connection.cycle.loop = None
    elif why == "far":
        channel.prefetcher.buffer.is_near = False
    elif why == "one at a time":
        channel.fetch_limit = 1
    elif why == "a condition":
        channel.qos.can_consume = lambda: True
    else:
        channel.lists.no_ack.add("default")
    assert channel.prefetcher.target(clock.now) == 0


def test_stale_messages_go_back(channel: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rate falls to 0: this node is not as fast as it was."""
    runs: list[Any] = []
    monkeypatch.setattr(functions, "run", lambda *call: runs.append(call))
    channel.conn_or_acquire = _Client
    channel.prefetcher.rate.per_second = 1000.0
    channel.prefetcher.keep(parse_reply(reply(b"one", b"two"), ["default"], ["default"], 2), NOW)
    assert not channel.prefetcher.release_stale(NOW + tuning.PREFETCH_TTL_S / 2)
    assert channel.prefetcher.release_stale(NOW + tuning.PREFETCH_TTL_S)
    ((_, _, keys, args),) = runs
    assert keys == ["unacked:one", "unacked_index:one", "default", "default"]
    assert args == ["tag-0", b"one", "tag-1", b"two"]
    assert not channel.prefetcher.buffer
    assert channel.prefetcher.rate.per_second == 0.0


def test_messages_of_a_cancelled_queue_go_back_at_once(channel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No consumer would get them."""
    runs: list[Any] = []
    monkeypatch.setattr(functions, "run", lambda *call: runs.append(call))
    channel.conn_or_acquire, channel.queues = _Client, []
    channel.prefetcher.keep(parse_reply(reply(b"one"), ["default"], ["default"], 1), NOW)
    assert len(runs) == 1


def test_messages_stay_while_redis_refuses_writes(channel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are tried again after another TTL; any other error is raised."""

    def refuse(*_: Any) -> None:
        raise OutOfMemoryError("OOM")

    channel.conn_or_acquire = _Client
    channel.prefetcher.keep(parse_reply(reply(b"one"), ["default"], ["default"], 1), NOW - 10)
    monkeypatch.setattr(functions, "run", refuse)
    channel.prefetcher.put_back()
    assert len(channel.prefetcher.buffer) == 1
    assert not channel.prefetcher.buffer.is_stale(NOW)


class _Client:
    """Stands for a connection that is yielded."""

    def __enter__(self) -> None:
        """Yield nothing."""

    def __exit__(self, *_: object) -> None:
        """Close."""


@pytest.mark.parametrize(
    ("error", "usable"),
    [(OutOfMemoryError("OOM"), True), (ResponseError("MISCONF"), True), (ResponseError("ERR syntax"), False)],
)
def test_an_error_reply_leaves_the_tags_to_the_next_command(
    channel: Any, error: ResponseError, usable: bool
) -> None:
    """If the connection stays; else they are in what it had pending."""
    channel.acknowledge("a")
    poll(channel)
    assert channel.fetcher.sent[0].on_error(error) is usable
    assert channel._acks.tags == (["a"] if usable else [])


def test_a_redis_that_refuses_writes_is_left_alone_for_a_while(
    channel: Any, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """No fetch and no acknowledgement is sent; the log has one line."""
    poll(channel)
    channel.fetcher.sent.pop().on_error(OutOfMemoryError("OOM"))
    channel.acknowledge("a")
    clock.now += tuning.OOM_RETRY_S / 2
    poll(channel)
    assert commands(channel) == []
    assert channel.next_poll_in() == pytest.approx(tuning.OOM_RETRY_S / 2)
    clock.now += tuning.OOM_RETRY_S
    poll(channel)
    assert commands(channel) == ["FCALL"]
    assert len([line for line in caplog.messages if "Redis is full" in line]) == 1


@pytest.mark.parametrize(("present", "loaded"), [(True, 0), (False, 1)])
def test_a_script_that_redis_lacks_is_loaded(
    channel: Any, monkeypatch: pytest.MonkeyPatch, present: bool, loaded: int
) -> None:
    """Unless there is a function of it by now. The fetch is sent again."""
    loads: list[str] = []

    class Client:
        """Loads scripts."""

        def __enter__(self) -> Client:
            """Return itself."""
            return self

        def __exit__(self, *_: object) -> None:
            """Close."""

        def script_load(self, text: str) -> None:
            """Note a script."""
            loads.append(text)

    monkeypatch.setattr(functions, "is_present", lambda *_: present)
    channel.conn_or_acquire, channel.client = Client, None
    poll(channel)
    assert channel.fetcher.sent.pop().on_error(ResponseError("ERR Function not found"))
    assert len(loads) == loaded
    poll(channel)
    assert commands(channel) == ["FCALL"]


def test_a_lost_connection_gives_back_its_tags(channel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the loss is reported if messages were under way."""
    monkeypatch.setattr(stock.Channel, "_on_connection_disconnect", lambda *_: None)
    monkeypatch.setattr(older_kombu.Channel, "active_queues", ["default"])
    forgotten: list[Any] = []
    channel.connection.cycle.forget = forgotten.append
    channel.fetcher.connection, channel.fetcher.has_pending_fetch = object(), True
    channel.fetcher.drop_pending = lambda: ["a"]
    channel._on_connection_disconnect(channel.fetcher.connection)
    assert channel._acks.tags == ["a"]
    assert channel.lost_fetch
    assert forgotten == [channel]


def test_an_error_for_queues_of_before_is_ignored(channel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue that Redis refuses is not consumed any more: the connection is good."""
    monkeypatch.setattr(older_kombu.Channel, "active_queues", ["default"])
    poll(channel)
    error = ResponseError("WRONGTYPE Operation against a key")
    assert not channel.fetcher.sent[0].on_error(error)
    channel._resubscribe()
    assert channel.fetcher.sent[0].on_error(error)


def test_messages_with_an_eta_make_a_run(channel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their handler counts them. Once the run is long, one fetched message in some is the newest."""
    monkeypatch.setattr(tuning, "ETA_RUN", 8)

    def deliver(channel: Any, *_: Any) -> None:
        channel.eta_count += 1

    monkeypatch.setattr(decode, "deliver", deliver)
    poll(channel)
    assert channel.fetcher.sent[0].command[7] == 0
    channel.fetcher.sent.pop().on_reply(reply(*[b"x"] * 8))
    poll(channel)
    assert channel.fetcher.sent[0].command[7] == 8 // tuning.NEWEST_EVERY
    monkeypatch.setattr(decode, "deliver", lambda *_: None)
    channel.fetcher.sent.pop().on_reply(reply(*[b"x"] * 8))
    assert channel._eta_runs.lengths == {}
