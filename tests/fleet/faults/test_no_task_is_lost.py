# SPDX-License-Identifier: MIT
"""Whatever dies while the fleet works, every task that the broker accepted is done."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.fleet.faults import trial
from tests.fleet.faults.faults import FAULTS
from tests.fleet.faults.ledger import Ledger
from tests.fleet.faults.report import Report

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.fleet.faults.faults import Fault
    from tests.fleet.support.fleet import Fleet

pytestmark = [
    pytest.mark.faults,
    pytest.mark.load,
    pytest.mark.timeout(2400),  # seconds: one of them kills a hundred nodes
    pytest.mark.group("redis"),
    pytest.mark.group("workers"),
]


@pytest.fixture(scope="module")
def ledger(fleet: Fleet) -> Iterator[Ledger]:
    """The ledger, in which the nodes write as long as these tests run."""
    ledger = Ledger(fleet)
    try:
        ledger.install()
        yield ledger
    finally:
        ledger.remove()


@pytest.fixture(scope="module")
def report() -> Iterator[Report]:
    """The report, which is shown when all is done."""
    report = Report()
    yield report
    print(f"\n{report.table()}")


@pytest.mark.parametrize(
    "fault",
    [pytest.param(fault, id=fault.name, marks=[pytest.mark.long] if fault.long else []) for fault in FAULTS],
)
def test_no_task_is_lost(fleet: Fleet, ledger: Ledger, report: Report, fault: Fault) -> None:
    """Tasks are sent at a steady rate, a fault happens, and each task is found in the ledger."""
    fleet.broker.keep_denials()
    found = trial.run(fleet, ledger, fault)
    report.add(found)
    broken = found.broken(fault)
    assert not broken, "\n".join([*broken, report.table()])
