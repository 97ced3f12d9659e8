# SPDX-License-Identifier: MIT
"""Compares how the tests of a suite end with Celery alone and through the runtime, and tells of it."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests.upstream.suite import CACHE, FAILED, PASSED, ROOT, SKIPPED, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

DIFFERENCES = Path(__file__).with_name("differences.toml")
NOT_RUN = Outcome("not run")


class Group(NamedTuple):
    """Differences that are meant to be.

    Attributes:
        reason: Why.
        tests: Names of tests, without `[...]` for all cases of one.
        sometimes: Whether they differ only now and then, by timing.
    """

    reason: str
    tests: Sequence[str]
    sometimes: bool = False

    def among(self, tests: Iterable[str]) -> list[str]:
        """Return those of some tests that are in the group."""
        return [test for test in tests if test in self.tests or re.sub(r"\[.*", "", test) in self.tests]


def groups(section: str) -> list[Group]:
    """Return the differences of a suite that are meant to be."""
    return [Group(**group) for group in tomllib.loads(DIFFERENCES.read_text())[section]]


class Comparison:
    """The outcomes of both, of each test."""

    def __init__(
        self, meant: Sequence[Group], alone: Mapping[str, Outcome], through: Mapping[str, Outcome]
    ) -> None:
        """Take the differences that are meant to be, and the outcomes with Celery alone and the runtime."""
        self.meant = meant
        self.alone, self.through = dict(alone), dict(through)
        self.once: list[str] = []

    def again(self, alone: Mapping[str, Outcome], through: Mapping[str, Outcome]) -> None:
        """Take the outcomes of tests that ran again by themselves: a difference is what differs each time."""
        for test in alone:
            if not differs(alone[test], through.get(test, NOT_RUN)):
                self.once.append(test)
                self.alone[test], self.through[test] = alone[test], through.get(test, NOT_RUN)

    def elsewhere(self, alone: Mapping[str, Outcome], through: Mapping[str, Outcome]) -> None:
        """Take the outcomes of tests in another set-up, which count in place of what there was."""
        self.alone.update(alone)
        self.through.update(through)

    @property
    def differing(self) -> list[str]:
        """The tests that Celery alone passes, and the runtime does not."""
        return [test for test in self.alone if differs(self.alone[test], self.through.get(test, NOT_RUN))]

    @property
    def unmeant(self) -> list[str]:
        """Those of them that are not listed."""
        return [test for test in self.differing if not self._is_listed(test)]

    @property
    def gone(self) -> list[str]:
        """The listed tests that the runtime passes, though they should differ each time."""
        passed = [test for test, outcome in self.through.items() if outcome.result == PASSED]
        return [test for group in self.meant if not group.sometimes for test in group.among(passed)]

    @property
    def unknown(self) -> list[str]:
        """What is listed, and is no test of the suite."""
        listed = [test for group in self.meant for test in group.tests]
        return [test for test in listed if not Group("", [test]).among(self.alone)]

    def _is_listed(self, test: str) -> bool:
        return any(group.among([test]) for group in self.meant)

    def passed_alone(self) -> int:
        """Return how many tests Celery alone passed."""
        return sum(outcome.result == PASSED for outcome in self.alone.values())

    def text(self, title: str, minutes: float) -> str:
        """Return a page about it."""
        heads = ("", PASSED, FAILED, SKIPPED, NOT_RUN.result)
        rows = [heads, ("---", *["---:"] * (len(heads) - 1))]
        for name, outcomes in (("Celery alone", self.alone), ("through the runtime", self.through)):
            ended = Counter(outcomes.get(test, NOT_RUN).result for test in self.alone)
            rows.append((name, *(str(ended[head]) for head in heads[1:])))
        lines = [f"### {title}, {minutes:.0f} min", "", *(f"| {' | '.join(row)} |" for row in rows), ""]
        differing = self.differing
        counts = [(len(group.among(differing)), group.reason) for group in self.meant]
        lines += [f"- {count} differ on purpose: {reason}" for count, reason in counts if count]
        lines += [f"- differed once, and not when it ran by itself: {test}" for test in self.once]
        for test in self.unmeant:
            lines.append(f"- **differs, and is not listed**: {test}: {self.through.get(test, NOT_RUN).why}")
        lines += [f"- **listed, and does not differ any more**: {test}" for test in self.gone]
        lines += [f"- **listed, and is no test**: {test}" for test in self.unknown]
        return "\n".join([*lines, "", f"The logs are in {CACHE.relative_to(ROOT)}.", "", ""])


def differs(alone: Outcome, through: Outcome) -> bool:
    """Return whether Celery alone passes a test, and the runtime does not."""
    return alone.result == PASSED != through.result
