# SPDX-License-Identifier: MIT
"""Queues that Redis refuses, with a channel that is not there."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from fleet_runtime.transport import tuning
from fleet_runtime.transport.refused import RefusedQueues, is_refusal, subscribe_refusal
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError, OutOfMemoryError, ResponseError


class FakeChannel:
    """What a channel has of queues, and what Redis refuses of them."""

    def __init__(self) -> None:
        """Consume two queues, and one for broadcasts."""
        self._active_queues = ["default", "email", "bcast.1"]
        self._fanout_queues = {"bcast.1": ("news", "")}
        self._fanout_to_queue = {"news": "bcast.1"}
        self._in_listen: Any = object()
        self.active_fanout_queues = {"bcast.1"}
        self.refusals: dict[str, str] = {}
        self.changes = 0

    def refusal(self, queue: str) -> str:
        """Return why Redis refuses a queue."""
        return self.refusals.get(queue, "")

    def fanout_refusal(self, exchange: str, routing_key: str) -> str:
        """Return why Redis refuses an exchange."""
        return self.refusals.get(exchange, "")

    def on_queues_changed(self) -> None:
        """Note a change."""
        self.changes += 1


@pytest.fixture
def channel() -> FakeChannel:
    """Return a channel."""
    return FakeChannel()


@pytest.fixture
def refused(channel: FakeChannel) -> RefusedQueues:
    """Return its refused queues."""
    return RefusedQueues(channel)


def test_add_tells_the_channel_and_the_log_once(
    refused: RefusedQueues, channel: FakeChannel, caplog: pytest.LogCaptureFixture
) -> None:
    """A queue that stays refused for the same reason is one line."""
    refused.add("email", "LLEN: no permission")
    refused.add("email", "LLEN: no permission")
    assert refused.reasons == {"email": "LLEN: no permission"}
    assert channel.changes == 2
    assert len(caplog.messages) == 1
    refused.add("email", "LLEN: WRONGTYPE")
    assert len(caplog.messages) == 2


def test_check_adds_only_what_is_refused(refused: RefusedQueues, channel: FakeChannel) -> None:
    """The others are consumed."""
    assert not refused.check(["default", "email"])
    channel.refusals["email"] = "LLEN: no permission"
    assert refused.check(["default", "email"])
    assert list(refused.reasons) == ["email"]


def test_retry_consumes_again_what_redis_allows(
    refused: RefusedQueues, channel: FakeChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are tried again later."""
    channel.refusals = {"email": "LLEN: no permission", "default": "LLEN: no permission"}
    refused.check(["default", "email"])
    del channel.refusals["default"]
    monkeypatch.setattr("fleet_runtime.transport.refused.monotonic", lambda: 5000.0)
    refused.retry()
    assert list(refused.reasons) == ["email"]
    assert refused.retry_at == 5000.0 + tuning.REFUSED_RETRY_S
    channel.refusals.clear()
    refused.retry()
    assert (refused.reasons, refused.retry_at) == ({}, float("inf"))


def test_add_schedules_a_retry(refused: RefusedQueues, monkeypatch: pytest.MonkeyPatch) -> None:
    """After REFUSED_RETRY_S."""
    monkeypatch.setattr("fleet_runtime.transport.refused.monotonic", lambda: 100.0)
    refused.add("email", "LLEN: no permission")
    assert refused.retry_at == 100.0 + tuning.REFUSED_RETRY_S


def test_retry_forgets_a_queue_that_was_cancelled(refused: RefusedQueues, channel: FakeChannel) -> None:
    """Redis is not asked for it again."""
    refused.add("email", "LLEN: no permission")
    channel._active_queues.remove("email")
    channel.refusals["email"] = "would be added again"
    refused.retry()
    assert refused.reasons == {}


def test_a_queue_of_broadcasts_is_named_by_its_exchange(refused: RefusedQueues, channel: FakeChannel) -> None:
    """Its own name is random. kombu does not subscribe to it meanwhile."""
    refused.add("bcast.1", "PSUBSCRIBE: no permission")
    assert "a queue of the exchange news, whose messages go to every node" in refused.reasons["bcast.1"]
    assert channel.active_fanout_queues == set()
    assert channel._fanout_queues == {}


def test_a_queue_of_broadcasts_is_subscribed_to_again(refused: RefusedQueues, channel: FakeChannel) -> None:
    """As soon as Redis allows its exchange."""
    refused.add("bcast.1", "PSUBSCRIBE: no permission")
    channel.refusals["news"] = "PSUBSCRIBE: still no permission"
    refused.retry()
    assert "still no permission (a queue of the exchange news" in refused.reasons["bcast.1"]
    channel.refusals.clear()
    refused.retry()
    assert refused.reasons == {}
    assert channel._fanout_queues == {"bcast.1": ("news", "")}
    assert channel._fanout_to_queue == {"news": "bcast.1"}
    assert channel.active_fanout_queues == {"bcast.1"}
    assert channel._in_listen is None, "kombu takes it to be subscribed to"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (NoPermissionError("no"), True),
        (ResponseError("WRONGTYPE Operation against a key"), True),
        (ResponseError("LOADING"), False),
        (OutOfMemoryError("OOM"), False),
    ],
)
def test_is_refusal_is_for_errors_that_stay(error: ResponseError, expected: bool) -> None:
    """Others go away by themselves."""
    assert is_refusal(error) is expected


class FakeListener:
    """Answers to PSUBSCRIBE."""

    def __init__(self, answer: Any) -> None:
        """Take the answer."""
        self.answer = answer

    def __enter__(self) -> FakeListener:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""

    def execute_command(self, *_: str) -> None:
        """Send a command."""

    def parse_response(self, **_: Any) -> Any:
        """Return the answer, or raise it."""
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_subscribe_refusal_reads_each_answer() -> None:
    """Allowed, refused, and no answer at all."""

    def client(answer: Any) -> Any:
        return SimpleNamespace(pubsub=lambda: FakeListener(answer))

    assert subscribe_refusal(client([b"psubscribe"]), ["/0.news"]) == ""
    assert subscribe_refusal(client(NoPermissionError("no")), ["/0.news"]) == "PSUBSCRIBE: no"
    with pytest.raises(RedisConnectionError, match="does not answer"):
        subscribe_refusal(client(None), ["/0.news"])
