# SPDX-License-Identifier: MIT
"""A channel at refusals, and at a Redis that refuses writes, without kombu's part."""

from __future__ import annotations

from contextlib import contextmanager
from queue import Empty
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from fleet_runtime.broker.functions import FunctionMissingError
from fleet_runtime.compat import older_kombu
from fleet_runtime.transport import tuning
from fleet_runtime.transport.base_channel import BaseChannel
from kombu.transport import redis as stock
from redis.exceptions import NoPermissionError, OutOfMemoryError, ResponseError

if TYPE_CHECKING:
    from collections.abc import Iterator

NO_RIGHT, FULL = NoPermissionError("no permission"), OutOfMemoryError("OOM command not allowed")
OTHER = ResponseError("ERR syntax")


class FakePipeline:
    """Answers with a list."""

    def __init__(self, replies: list[Any]) -> None:
        """Take the replies."""
        self.replies, self.keys = replies, list[str]()

    def __enter__(self) -> FakePipeline:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""

    def llen(self, key: str) -> None:
        """Note a command."""
        self.keys.append(key)

    def execute(self, *, raise_on_error: bool) -> list[Any]:
        """Return the replies."""
        assert not raise_on_error
        return self.replies


@pytest.fixture
def channel(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a channel that consumes two queues and is not connected."""
    monkeypatch.setattr(stock.Channel, "__init__", lambda channel: None)
    channel: Any = BaseChannel()
    channel._active_queues, channel._fanout_queues, channel.active_fanout_queues = ["a", "b"], {}, set()
    channel._update_queue_cycle = lambda: None
    channel.connection = None
    channel.closed = True
    return channel


def failing(error: Exception) -> Any:
    """Return a method that raises an error."""

    def fail(*_: Any) -> None:
        raise error

    return fail


def test_active_queues_leaves_refused_queues_out(channel: Any) -> None:
    """Each change is reported once."""
    told: list[int] = []
    channel.on_refused = lambda: told.append(1)
    assert channel.active_queues == ["a", "b"]
    channel._refused.add("a", "LLEN: no permission")
    assert channel.active_queues == ["b"]
    assert told == [1]


@pytest.mark.parametrize("skips", [True, False])
def test_queue_bind_leaves_a_refused_queue_out(
    channel: Any, monkeypatch: pytest.MonkeyPatch, skips: bool
) -> None:
    """A sender gets the error in its place."""
    monkeypatch.setattr(stock.Channel, "_queue_bind", failing(NO_RIGHT))
    channel.skips_refused = skips
    if skips:
        channel._queue_bind("exchange", "key", "", "a")
        assert channel.refused == {"a": "SADD: no permission"}
    else:
        with pytest.raises(NoPermissionError):
            channel._queue_bind("exchange", "key", "", "a")


def test_queue_bind_goes_on_at_the_memory_limit(
    channel: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An earlier start has bound the queue; any other error is raised."""
    monkeypatch.setattr(stock.Channel, "_queue_bind", failing(FULL))
    channel._queue_bind("exchange", "key", "", "a")
    assert "the queue a is taken to be bound" in caplog.text
    monkeypatch.setattr(stock.Channel, "_queue_bind", failing(OTHER))
    with pytest.raises(ResponseError, match="syntax"):
        channel._queue_bind("exchange", "key", "", "a")


@pytest.mark.parametrize(
    ("replies", "skips", "expected"),
    [
        ([1, 2], False, 3),
        ([1, NO_RIGHT], True, 0),
        ([1, NO_RIGHT], False, NO_RIGHT),
        ([1, OTHER], True, OTHER),
    ],
)
def test_size_counts_the_messages_of_all_priorities(
    channel: Any, replies: list[Any], skips: bool, expected: Any
) -> None:
    """A queue that will be left out counts as empty."""
    pipeline = FakePipeline(replies)

    class Client:
        """Has one pipeline."""

        def pipeline(self, *, transaction: bool) -> FakePipeline:
            """Return it."""
            assert not transaction, "a Redis at its memory limit refuses it"
            return pipeline

    @contextmanager
    def conn_or_acquire() -> Iterator[Client]:
        yield Client()

    channel.conn_or_acquire, channel.priority_steps, channel.skips_refused = conn_or_acquire, [0, 3], skips
    if isinstance(expected, Exception):
        with pytest.raises(type(expected)):
            channel._size("a")
    else:
        assert channel._size("a") == expected
    assert pipeline.keys == ["a", "a\x06\x163"]


@pytest.mark.parametrize("error", [FULL, ResponseError("MISCONF"), FunctionMissingError("missing")])
def test_maybe_refresh_binding_expiry_bears_what_goes_away(
    channel: Any, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Kombu tries again in a second."""
    monkeypatch.setattr(older_kombu.Channel, "maybe_refresh_binding_expiry", failing(error))
    channel.maybe_refresh_binding_expiry()


def test_maybe_refresh_binding_expiry_raises_other_errors(
    channel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kombu logs them."""
    monkeypatch.setattr(older_kombu.Channel, "maybe_refresh_binding_expiry", failing(OTHER))
    with pytest.raises(ResponseError, match="syntax"):
        channel.maybe_refresh_binding_expiry()


def test_wake_of_a_closed_channel_does_nothing(channel: Any) -> None:
    """Its connection is gone."""
    channel.wake()


@pytest.mark.parametrize(
    ("skips", "queue", "asked"), [(True, "c", 1), (False, "c", 0), (True, "a", 0), (True, "bcast", 0)]
)
def test_basic_consume_asks_whether_redis_refuses_the_queue(
    channel: Any, monkeypatch: pytest.MonkeyPatch, skips: bool, queue: str, asked: int
) -> None:
    """Unless it is left out already, or has no list. It is consumed in any case, and tried again later."""
    consumed: list[Any] = []
    questions: list[str] = []

    def refusal(queue: str) -> str:
        questions.append(queue)
        return "LLEN: no permission"

    monkeypatch.setattr(stock.Channel, "basic_consume", lambda channel, *words: consumed.append(words))
    channel._refused.add("a", "LLEN: no permission")
    channel._fanout_queues["bcast"] = ("news", "")
    channel.refusal, channel.skips_refused = refusal, skips
    channel.basic_consume(queue, "more")
    assert consumed == [(queue, "more")]
    assert len(questions) == asked
    assert list(channel.refused) == ["a", *(["c"] if asked else [])]


def test_conn_or_acquire_makes_one_client_a_pool(channel: Any) -> None:
    """And another one for another pool; a client that is given is passed on."""
    made: list[Any] = []

    def create_client() -> Any:
        made.append(SimpleNamespace(connection_pool=channel._pool))
        return made[-1]

    channel._create_client, channel._pool = create_client, "a pool"
    with channel.conn_or_acquire() as one, channel.conn_or_acquire() as same:
        assert one is same
    with channel.conn_or_acquire("given") as given:
        assert given == "given"
    channel._pool = "another pool"
    with channel.conn_or_acquire() as other:
        assert other is not one
    assert len(made) == 2


class FakeListener:
    """The client of broadcast messages."""

    def __init__(self, count: int) -> None:
        """Have messages."""
        self.count = count
        self.connection: Any = self

    def can_read(self, timeout: float) -> bool:
        """Return whether there are messages."""
        return self.count > 0


@pytest.fixture
def listening(channel: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a channel with three broadcast messages."""
    client = FakeListener(3)
    channel.received, channel.later = [], []

    def receive_one(channel: Any, client: Any) -> None:
        client.count -= 1
        channel.received.append(client.count)
        raise Empty  # as kombu does after an item that is no message

    monkeypatch.setattr(stock.Channel, "_receive_one", receive_one)
    channel.subclient = client
    channel.connection = SimpleNamespace(cycle=SimpleNamespace(receive_later=channel.later.append))
    return channel


def test_receive_delivers_what_is_there(listening: Any) -> None:
    """All of it, in one turn."""
    assert listening._receive() is True
    assert listening.received == [2, 1, 0]
    assert listening.later == []


def test_receive_leaves_a_flood_to_the_next_turn(listening: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node has other things to do."""
    monkeypatch.setattr(tuning, "FANOUT_TURN_S", -1.0)
    assert listening._receive() is True
    assert listening.received == [2]
    assert listening.later == [listening]


def test_receive_ends_when_the_connection_is_gone(listening: Any) -> None:
    """A message may have closed it."""
    listening.subclient.connection = None
    assert listening._receive() is True
    assert listening.received == [2]


@pytest.mark.parametrize("skips", [True, False])
def test_receive_one_leaves_out_the_subscription_that_is_refused(
    channel: Any, monkeypatch: pytest.MonkeyPatch, skips: bool
) -> None:
    """And subscribes to the others again."""
    monkeypatch.setattr(stock.Channel, "_receive_one", failing(NO_RIGHT))
    channel._fanout_queues = {"bcast.1": ("news", ""), "bcast.2": ("alarms", "")}
    channel.active_fanout_queues = {"bcast.1", "bcast.2"}
    channel.fanout_refusal = lambda exchange, _: "PSUBSCRIBE: no" if exchange == "news" else ""
    channel.skips_refused, channel._in_listen = skips, "a connection"
    if skips:
        assert channel._receive_one(None) is None
        assert list(channel.refused) == ["bcast.1"]
        assert channel._in_listen is None
        assert channel.active_fanout_queues == {"bcast.2"}
    else:
        with pytest.raises(NoPermissionError):
            channel._receive_one(None)


def test_receive_one_raises_a_refusal_of_something_else(
    channel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would come again and again."""
    monkeypatch.setattr(stock.Channel, "_receive_one", failing(NO_RIGHT))
    channel._fanout_queues, channel.active_fanout_queues = {"bcast.1": ("news", "")}, {"bcast.1"}
    channel.fanout_refusal = lambda *_: ""
    channel.skips_refused = True
    with pytest.raises(NoPermissionError):
        channel._receive_one(None)
