# SPDX-License-Identifier: MIT
"""Runs of messages that wait for their ETA, without Redis."""

from __future__ import annotations

import pytest
from fleet_runtime.transport import tuning
from fleet_runtime.transport.eta import EtaRuns


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> EtaRuns:
    """Return runs of a queue that has just become long enough."""
    monkeypatch.setattr(tuning, "ETA_RUN", 3)
    monkeypatch.setattr(tuning, "NEWEST_EVERY", 4)
    runs = EtaRuns()
    for _ in range(3):
        runs.add("default")
    return runs


def test_newest_is_none_without_a_long_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages come in their order, whatever waits for its ETA among them."""
    monkeypatch.setattr(tuning, "ETA_RUN", 3)
    runs = EtaRuns()
    runs.add("default")
    runs.add("email")
    runs.add("default")
    assert runs.newest(100) == 0


def test_newest_is_one_in_some_in_a_long_run(runs: EtaRuns) -> None:
    """Over several fetches, however small."""
    assert [runs.newest(1) for _ in range(8)] == [0, 0, 0, 1, 0, 0, 0, 1]
    assert runs.newest(10) == 2


def test_end_is_for_one_queue(runs: EtaRuns) -> None:
    """Its oldest message is due; other queues have runs of their own."""
    runs.add("email")
    assert runs.newest(4) == 1
    runs.add("email")
    runs.add("email")
    runs.end("default")
    assert runs.newest(4) == 1
    runs.end("email")
    runs.end("email")
    assert runs.newest(4) == 0


def test_clear_ends_all_runs(runs: EtaRuns) -> None:
    """Nothing is left in the queues."""
    runs.clear()
    assert (runs.lengths, runs.newest(100)) == ({}, 0)
