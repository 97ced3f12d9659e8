"""Filters of the role celery_app."""

from __future__ import annotations

from typing import Any

import pytest
from filter.celery_app import choice

WORKER: dict[str, Any] = {"current": "c3", "previous": "b2", "releases": ["c3", "b2", "a1"]}


def test_the_one_before() -> None:
    assert choice({"one": WORKER, "two": WORKER}, "") == {"id": "b2", "problem": ""}


def test_one_that_is_named_by_its_beginning() -> None:
    assert choice({"one": WORKER, "two": WORKER}, "a") == {"id": "a1", "problem": ""}


@pytest.mark.parametrize(
    ("two", "wanted", "said"),
    [
        ({**WORKER, "previous": "a1"}, "", "different releases before"),
        ({**WORKER, "releases": ["c3"]}, "", "Release b2 is not on two."),
        (WORKER, "d4", "Release d4 is not on one, two."),
        ({**WORKER, "releases": ["c3", "b2", "a1", "a11"]}, "a1", "a1 is the beginning of a1 and of a11."),
    ],
)
def test_what_cannot_be_chosen(two: dict[str, Any], wanted: str, said: str) -> None:
    problem = choice({"one": WORKER, "two": two}, wanted)["problem"]
    assert said in problem
    assert "two runs c3, ran" in problem


def test_a_fleet_that_had_no_other_release() -> None:
    fresh = {"current": "a1", "previous": "", "releases": ["a1"]}
    assert "No host had a release before this one." in choice({"one": fresh}, "")["problem"]
