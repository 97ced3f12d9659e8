# SPDX-License-Identifier: MIT
"""The back-off of fetches, without Redis."""

from __future__ import annotations

import pytest
from fleet_runtime.transport import tuning
from fleet_runtime.transport.backoff import Backoff


@pytest.fixture
def backoff(monkeypatch: pytest.MonkeyPatch) -> Backoff:
    """Return a back-off that always waits for as long as it may."""
    monkeypatch.setattr("random.uniform", lambda least, most: most)
    return Backoff()


def miss(backoff: Backoff, nodes: int) -> float:
    """Record a notification that led to no message."""
    return backoff.record_fetch(found=False, was_notified=True, nodes=nodes)


@pytest.mark.parametrize(("nodes", "most"), [(2, 2), (20, 20), (1000, tuning.BACKOFF_MAX_NODES)])
def test_record_fetch_doubles_the_wait_up_to_the_number_of_nodes(
    backoff: Backoff, nodes: int, most: int
) -> None:
    """And never beyond BACKOFF_MAX_NODES."""
    waits = [miss(backoff, nodes) for _ in range(12)]
    assert waits == [tuning.BACKOFF_BASE_S * min(most, 2 ** (number + 1)) for number in range(12)]


def test_record_fetch_counts_misses_up_to_a_bound(backoff: Backoff) -> None:
    """A node that is idle for a year does not compute a power of a billion."""
    for _ in range(50):
        miss(backoff, 10**6)
    assert backoff.misses == tuning.BACKOFF_MAX_DOUBLINGS


@pytest.mark.parametrize(("found", "was_notified"), [(True, True), (True, False), (False, False)])
def test_record_fetch_resets_the_wait(backoff: Backoff, found: bool, was_notified: bool) -> None:
    """After a message, and after a fetch that no notification led to."""
    miss(backoff, 100)
    miss(backoff, 100)
    assert backoff.record_fetch(found=found, was_notified=was_notified, nodes=100) == 0.0
    assert miss(backoff, 100) == 2 * tuning.BACKOFF_BASE_S


def test_record_fetch_waits_at_random() -> None:
    """So that the nodes which were notified together do not come together again."""
    waits = {miss(Backoff(), 100) for _ in range(20)}
    assert len(waits) > 10
    assert all(0 <= wait <= 2 * tuning.BACKOFF_BASE_S for wait in waits)


def test_delay_postpones_fetches_and_not_acknowledgements() -> None:
    """Only a pause stops both."""
    backoff = Backoff()
    backoff.delay(0.5, 100.0)
    assert (backoff.not_before, backoff.paused_until) == (100.5, float("-inf"))


def test_pause_stops_all_commands() -> None:
    """For the interval between two attempts on a Redis that refuses writes."""
    backoff = Backoff()
    backoff.pause(100.0)
    assert backoff.not_before == backoff.paused_until == 100.0 + tuning.OOM_RETRY_S


def test_pause_asks_for_a_log_line_once_in_an_interval() -> None:
    """A Redis that is full for hours does not fill the log."""
    backoff = Backoff()
    interval = tuning.OOM_LOG_INTERVAL_S
    assert [backoff.pause(at) for at in (0.0, 1.0, float(interval), interval + 0.5)] == [
        True, False, False, True
    ]  # fmt: skip
