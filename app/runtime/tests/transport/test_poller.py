# SPDX-License-Identifier: MIT
"""The poller, with a loop and channels that are not there."""

from __future__ import annotations

import select
from queue import Empty
from types import SimpleNamespace
from typing import Any

import pytest
from fleet_runtime.compat import older_kombu
from fleet_runtime.transport import tuning
from fleet_runtime.transport.connection import PipelinedConnection
from fleet_runtime.transport.poller import Poller, turn
from kombu.transport import redis as stock
from redis.exceptions import ConnectionError as RedisConnectionError


class FakeLoop:
    """Notes what it is asked to do."""

    def __init__(self) -> None:
        """Do nothing yet."""
        self.soon: list[tuple[Any, ...]] = []
        self.later: list[float] = []
        self.readers: dict[int, tuple[Any, ...]] = {}
        self._ready: list[Any] = []

    def call_soon(self, *call: Any) -> None:
        """Note a call."""
        self.soon.append(call)

    def call_later(self, seconds: float, *_: Any) -> None:
        """Note a timer."""
        self.later.append(seconds)

    def add_reader(self, fileno: int, *call: Any) -> None:
        """Note a file that is watched."""
        self.readers[fileno] = call


class FakeChannel:
    """A channel that has nothing to do."""

    def __init__(self, **attributes: Any) -> None:
        """Take what is special about it."""
        self.queues: list[str] = []
        self.active_fanout_queues: set[str] = set()
        self.health_check_interval = 25
        self.fetcher: Any = None
        self.prefetcher = self
        self.lost_fetch = True
        self.calls: list[str] = []
        vars(self).update(attributes)

    def on_poll_start(self, register: Any) -> None:
        """Note a call."""
        self.calls.append("on_poll_start")

    def release_stale(self) -> None:
        """Note a call."""
        self.calls.append("release_stale")

    def next_poll_in(self) -> float:
        """Return a short time."""
        return 0.25


@pytest.fixture
def loop() -> FakeLoop:
    """Return a loop."""
    return FakeLoop()


@pytest.fixture
def poller(loop: FakeLoop) -> Any:
    """Return a poller in a loop."""
    poller: Any = Poller()
    poller.loop, poller.reader = loop, "the reader"
    return poller


def test_wake_lets_a_loop_turn(poller: Any, loop: FakeLoop) -> None:
    """At once, or in some seconds."""
    poller.wake()
    poller.wake_in(0.5)
    assert loop.soon == [(turn,)]
    assert loop.later == [0.5]


def test_wake_interrupts_a_poller_without_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """From another thread; before its first wait there is nothing to interrupt."""
    poller: Any = Poller()
    poller.wake()
    waits: list[float] = []
    monkeypatch.setattr(
        older_kombu.MultiChannelPoller, "get", lambda poller, callback, timeout: waits.append(timeout)
    )
    poller._channels = {FakeChannel(queues=["default"])}
    poller.get(None)
    assert not select.select([poller._alarm_fd], [], [], 0)[0]
    poller.wake()
    assert select.select([poller._alarm_fd], [], [], 0)[0]
    assert poller.handle_event(poller._alarm_fd, stock.READ) is None
    assert not select.select([poller._alarm_fd], [], [], 0)[0], "it would be woken again and again"


def test_get_waits_no_longer_than_a_channel_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no longer than its caller says."""
    poller: Any = Poller()
    waits: list[float] = []
    monkeypatch.setattr(
        older_kombu.MultiChannelPoller, "get", lambda poller, callback, timeout: waits.append(timeout)
    )
    poller.get(None)
    poller._channels = {FakeChannel(queues=["default"]), FakeChannel()}
    for timeout in (None, 0.1, 60):
        poller.get(None, timeout)
    assert waits == [tuning.POLL_INTERVAL_S, 0.25, 0.1, 0.25]


@pytest.mark.parametrize("ready", [True, False])
def test_go_on_keeps_the_loop_from_waiting(poller: Any, loop: FakeLoop, ready: bool) -> None:
    """If it has work to do, by a file that is readable at once."""
    loop._ready = ["a callback"] if ready else []
    poller.go_on()
    assert bool(loop.readers) is ready
    if ready:
        ((fileno, (read, same)),) = loop.readers.items()
        poller.go_on()
        assert select.select([fileno], [], [], 0)[0]
        read(same)
        assert not select.select([fileno], [], [], 0)[0]


def test_fds_are_those_that_the_loop_does_not_watch(poller: Any, loop: FakeLoop) -> None:
    """To add a file costs a system call. A descriptor may have had another reader before."""
    poller._fd_to_chan = {1: (), 2: (), 3: ()}
    loop.readers = {1: ("the reader", ()), 2: ("another one", ())}
    assert poller.fds == [2, 3]
    poller.loop = None
    assert poller.fds is poller._fd_to_chan


def test_on_poll_start_lets_channels_send(poller: Any) -> None:
    """A channel that consumes nothing any more only puts back what it has prefetched."""
    consuming, idle = FakeChannel(queues=["default"]), FakeChannel()
    poller._channels = {consuming, idle}
    poller.on_poll_start()
    assert consuming.calls == ["on_poll_start"]
    assert idle.calls == ["release_stale"]
    assert poller.polls


def test_receive_later_schedules_a_channel_once(poller: Any, loop: FakeLoop) -> None:
    """However often it says so in one turn."""
    channel = FakeChannel()
    poller.receive_later(channel)
    poller.receive_later(channel)
    assert loop.soon == [(poller._receive_rest, channel)]


def test_receive_rest_leaves_a_closed_channel_alone(poller: Any) -> None:
    """It was closed between two turns."""
    channel = FakeChannel(connection=None)
    poller.receive_later(channel)
    poller._receive_rest(channel)
    assert not poller._unread


def test_maybe_check_brpop_health_drops_a_silent_connection(poller: Any) -> None:
    """The node makes a new one; others are left alone."""
    drops: list[str] = []

    def fetcher(name: str, *, overdue: bool) -> Any:
        return SimpleNamespace(is_overdue=lambda _: overdue, disconnect=lambda: drops.append(name))

    unchecked = FakeChannel(fetcher=fetcher("unchecked", overdue=True), health_check_interval=0)
    poller._channels = {FakeChannel(), FakeChannel(fetcher=fetcher("good", overdue=False)), unchecked}
    poller.maybe_check_brpop_health()
    silent = FakeChannel(fetcher=fetcher("silent", overdue=True))
    poller._channels.add(silent)
    with pytest.raises(RedisConnectionError, match="does not answer"):
        poller.maybe_check_brpop_health()
    assert drops == ["silent"]
    assert not silent.lost_fetch


def test_maybe_restore_messages_sweeps_now_and_then(poller: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A poller without a loop calls it with each poll."""
    sweeps: list[int] = []
    now = [1000.0]
    monkeypatch.setattr(stock.MultiChannelPoller, "maybe_restore_messages", lambda poller: sweeps.append(1))
    monkeypatch.setattr("fleet_runtime.transport.poller.monotonic", lambda: now[0])
    for later in (0.0, 1.0, tuning.RESTORE_INTERVAL_S, 1.0):
        now[0] += later
        poller.maybe_restore_messages()
    assert len(sweeps) == 2


def test_forget_stops_watching_a_closed_connection(poller: Any, loop: FakeLoop) -> None:
    """Its descriptor may be another's by now, which is watched on."""
    removed: list[int] = []
    vars(loop)["remove"] = removed.append
    channel = FakeChannel(fetcher=PipelinedConnection("client", int))
    channel.fetcher.fileno = 7
    poller._chan_to_sock[channel, "client", channel.fetcher] = "socket"
    poller._fd_to_chan[7] = (channel, channel.fetcher)
    poller.forget(channel)
    assert (removed, poller._fd_to_chan, poller._chan_to_sock) == ([7], {}, {})
    channel.fetcher.fileno = 7
    poller._fd_to_chan[7] = ("another channel", "LISTEN")
    poller.forget(channel)
    assert removed == [7]
    assert 7 in poller._fd_to_chan


class FakeFetcher(PipelinedConnection):
    """A connection whose replies deliver messages, or lose it."""

    def __init__(self, poller: Any, *, delivers: bool = False, error: Exception | None = None) -> None:
        """Say what a read does."""
        super().__init__(SimpleNamespace(connection=None), int)
        self.poller, self.delivers, self.error = poller, delivers, error
        self.graces: list[float] = []

    def read(self, timeout: float = 0) -> None:
        """Read replies."""
        if self.error:
            raise self.error
        self.poller.delivered = self.delivers

    def read_pending(self, timeout: float) -> None:
        """Read the reply to the fetch that a notification led to."""
        self.graces.append(timeout)
        self.poller.delivered = True


def readable(poller: Any, fetcher: FakeFetcher, *, is_notified: bool = False) -> FakeChannel:
    """Return a channel whose connection is watched as file 5."""
    channel = FakeChannel(fetcher=fetcher, is_notified=is_notified)
    poller._fd_to_chan[5] = (channel, fetcher)
    return channel


def test_on_readable_returns_after_a_delivery(poller: Any) -> None:
    """Kombu's drain_events ends then."""
    channel = readable(poller, FakeFetcher(poller, delivers=True), is_notified=True)
    assert poller.on_readable(5) is True
    assert channel.calls == []


def test_on_readable_without_a_message_raises_empty(poller: Any) -> None:
    """An acknowledgement was confirmed, for example. What was delivered before does not count."""
    poller.delivered = True
    channel = readable(poller, FakeFetcher(poller))
    with pytest.raises(Empty):
        poller.on_readable(5)
    assert channel.calls == []


def test_on_readable_fetches_at_once_after_a_notification(poller: Any) -> None:
    """And waits a little for the message, in the same turn of the loop."""
    fetcher = FakeFetcher(poller)
    channel = readable(poller, fetcher, is_notified=True)
    assert poller.on_readable(5) is True
    assert channel.calls == ["on_poll_start"]
    assert fetcher.graces == [tuning.NOTIFY_GRACE_S]


def test_on_readable_reports_a_lost_connection_once(poller: Any) -> None:
    """By this error, and not by the next poll as well."""
    channel = readable(poller, FakeFetcher(poller, error=RedisConnectionError("reset")))
    with pytest.raises(RedisConnectionError, match="reset"):
        poller.on_readable(5)
    assert not channel.lost_fetch


def test_other_connections_are_read_by_kombu(poller: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of broadcast messages."""
    monkeypatch.setattr(stock.MultiChannelPoller, "on_readable", lambda poller, fileno: ("kombu", fileno))
    poller._fd_to_chan[6] = (FakeChannel(), "LISTEN")
    assert poller.on_readable(6) == ("kombu", 6)


def test_handle_event_reads_on_an_error_event_too(poller: Any) -> None:
    """The read finds what is wrong. The poller polls no more meanwhile."""
    poller.polls = True
    readable(poller, FakeFetcher(poller, delivers=True))
    assert poller.handle_event(5, stock.ERR) == (True, poller)
    assert not poller.polls


def test_a_new_poller_does_not_poll() -> None:
    """A thread that acknowledges before the first poll has to send by itself."""
    assert not Poller().polls


def test_subscriptions_are_checked_as_often_as_a_channel_says(
    poller: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The most frequent one decides; 0 is never."""
    checks: list[float] = []
    now = [1000.0]
    monkeypatch.setattr(poller, "maybe_check_subclient_health", lambda: checks.append(now[0]))
    monkeypatch.setattr("fleet_runtime.transport.poller.monotonic", lambda: now[0])
    poller._channels = {FakeChannel(health_check_interval=0)}
    poller._check_subscriptions()
    poller._channels |= {FakeChannel(health_check_interval=60), FakeChannel(health_check_interval=10)}
    for at in (1001.0, 1005.0, 1011.0, 1012.0):
        now[0] = at
        poller._check_subscriptions()
    assert [check for check in checks if check > 1000] == [1001.0, 1012.0]


@pytest.mark.parametrize(
    ("sock", "in_listen", "watched", "expected"),
    [(True, True, True, 0), (False, True, True, 1), (True, False, True, 1), (True, True, False, 1)],
)
def test_register_listen_subscribes_once(
    poller: Any,
    monkeypatch: pytest.MonkeyPatch,
    sock: bool,
    in_listen: bool,
    watched: bool,
    expected: int,
) -> None:
    """As long as the connection lives, has subscribed and is watched."""
    registered: list[Any] = []
    monkeypatch.setattr(
        stock.MultiChannelPoller, "_register_LISTEN", lambda poller, channel: registered.append(channel)
    )
    client = SimpleNamespace(connection=SimpleNamespace(_sock=object() if sock else None))
    channel = FakeChannel(_in_listen=in_listen)
    vars(channel)["subclient"] = _Hashed(client)
    if watched:
        poller._chan_to_sock[channel, vars(channel)["subclient"], "LISTEN"] = "socket"
    poller._register_LISTEN(channel)
    assert len(registered) == expected
    assert vars(channel)["listened_at"] > 0


class _Hashed:
    """A client, which is a key of a dictionary."""

    def __init__(self, client: Any) -> None:
        """Take what it has."""
        vars(self).update(vars(client))


@pytest.mark.parametrize(
    ("in_listen", "can_read", "expected"), [(True, True, 1), (True, False, 0), (False, True, 0)]
)
def test_receive_rest_delivers_what_is_left(
    poller: Any, in_listen: bool, can_read: bool, expected: int
) -> None:
    """Unless it was delivered meanwhile, or the subscription is gone."""
    received: list[int] = []
    connection = SimpleNamespace(can_read=lambda timeout: can_read)
    channel = FakeChannel(
        connection="a transport",
        _in_listen=in_listen,
        subclient=SimpleNamespace(connection=connection),
        _receive=lambda: received.append(1),
    )
    poller._receive_rest(channel)
    assert len(received) == expected
