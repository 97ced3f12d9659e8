# SPDX-License-Identifier: MIT
"""What the trials of tests/fleet/faults count, and when they say that a promise was broken."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.fleet.faults.faults import Fault
from tests.fleet.faults.ledger import Run, paired
from tests.fleet.faults.load import Sent
from tests.fleet.faults.report import Report
from tests.fleet.faults.trial import Trial

if TYPE_CHECKING:
    from pathlib import Path

FAULT = Fault(lambda fleet: None, wait=10)
LENIENT = Fault(lambda fleet: None, wait=10, twice="for a good reason")


def sent(number: int, *, accepted: bool = True, queue: str = "default") -> Sent:
    return Sent(f"t:{number}", queue, float(number), number + 0.1 if accepted else None)


def ran(number: int, start: float, end: float | None, delivery: str = "d") -> Run:
    return Run(f"t:{number}", "default-1@one", delivery, False, start, end)


def trial(*runs: Run, left: dict[str, str] | None = None, problem: str = "") -> Trial:
    return Trial("fire", 1, 2, [sent(0), sent(1), sent(2, accepted=False)], list(runs), left or {}, problem)


def test_a_trial_in_which_all_is_done_is_good() -> None:
    found = trial(ran(0, 1, 2), ran(1, 2, 4))
    assert found.broken(FAULT) == []
    assert found.row() == {
        "fault": "fire",
        "submitted": 3,
        "accepted": 2,
        "run": 2,
        "begun again": 0,
        "run twice": 0,
        "stuck": 0,
        "lost": 0,
        "longest gap, s": 1.0,
        "longest wait, s": 3.0,
    }


def test_a_task_that_was_never_done_is_lost() -> None:
    found = trial(ran(0, 1, 2), ran(1, 2, None))
    assert found.lost == ["t:1 (default, sent at +0.00 s)"]
    assert found.broken(LENIENT) == [f"1 tasks are lost: {found.lost}"]


def test_a_task_that_a_dead_node_still_holds_is_stuck() -> None:
    found = trial(ran(0, 1, 2), left={"t:1": "unacked:default-1@one"})
    assert (found.lost, found.stuck) == ([], ["t:1 in unacked:default-1@one"])
    assert len(found.broken(LENIENT)) == 1


def test_a_task_that_was_not_accepted_may_be_lost_or_done() -> None:
    assert trial(ran(0, 1, 2), ran(1, 2, 3)).broken(FAULT) == []
    assert trial(ran(0, 1, 2), ran(1, 2, 3), ran(2, 3, 4)).broken(FAULT) == []


def test_a_task_that_was_done_twice_is_told_apart_from_one_that_was_begun_again() -> None:
    again = trial(ran(0, 1, None), ran(0, 2, 3), ran(1, 2, 3))
    assert (again.begun_again, again.done_twice, again.broken(FAULT)) == (["t:0"], [], [])
    twice = trial(ran(0, 1, 2), ran(0, 2, 3), ran(1, 2, 3))
    assert (twice.done_twice, len(twice.broken(FAULT)), twice.broken(LENIENT)) == (["t:0"], 1, [])


def test_a_task_that_is_late_breaks_the_promise() -> None:
    assert len(trial(ran(0, 1, 2), ran(1, 2, 11.5)).broken(FAULT)) == 1


def test_a_fault_that_did_not_go_as_it_should_is_told() -> None:
    assert trial(ran(0, 1, 2), ran(1, 2, 3), problem="no way back").broken(FAULT) == ["no way back"]


def test_the_gap_is_that_of_the_queue_that_fared_worst() -> None:
    """A queue whose tasks all ran late has a gap, though the others were served."""
    both = [sent(number, queue=queue) for number, queue in enumerate(["a", "b"] * 5)]
    runs = [ran(number, number + 0.2, number + 0.3) for number in range(0, 10, 2)]
    assert round(Trial("fire", 1, 2, both, runs).gap, 1) == 8.0


def test_runs_of_several_nodes_are_told_apart() -> None:
    events = [
        ("start", "one", 1),
        ("start", "two", 2),
        ("end", "one", 3),
        ("start", "one", 4),
        ("end", "two", 5),
    ]
    lines = [
        json.dumps(
            {"name": "t:0", "event": event, "at": at, "node": node, "delivery": "d", "redelivered": False}
        )
        for event, node, at in events
    ]
    assert [(run.node, run.start, run.end) for run in paired(lines)] == [
        ("one", 1, 3),
        ("two", 2, 5),
        ("one", 4, None),
    ]


def test_the_report_is_written_after_each_trial(tmp_path: Path) -> None:
    report = Report(tmp_path / "faults")
    report.add(trial(ran(0, 1, 2), ran(0, 2, 3)))
    report.add(trial(ran(0, 1, 2), ran(1, 2, 3)))
    [first, second] = json.loads((tmp_path / "faults" / "faults.json").read_text())
    assert (first["lost"], len(first["names"]["lost"]), second["lost"]) == (1, 1, 0)
    assert (tmp_path / "faults" / "faults.md").read_text() == report.table()
    assert (tmp_path / "faults" / "faults.png").read_bytes().startswith(b"\x89PNG")
