# SPDX-License-Identifier: MIT
"""The buffer of acknowledgements, without Redis."""

from __future__ import annotations

import pytest
from fleet_runtime.transport import tuning
from fleet_runtime.transport.ack_buffer import AckBuffer


@pytest.fixture
def acks() -> AckBuffer:
    """Return a buffer with three tags, which came at 10, 11 and 12 seconds."""
    acks = AckBuffer()
    for number, tag in enumerate("abc"):
        acks.add(tag, 10.0 + number)
    return acks


def test_add_measures_the_linger_from_the_first_tag(acks: AckBuffer) -> None:
    """Later tags do not delay the first one."""
    assert acks.due_at == 10.0 + tuning.ACK_LINGER_S
    assert len(acks) == 3


def test_take_returns_the_oldest_tags_first(acks: AckBuffer) -> None:
    """And leaves none behind."""
    assert acks.take() == ("a", "b", "c")
    assert (len(acks), bool(acks), acks.take()) == (0, False, ())


def test_take_returns_at_most_one_batch(acks: AckBuffer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest is for the next command."""
    monkeypatch.setattr(tuning, "ACK_BATCH", 2)
    assert acks.take() == ("a", "b")
    assert acks.tags == ["c"]


def test_put_back_keeps_the_order(acks: AckBuffer) -> None:
    """Tags of a command that failed come before those of later messages."""
    taken = acks.take()
    acks.add("d", 13.0)
    acks.put_back(taken)
    assert acks.tags == ["a", "b", "c", "d"]


def test_add_to_an_empty_buffer_starts_the_linger_anew(acks: AckBuffer) -> None:
    """The time of tags that are gone does not count."""
    acks.take()
    acks.add("d", 20.0)
    assert acks.due_at == 20.0 + tuning.ACK_LINGER_S


def test_restart_lets_the_tags_that_are_left_wait_again(
    acks: AckBuffer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And forgets the timer, which was for the tags that were sent."""
    monkeypatch.setattr(tuning, "ACK_BATCH", 1)
    acks.has_timer = True
    acks.take()
    acks.restart(30.0)
    assert acks.due_at == 30.0 + tuning.ACK_LINGER_S
    assert not acks.has_timer


def test_flush_soon_makes_all_tags_due(acks: AckBuffer) -> None:
    """Also the tags that come before the next command."""
    acks.flush_soon()
    acks.add("d", 13.0)
    assert acks.due_at < 10.0


def test_take_leaves_the_linger_as_it_was(acks: AckBuffer) -> None:
    """Tags that were put back because their command failed are due at once, and not after another wait."""
    acks.put_back(acks.take())
    assert acks.due_at == 10.0 + tuning.ACK_LINGER_S
