# SPDX-License-Identifier: MIT
"""kombu's account of unacknowledged messages, with channels that are not there."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from fleet_runtime.transport import qos as module
from fleet_runtime.transport.decode import RecordedPayload
from fleet_runtime.transport.qos import QoS
from kombu.transport import redis as stock

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


class FakeKombuChannel(FakeChannel):
    """A channel of kombu's own, which knows no batches."""

    acknowledge = wake = property()  # as if they were not there


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


def test_reject_with_requeue_makes_room(channel: FakeChannel) -> None:
    """And lets the poller know, which may wait for room."""
    qos = account(channel)
    qos.reject("tag-1", requeue=True)
    assert channel.calls == ["wake"]
    assert qos.can_consume()


@pytest.mark.parametrize("requeue", [False, True])
def test_a_channel_of_kombus_own_settles_one_by_one(monkeypatch: pytest.MonkeyPatch, requeue: bool) -> None:
    """A node at the level `standard` has one."""
    settled: list[Any] = []
    monkeypatch.setattr(module, "acknowledge", lambda client, *names: settled.append(names))
    channel = FakeKombuChannel()
    qos = account(channel)
    qos.reject("tag-1", requeue=requeue)
    assert channel.calls == []
    assert settled == ([] if requeue else [("unacked:one", "unacked_index:one", ["tag-1"])])
    assert qos.can_consume()
