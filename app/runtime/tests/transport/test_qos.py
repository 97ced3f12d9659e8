# SPDX-License-Identifier: MIT
"""kombu's account of unacknowledged messages, with channels that are not there."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from fleet_runtime.broker import functions
from fleet_runtime.transport.decode import RecordedPayload
from fleet_runtime.transport.qos import QoS
from kombu.transport import redis as stock
from redis.exceptions import ResponseError

if TYPE_CHECKING:
    from collections.abc import Iterator


class FakeChannel:
    """A channel of the runtime."""

    do_restore = False
    unacked_key, unacked_index_key = "unacked:one", "unacked_index:one"
    connection_errors = (OSError,)

    def __init__(self) -> None:
        """Note what is called."""
        self.calls: list[Any] = []

    def acknowledge(self, tag: str) -> None:
        """Note an acknowledgement."""
        self.calls.append(("acknowledge", tag))

    def wake(self) -> None:
        """Note that the poller is woken."""
        self.calls.append("wake")

    @contextmanager
    def conn_or_acquire(self, client: Any = None) -> Iterator[Any]:
        """Yield a client that has no record."""
        yield SimpleNamespace(hget=lambda *_: None)


@pytest.fixture
def channel() -> FakeChannel:
    """Return a channel of the runtime."""
    return FakeChannel()


def account(channel: FakeChannel) -> Any:
    """Return the account of a channel, with one message."""
    qos: Any = QoS(channel, prefetch_count=1)
    qos.append(SimpleNamespace(_raw=RecordedPayload(), delivery_info={}), "tag-1")
    return qos


def test_append_counts_a_recorded_message_without_asking_redis(
    channel: FakeChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fetch has recorded it. All others go kombu's way."""
    appended: list[str] = []
    monkeypatch.setattr(stock.QoS, "append", lambda qos, message, tag: appended.append(tag))
    qos = account(channel)
    assert list(qos._delivered) == ["tag-1"]
    assert not qos.can_consume()
    qos.append(SimpleNamespace(_raw={}, delivery_info={}), "tag-2")
    assert appended == ["tag-2"]


def test_ack_leaves_the_acknowledgement_to_the_channel(channel: FakeChannel) -> None:
    """Which sends many by one command."""
    qos = account(channel)
    qos.ack("tag-1")
    assert channel.calls == [("acknowledge", "tag-1")]
    assert qos.can_consume()


def test_reject_without_requeue_acknowledges(channel: FakeChannel) -> None:
    """The message is settled."""
    account(channel).reject("tag-1")
    assert channel.calls == [("acknowledge", "tag-1")]


def test_reject_with_requeue_makes_room(channel: FakeChannel, monkeypatch: pytest.MonkeyPatch) -> None:
    """And lets the poller know, which may wait for room. The message goes behind all others of its queue."""
    restored: list[Any] = []
    monkeypatch.setattr(QoS, "restore_by_tag", lambda qos, tag, leftmost: restored.append((tag, leftmost)))
    qos = account(channel)
    qos.reject("tag-1", requeue=True)
    assert restored == [("tag-1", True)]
    assert channel.calls == ["wake"]
    assert qos.can_consume()


MESSAGE = {"headers": {}, "properties": {"delivery_tag": "tag-1", "delivery_info": {}}}


class FakeRedis:
    """Has a record, and notes what is done with it."""

    def __init__(self, record: str) -> None:
        """Take the record."""
        self.record, self.overdue = record.encode(), list[bytes]()
        self.renewed: list[Any] = []

    def hget(self, *_: str) -> bytes:
        """Return the record."""
        return self.record

    def zrange(self, key: str, least: float, most: float, *, byscore: bool) -> list[bytes]:
        """Return the tags of messages that are unacknowledged for long."""
        assert byscore
        assert (key, least) == ("unacked_index:one", 0)
        assert most == pytest.approx(time.time() - 3600, abs=60)
        return self.overdue

    def zadd(self, key: str, known: dict[bytes, float], *, xx: bool) -> None:
        """Note tags whose time is set."""
        assert xx, "a message that was settled meanwhile would come back"
        self.renewed += [(key, tag) for tag in known]


class RoutingChannel(FakeChannel):
    """A channel that knows where messages go."""

    visibility_timeout = 3600
    unacked_mutex_key, unacked_mutex_expire = "unacked_mutex:one", 300
    connection = None
    qos: Any = None

    def __init__(self, redis: FakeRedis, queues: list[str]) -> None:
        """Take the client, and the queues that are bound to any exchange."""
        super().__init__()
        self.redis, self.queues = redis, queues

    @contextmanager
    def conn_or_acquire(self, client: Any = None) -> Iterator[Any]:
        """Yield the client."""
        yield self.redis

    def _get_message_priority(self, message: Any, *, reverse: bool) -> int:
        """Return a priority."""
        assert not reverse
        return 3

    def _lookup(self, exchange: str, routing_key: str) -> list[str]:
        """Return the queues."""
        return self.queues

    def _q_for_pri(self, queue: str, priority: int) -> str:
        """Return the name of a list."""
        return f"{queue}:{priority}"


@pytest.mark.parametrize(("leftmost", "push"), [(True, "LPUSH"), (False, "RPUSH")])
def test_restore_by_tag_requeues_a_message_as_redelivered(
    monkeypatch: pytest.MonkeyPatch, leftmost: bool, push: str
) -> None:
    """In each queue that it belongs to, and again if its record has changed meanwhile."""
    runs: list[Any] = []

    def run(client: Any, script: str, keys: list[str], args: list[Any]) -> bool:
        runs.append((keys, args))
        return len(runs) > 1

    monkeypatch.setattr(functions, "run", run)
    record = json.dumps([MESSAGE, "exchange", "key"])
    qos: Any = QoS(RoutingChannel(FakeRedis(record), ["default", "email"]))
    qos.restore_by_tag("tag-1", leftmost=leftmost)
    assert len(runs) == 2
    keys, (tag, before, item, how) = runs[0]
    assert keys == ["unacked:one", "unacked_index:one", "default:3", "email:3"]
    assert (tag, before, how) == ("tag-1", record.encode(), push)
    message = json.loads(item)
    assert message["headers"]["redelivered"] is True
    assert message["properties"]["delivery_info"]["redelivered"] is True


@pytest.mark.parametrize("record", ["no JSON", json.dumps([MESSAGE, "exchange", "key"])])
def test_restore_by_tag_leaves_what_can_go_nowhere(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, record: str
) -> None:
    """Unacknowledged, and with a line in the log."""
    monkeypatch.setattr(functions, "run", lambda *_: pytest.fail("it was moved"))
    qos: Any = QoS(RoutingChannel(FakeRedis(record), []))
    qos.restore_by_tag("tag-1")
    assert "A message cannot go back to its queue: tag-1" in caplog.text


def test_restore_visible_leaves_what_this_node_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for its ETA, or runs. kombu requeues the rest."""
    swept: list[Any] = []
    monkeypatch.setattr(stock.QoS, "restore_visible", lambda qos, **options: swept.append(options))
    redis = FakeRedis("")
    redis.overdue = [b"tag-1", b"tag-2"]
    channel = RoutingChannel(redis, [])
    qos = channel.qos = account(channel)
    qos.restore_visible(num=10)
    assert redis.renewed == [("unacked_index:one", b"tag-1")]
    assert swept == [{"num": 10, "interval": 1}]
    other = RoutingChannel(redis, [])
    other.qos = account(other)
    channel.connection = SimpleNamespace(channels=[channel, other])  # type: ignore[assignment]  # it reads no more of it
    other.qos._delivered["tag-2"] = None
    redis.renewed.clear()
    qos.restore_visible(num=10)
    assert len(redis.renewed) == 2, "it came by another channel of this connection"


@pytest.mark.parametrize(("error", "is_borne"), [("MISCONF no disk", True), ("ERR syntax", False)])
def test_restore_visible_bears_a_redis_that_refuses_writes(
    monkeypatch: pytest.MonkeyPatch, error: str, is_borne: bool
) -> None:
    """An error there would end the node."""

    def refuse(*_: Any, **__: Any) -> None:
        raise ResponseError(error)

    monkeypatch.setattr(stock.QoS, "restore_visible", refuse)
    channel = RoutingChannel(FakeRedis(""), [])
    channel.qos = account(channel)
    with nullcontext() if is_borne else pytest.raises(ResponseError):
        channel.qos.restore_visible()
