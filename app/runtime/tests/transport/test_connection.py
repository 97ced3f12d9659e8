# SPDX-License-Identifier: MIT
"""The pipelined connection, with a connection of redis-py that is not there."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest
from fleet_runtime.transport import connection as module
from fleet_runtime.transport.connection import PUSH, TRACK, PendingCommand, PipelinedConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

NIL = object()


class FakeConnection:
    """Answers from a list, and notes what was sent."""

    def __init__(self) -> None:
        """Be connected."""
        self.sent: list[Any] = []
        self.replies: deque[Any] = deque()
        self._sock: object | None = object()
        self._parser = SimpleNamespace(set_invalidation_push_handler=self.set_handler)
        self.handler: Any = None
        self.disconnects = 0

    def set_handler(self, handler: Any) -> None:
        """Note what handles push messages."""
        self.handler = handler

    def pack_commands(self, commands: list[Any]) -> list[Any]:
        """Return commands as they are."""
        return commands

    def send_packed_command(self, commands: list[Any], check_health: bool = True) -> None:
        """Note commands."""
        assert not check_health, "the reply to a PING would be taken for another's"
        self.sent += commands

    def can_read(self, timeout: float = 0) -> bool:
        """Return whether there are replies."""
        return bool(self.replies)

    def read_response(self, **_: Any) -> Any:
        """Return the next reply."""
        if not self.replies:
            raise RedisTimeoutError("nothing has come")
        reply = self.replies.popleft()
        if reply is NIL:
            return None
        if isinstance(reply, Exception):
            raise reply
        return self.handler(reply) if isinstance(reply, list) else reply

    def disconnect(self) -> None:
        """Close."""
        self.disconnects += 1
        self._sock = None


@pytest.fixture
def fake() -> FakeConnection:
    """Return a connection of redis-py."""
    return FakeConnection()


@pytest.fixture
def notified() -> list[int]:
    """Return a list that grows with each notification."""
    return []


@pytest.fixture
def pipe(fake: FakeConnection, notified: list[int]) -> PipelinedConnection:
    """Return a connection on which tracking is on."""
    pipe = PipelinedConnection(SimpleNamespace(connection=fake), lambda: notified.append(1))
    pipe.enable_tracking()
    fake.replies.append(b"OK")
    pipe.read()
    return pipe


def test_enable_tracking_sends_one_command(pipe: PipelinedConnection, fake: FakeConnection) -> None:
    """Its reply needs no handler."""
    assert fake.sent == [TRACK]
    assert pipe.is_idle


def test_replies_go_to_their_commands_in_order(pipe: PipelinedConnection, fake: FakeConnection) -> None:
    """Whatever comes between them."""
    got: list[Any] = []
    pipe.send(PendingCommand(("A",), on_reply=lambda reply: got.append(("A", reply))))
    pipe.send(PendingCommand(("B",), on_reply=lambda reply: got.append(("B", reply))))
    fake.replies += [1, [b"invalidate"], 2]
    pipe.read()
    assert got == [("A", 1), ("B", 2)]
    assert pipe.is_idle


def test_a_push_message_is_no_reply(
    pipe: PipelinedConnection, fake: FakeConnection, notified: list[int]
) -> None:
    """It is handled, and the pending command still waits."""
    pipe.send(PendingCommand(("A",)))
    fake.replies.append([b"invalidate"])
    pipe.read()
    assert notified == [1]
    assert not pipe.is_idle


def test_a_push_message_of_another_kind_is_ignored(pipe: PipelinedConnection, fake: FakeConnection) -> None:
    """redis-py returns None for it."""
    pipe.send(PendingCommand(("A",)))
    fake.replies.append(NIL)
    pipe.read()
    assert not pipe.is_idle


def test_a_reply_to_no_command_closes_the_connection(pipe: PipelinedConnection, fake: FakeConnection) -> None:
    """Later replies would go to the wrong commands."""
    fake.replies.append(1)
    with pytest.raises(RedisConnectionError, match="a reply came to no command"):
        pipe.read()
    assert not pipe.is_open


@pytest.mark.parametrize("usable", [True, False])
def test_an_error_reply_is_handled_by_its_command(
    pipe: PipelinedConnection, fake: FakeConnection, usable: bool
) -> None:
    """Its handler decides whether the connection can still be used."""
    errors: list[ResponseError] = []

    def on_error(error: ResponseError) -> bool:
        errors.append(error)
        return usable

    pipe.send(PendingCommand(("A",), on_error=on_error))
    fake.replies.append(ResponseError("NOPERM no"))
    if usable:
        pipe.read()
        assert pipe.is_idle
    else:
        with pytest.raises(RedisConnectionError, match="Redis refuses a command: NOPERM no"):
            pipe.read()
    assert len(errors) == 1
    assert pipe.is_open is usable


def test_a_handler_that_fails_closes_the_connection(pipe: PipelinedConnection, fake: FakeConnection) -> None:
    """The tags of its command may not be acknowledged."""

    def on_error(error: ResponseError) -> bool:
        raise RuntimeError("the handler has failed")

    pipe.send(PendingCommand(("A",), on_error=on_error, tags=("tag",)))
    fake.replies.append(ResponseError("NOPERM no"))
    with pytest.raises(RedisConnectionError, match="the handler has failed"):
        pipe.read()
    assert not pipe.is_open
    assert pipe.drop_pending() == ["tag"]


@pytest.mark.parametrize("error", [RedisConnectionError("reset"), OSError("reset")])
def test_a_lost_connection_is_closed(
    pipe: PipelinedConnection, fake: FakeConnection, error: Exception
) -> None:
    """Whatever exception says so."""
    pipe.send(PendingCommand(("A",)))
    fake.replies.append(error)
    with pytest.raises(RedisConnectionError, match="reset"):
        pipe.read()
    assert not pipe.is_open


def test_drop_pending_returns_the_tags_without_a_reply(
    pipe: PipelinedConnection, fake: FakeConnection
) -> None:
    """Those of a command that was answered are acknowledged."""
    pipe.send(PendingCommand(("A",), tags=("a", "b")))
    assert not pipe.has_pending_fetch
    pipe.send(PendingCommand(("B",), tags=("c",), is_fetch=True))
    assert pipe.has_pending_fetch
    fake.replies.append(1)
    pipe.read()
    assert pipe.pending_tags == ["c"]
    assert pipe.drop_pending() == ["c"]
    assert pipe.is_idle
    assert not pipe.has_pending_fetch


def test_wait_for_replies_ends_when_all_have_come(pipe: PipelinedConnection, fake: FakeConnection) -> None:
    """Each one in its time."""
    pipe.send(PendingCommand(("A",)), PendingCommand(("B",)))
    fake.replies += [1, 2]
    pipe.wait_for_replies(5)
    assert pipe.is_idle


def test_wait_for_replies_gives_up(pipe: PipelinedConnection, fake: FakeConnection) -> None:
    """A node that stops does not wait for a Redis that stands still."""
    pipe.send(PendingCommand(("A",)))
    with pytest.raises(RedisConnectionError, match="no reply came in time"):
        pipe.wait_for_replies(0.01)
    assert not pipe.is_open


def test_wait_for_replies_within_a_reply_does_nothing(
    pipe: PipelinedConnection, fake: FakeConnection
) -> None:
    """A consumer may close its channel; the next reply cannot be read before that one is handled."""
    pipe.send(PendingCommand(("A",), on_reply=lambda _: pipe.wait_for_replies(0)), PendingCommand(("B",)))
    fake.replies.append(1)
    pipe.read()
    assert pipe.is_open
    assert not pipe.is_idle


@pytest.mark.parametrize("readable", [True, False])
def test_is_overdue_counts_from_the_last_reply(
    pipe: PipelinedConnection, monkeypatch: pytest.MonkeyPatch, readable: bool
) -> None:
    """A reply that has come, and was not read, is not overdue: the node was busy."""
    now = [100.0]
    monkeypatch.setattr(module, "monotonic", lambda: now[0])
    monkeypatch.setattr("fleet_runtime.transport.connection.is_readable", lambda sock: readable)
    assert not pipe.is_overdue(1)
    pipe.send(PendingCommand(("A",)))
    now[0] = 100.5
    pipe.send(PendingCommand(("B",)))
    assert not pipe.is_overdue(1)
    now[0] = 101.1
    assert pipe.is_overdue(1) is not readable


def test_close_ends_the_use_of_the_connection(pipe: PipelinedConnection, fake: FakeConnection) -> None:
    """Nothing is read from it any more."""
    pipe.close()
    assert fake.disconnects == 1
    assert pipe.connection is None
    pipe.read()
    pipe.disconnect()
    assert fake.disconnects == 1


def test_push_is_not_taken_for_a_reply() -> None:
    """Redis may reply with anything but these two objects."""
    assert PUSH is not module.NOTHING
