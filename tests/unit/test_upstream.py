# SPDX-License-Identifier: MIT
"""How the tests of other projects are compared (tests/upstream)."""

from __future__ import annotations

from tests.upstream.comparison import Comparison, Group, groups
from tests.upstream.suite import FAILED, PASSED, SKIPPED, Outcome

GOOD, BAD = Outcome(PASSED), Outcome(FAILED, "AssertionError: 1 != 2")
MEANT = Group("Because.", ["a.py::one", "a.py::two[x]"])


def compared(through: dict[str, Outcome], meant: Group = MEANT) -> Comparison:
    return Comparison([meant], dict.fromkeys(("a.py::one[y]", "a.py::two[x]", "a.py::three"), GOOD), through)


def test_what_is_listed_may_differ() -> None:
    found = compared({"a.py::one[y]": BAD, "a.py::two[x]": Outcome(SKIPPED), "a.py::three": GOOD})
    assert found.differing == ["a.py::one[y]", "a.py::two[x]"]
    assert (found.unmeant, found.gone, found.unknown) == ([], [], [])
    assert "- 2 differ on purpose: Because." in found.text("A suite", 3)


def test_what_is_not_listed_may_not_differ() -> None:
    found = compared({"a.py::one[y]": BAD, "a.py::two[x]": BAD, "a.py::three": BAD})
    assert found.unmeant == ["a.py::three"]
    assert "is not listed**: a.py::three: AssertionError: 1 != 2" in found.text("A suite", 3)


def test_what_did_not_run_differs() -> None:
    found = compared({"a.py::one[y]": BAD, "a.py::two[x]": BAD})
    assert found.unmeant == ["a.py::three"]
    assert "| through the runtime | 0 | 2 | 0 | 1 |" in found.text("A suite", 3)


def test_what_is_listed_and_passes_is_told() -> None:
    outcomes = {"a.py::one[y]": GOOD, "a.py::two[x]": BAD, "a.py::three": GOOD}
    assert compared(outcomes).gone == ["a.py::one[y]"]
    assert compared(outcomes, MEANT._replace(sometimes=True)).gone == []


def test_a_listed_name_that_no_test_has_is_told() -> None:
    found = compared({}, Group("Because.", ["a.py::two", "a.py::four"]))
    assert found.unknown == ["a.py::four"]


def test_a_difference_is_what_differs_each_time() -> None:
    found = compared({"a.py::one[y]": BAD, "a.py::two[x]": BAD, "a.py::three": BAD})
    found.again({"a.py::three": GOOD}, {"a.py::three": GOOD})
    assert (found.unmeant, found.once) == ([], ["a.py::three"])


def test_each_difference_has_its_reason() -> None:
    listed = [group for suite in ("celery", "kombu") for group in groups(suite)]
    names = [test for group in listed for test in group.tests]
    assert all(group.reason.endswith(".") and group.tests for group in listed)
    assert len(names) == len(set(names))
