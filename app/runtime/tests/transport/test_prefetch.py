# SPDX-License-Identifier: MIT
"""The prefetch buffer and the rate that decides its size, without Redis."""

from __future__ import annotations

import pytest
from fleet_runtime.transport import prefetch, tuning
from fleet_runtime.transport.fetch import FetchedMessage
from fleet_runtime.transport.prefetch import PrefetchBuffer, RateEstimator

NOW = 100.0


def message(number: int) -> FetchedMessage:
    """Return a fetched message."""
    return FetchedMessage("default", "default", f"tag-{number}", b"{}", False)


@pytest.fixture
def buffer() -> PrefetchBuffer:
    """Return a buffer with three messages, which were fetched at NOW."""
    buffer = PrefetchBuffer()
    buffer.add([message(number) for number in range(3)], NOW)
    return buffer


@pytest.fixture
def rate(monkeypatch: pytest.MonkeyPatch) -> RateEstimator:
    """Return an estimator that was made at NOW."""
    monkeypatch.setattr(prefetch, "monotonic", lambda: NOW)
    return RateEstimator()


def test_rate_rises_by_half_of_the_difference(rate: RateEstimator) -> None:
    """One burst does not let a node fetch much."""
    rate.settled = 100
    assert rate.measure(NOW + 1) == pytest.approx(50)
    rate.settled = 100
    assert rate.measure(NOW + 2) == pytest.approx(75)


def test_rate_falls_at_once(rate: RateEstimator) -> None:
    """A node whose tasks have become slow leaves messages to others."""
    rate.settled = 1000
    rate.measure(NOW + 1)
    rate.settled = 10
    assert rate.measure(NOW + 2) == pytest.approx(10)


def test_rate_is_measured_over_a_least_span(rate: RateEstimator) -> None:
    """Two messages in the same microsecond are no rate."""
    rate.settled = 2
    assert rate.measure(NOW + tuning.RATE_SPAN_S) == 0.0
    assert rate.settled == 2


@pytest.mark.parametrize(
    ("per_second", "slots", "expected"),
    [
        (0.0, 8, 0),
        (99.0, 8, 0),
        (1000.0, 8, 10),
        (10**6, 8, 8 * tuning.PREFETCH_PER_SLOT),
        (10**6, 10**4, tuning.FETCH_BATCH),
        (10**6, 0, 0),
    ],
)
def test_target_is_bounded(per_second: float, slots: int, expected: int) -> None:
    """By the rate, by the prefetch count (0 is none), and by the batch."""
    assert prefetch.target(per_second, slots) == expected


def test_take_returns_messages_in_their_order(buffer: PrefetchBuffer) -> None:
    """The next one first."""
    assert [one.tag for one in buffer.take(2)] == ["tag-0", "tag-1"]
    assert [one.tag for one in buffer.messages] == ["tag-2"]
    assert len(buffer) == 1


def test_is_stale_counts_from_the_oldest_fetch(buffer: PrefetchBuffer) -> None:
    """Newer messages do not keep the oldest one here."""
    buffer.add([message(3)], NOW + tuning.PREFETCH_TTL_S)
    assert not buffer.is_stale(NOW + tuning.PREFETCH_TTL_S * 0.99)
    assert buffer.is_stale(NOW + tuning.PREFETCH_TTL_S)


def test_an_empty_buffer_is_not_stale() -> None:
    """Nothing has to go back."""
    assert not PrefetchBuffer().is_stale(NOW)


def test_keep_longer_lets_all_messages_wait_again(buffer: PrefetchBuffer) -> None:
    """They could not go back, and are tried again after another TTL."""
    later = NOW + 1
    buffer.keep_longer(later)
    assert not buffer.is_stale(later + tuning.PREFETCH_TTL_S / 2)
    assert buffer.is_stale(later + tuning.PREFETCH_TTL_S)
    assert len(buffer) == 3


def test_clear_forgets_all_messages(buffer: PrefetchBuffer) -> None:
    """They are in their queues again."""
    buffer.clear()
    assert (len(buffer), buffer.messages) == (0, [])


@pytest.mark.parametrize(("after", "is_near"), [(0.4, True), (0.6, False)])
def test_record_fetch_tells_whether_redis_is_near(
    buffer: PrefetchBuffer, after: float, is_near: bool
) -> None:
    """A reply that takes half of the TTL leaves a message too little time here."""
    buffer.record_fetch(NOW, NOW + after * tuning.PREFETCH_TTL_S)
    assert buffer.is_near is is_near


def test_schedule_check_is_for_the_oldest_message(buffer: PrefetchBuffer) -> None:
    """No second check is due before that one."""
    now = NOW + tuning.PREFETCH_TTL_S / 2
    assert buffer.is_check_due(now)
    assert buffer.schedule_check(now) == pytest.approx(tuning.PREFETCH_TTL_S / 2)
    assert not buffer.is_check_due(now + tuning.PREFETCH_TTL_S / 4)
    assert buffer.is_check_due(now + tuning.PREFETCH_TTL_S)


def test_schedule_check_never_spins(buffer: PrefetchBuffer) -> None:
    """Messages that are stale already, and cannot go back, are tried again after a fifth of the TTL."""
    assert buffer.schedule_check(NOW + 10) == pytest.approx(tuning.PREFETCH_TTL_S / 5)
