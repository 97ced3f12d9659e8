# SPDX-License-Identifier: MIT
"""An operator, for the tests of what one does every week."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.fleet.faults.ledger import Ledger
from tests.fleet.faults.report import Report
from tests.fleet.operations.at_work import FOLDER, Operator

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.fleet.support.fleet import Fleet
    from tests.fleet.support.plays import Plays


@pytest.fixture(scope="session")
def report() -> Iterator[Report]:
    """The report, which is shown when all is done."""
    report = Report(FOLDER)
    yield report
    print(f"\n{report.table()}")


@pytest.fixture(scope="module")
def operator(fleet: Fleet, plays: Plays, report: Report) -> Iterator[Operator]:
    """An operator."""
    ledger = Ledger(fleet)
    try:
        ledger.install()
        yield Operator(fleet, plays, ledger, report)
    finally:
        ledger.remove()
