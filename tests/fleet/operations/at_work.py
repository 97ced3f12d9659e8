# SPDX-License-Identifier: MIT
"""An operator that runs playbooks while tasks are sent, and counts the tasks."""

from __future__ import annotations

import signal
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from tests.fleet.faults import trial
from tests.fleet.faults.faults import Fault
from tests.fleet.support.inventory import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tests.fleet.faults.ledger import Ledger
    from tests.fleet.faults.report import Report
    from tests.fleet.faults.trial import Trial
    from tests.fleet.support.fleet import Fleet
    from tests.fleet.support.plays import Plays, Run

FOLDER = ROOT / ".cache" / "test" / "operations"
# Seconds that a task may take from when it is sent to its end: half of the fleet always consumes.
WAIT = 5.0
LEAST = 5 / 6  # of the tasks a second that are to be sent, or nothing was shown


class Operator:
    """Runs playbooks while tasks are sent, with variables that stay otherwise than in the inventory."""

    def __init__(
        self,
        fleet: Fleet,
        plays: Plays,
        ledger: Ledger,
        report: Report,
        *,
        rate: float = trial.RATE,
        wait: float = WAIT,
        queues: Iterable[str] | None = None,
    ) -> None:
        """Begin with the inventory as it is.

        Args:
            fleet: The fleet.
            plays: Runs playbooks on it.
            ledger: Of the tasks.
            report: Gets each trial.
            rate: Tasks that are sent a second.
            wait: Seconds that a task may take from when it is sent to its end.
            queues: Where tasks are sent; by default to all queues.
        """
        self.fleet = fleet
        self._rate, self._wait, self._queues = rate, wait, queues
        self.variables: dict[str, Any] = {}
        self._plays = plays
        self._ledger = ledger
        self._report = report

    def play(self, playbook: str, *arguments: str, **variables: Any) -> Run:
        """Run a playbook."""
        return self._plays.run(*arguments, playbook=playbook, **{**self.variables, **variables})

    def interrupted(
        self,
        playbook: str,
        *arguments: str,
        when: Callable[[], bool] | None = None,
        by: signal.Signals = signal.SIGKILL,
        **variables: Any,
    ) -> None:
        """Run a playbook, and end it as soon as something is so, or else a node has restarted."""
        before = self.fleet.starts()
        self._plays.interrupted(
            *arguments,
            playbook=playbook,
            when=when or (lambda: bool(self.fleet.restarted(before))),
            by=by,
            **{**self.variables, **variables},
        )

    def counted(
        self,
        name: str,
        act: Callable[[], Run],
        *,
        succeeds: bool = True,
        twice: str = "",
        outage: str = "",
    ) -> Run:
        """Do something while tasks are sent, and require that none of them noticed.

        Args:
            name: What it is called in the report.
            act: Does it.
            succeeds: Whether the run that it returns has to.
            twice: Why tasks may run twice because of it, and senders be refused for a moment; nothing where
                neither may be.
            outage: Why senders may be refused for a moment, although no task may run twice.
        """
        runs: list[Run] = []

        def happens(_: Fleet) -> None:
            runs.append(act())

        happens.__name__ = name
        fault = Fault(happens, wait=self._wait, twice=twice)
        found = trial.run(self.fleet, self._ledger, fault, self._rate, self._queues)
        self._report.add(found)
        assert runs, found.problem
        if succeeds:
            runs[0].expect_success()
        outage = outage or twice
        broken = [
            *found.broken(fault),
            *([] if outage else failures(found)),
            *idle(found, outage=bool(outage), rate=self._rate),
        ]
        assert not broken, "\n".join([*broken, self._report.table()])
        return runs[0]


def failures(found: Trial) -> list[str]:
    """Return what is wrong besides lost and late tasks: some that failed are done, but not well."""
    again = found.begun_again
    refused = [sent.name for sent in found.sent if not sent.accepted]
    return [
        *([f"{len(again)} tasks were begun again: {again[:10]}"] if again else []),
        *([f"{len(refused)} tasks were not taken: {refused[:10]}"] if refused else []),
    ]


def idle(found: Trial, *, outage: bool = False, rate: float = trial.RATE) -> list[str]:
    """Return whether too few tasks were sent; an outage is the one time in which a sender had to wait."""
    times = [sent.submitted for sent in found.sent]
    pause = max(later - earlier for earlier, later in pairwise(times)) if outage else 0
    seen, least = len(times) / (max(times) - min(times) - pause), rate * LEAST
    return (
        [f"{seen:.0f} tasks were sent a second, not {least:.0f}: the machine is busy"] if seen < least else []
    )
