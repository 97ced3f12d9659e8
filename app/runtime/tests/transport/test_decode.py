# SPDX-License-Identifier: MIT
"""Decoding and delivery of items, with a transport that is not there."""

from __future__ import annotations

import json
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from fleet_runtime.broker.unacked import UnackedRef
from fleet_runtime.transport.channel import Channel
from fleet_runtime.transport.decode import MALFORMED, RecordedPayload, deliver
from kombu.transport.virtual import Message

from fleet_testing.items import message

if TYPE_CHECKING:
    from collections.abc import Iterator

REF = UnackedRef("unacked:one", "unacked_index:one", "tag-1")


class FakeChannel:
    """Notes what was delivered, and what was recorded."""

    Message = Message

    def __init__(self) -> None:
        """Have a connection that delivers."""
        self.delivered: list[Any] = []
        self.records: list[tuple[str, str, bytes]] = []
        self.malformed: list[tuple[bytes, str, Any, Exception]] = []
        self.error: Exception | None = None
        self.connection = SimpleNamespace(_deliver=self.take)

    def take(self, payload: Any, queue: str) -> None:
        """Deliver as kombu does, which reads the message first."""
        Message(payload, channel=self)
        if self.error:
            raise self.error
        self.delivered.append(payload)

    def decode_body(self, body: Any, encoding: Any = None) -> Any:
        """Return a body as it is."""
        return body

    @contextmanager
    def conn_or_acquire(self) -> Iterator[Any]:
        """Yield a client that notes records."""
        yield SimpleNamespace(hset=lambda *record: self.records.append(record))

    def on_malformed(self, *args: Any) -> None:
        """Note an item that is no message."""
        self.malformed.append(args)

    def deliver(self, item: bytes, ref: UnackedRef | None = None) -> None:
        """Deliver an item of the queue default."""
        deliver(self, item, "default", ref)


@pytest.fixture
def channel() -> FakeChannel:
    """Return a channel."""
    return FakeChannel()


def item(**properties: Any) -> bytes:
    """Return a message as kombu stores it, with other properties."""
    payload = message({})
    payload["properties"] = {**payload["properties"], **properties}
    return json.dumps(payload).encode()


def test_deliver_marks_a_recorded_message(channel: FakeChannel) -> None:
    """So that kombu's QoS does not record it again. The mark does not show in its JSON."""
    channel.deliver(item(delivery_tag="tag-1"), REF)
    (payload,) = channel.delivered
    assert type(payload) is RecordedPayload
    assert json.loads(json.dumps(payload)) == payload == json.loads(item(delivery_tag="tag-1"))


def test_deliver_does_not_mark_a_message_without_a_record(channel: FakeChannel) -> None:
    """Of a queue without acknowledgements, or from kombu's own channel."""
    channel.deliver(item())
    assert type(channel.delivered[0]) is dict


def test_deliver_gives_a_copy_the_tag_of_its_record(channel: FakeChannel) -> None:
    """By which it is settled; another copy has the tag of the message."""
    channel.deliver(item(delivery_tag="tag-1"), REF._replace(tag="tag-1+"))
    assert channel.delivered[0]["properties"]["delivery_tag"] == "tag-1+"
    assert channel.records == []


def test_deliver_records_what_only_python_can_parse(channel: FakeChannel) -> None:
    """Lua's parser refuses it, so the script has recorded the bare item."""
    ref = REF._replace(tag=f"{MALFORMED}0123")
    channel.deliver(item(), ref)
    ((key, tag, record),) = channel.records
    assert (key, tag) == ("unacked:one", ref.tag)
    assert json.loads(record) == [json.loads(item()), "", "default"]
    assert channel.delivered[0]["properties"]["delivery_tag"] == ref.tag


@pytest.mark.parametrize("ref", [REF._replace(tag=f"{MALFORMED}0123"), None])
@pytest.mark.parametrize(
    "malformed", [b"no JSON", b"\xff\xfe", b"[]", b"[[1, 2]]", b'"text"', b"null", b"{}"]
)
def test_deliver_passes_on_what_is_no_message(
    channel: FakeChannel, malformed: bytes, ref: UnackedRef | None
) -> None:
    """With its record, and the error; nothing is raised, and nothing is delivered to a consumer."""
    channel.deliver(malformed, ref)
    ((found, queue, at, error),) = channel.malformed
    assert (found, queue, at) == (malformed, "default", ref)
    assert isinstance(error, Exception)
    assert channel.delivered == channel.records == []


@pytest.mark.parametrize("ref", [REF._replace(tag=f"{MALFORMED}0123"), None])
@pytest.mark.parametrize(
    ("part", "value"), [("delivery_info", {}), ("delivery_info", None), ("delivery_tag", [1])]
)
def test_deliver_passes_on_a_message_without_a_part(
    channel: FakeChannel, part: str, value: Any, ref: UnackedRef | None
) -> None:
    """Kombu finds out as it reads it, and raises anything."""
    channel.error = KeyError("raised by its reader")
    channel.deliver(item(**{part: value}), ref)
    assert [call[:3] for call in channel.malformed] == [(item(**{part: value}), "default", ref)]
    assert channel.delivered == channel.records == []


def test_deliver_raises_the_error_of_a_consumer(channel: FakeChannel) -> None:
    """A good message is no dead letter, whatever a consumer raises."""
    channel.error = KeyError("of the consumer")
    with pytest.raises(KeyError, match="of the consumer"):
        channel.deliver(item(delivery_tag="tag-1"), REF)
    assert channel.malformed == []


@pytest.mark.parametrize(
    ("ref", "fate"), [(REF, "stays unacknowledged as tag-1"), (None, "is lost")], ids=["recorded", "not"]
)
def test_on_malformed_logs_no_text_of_the_item(
    caplog: pytest.LogCaptureFixture, ref: UnackedRef | None, fate: str
) -> None:
    """It may have secrets in it, and so may the error."""
    Channel.on_malformed(object.__new__(Channel), b"pa55word", "default", ref, ValueError("pa55word"))
    (line,) = caplog.messages
    assert "8 bytes in the queue default" in line
    assert fate in line
    assert "pa55word" not in line
