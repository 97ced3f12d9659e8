# SPDX-License-Identifier: MIT
"""Filters of the role celery_app."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.fleet.celery.plugins.filter.celery_app import choice

from tests.unit.rendering import Role

WORKER: dict[str, Any] = {
    "current": "c3",
    "previous": "b2",
    "rollback": "",
    "releases": ["c3", "b2", "a1"],
}
BACK = {**WORKER, "current": "b2", "previous": "c3"}


def test_the_one_before() -> None:
    assert choice({"one": WORKER, "two": WORKER}, "") == {"id": "b2", "problem": ""}


@pytest.mark.parametrize("goal", ["b2", "c3"])
def test_a_rollback_that_was_interrupted_goes_on(goal: str) -> None:
    """Halfway the hosts look the same, whether it went there or back; on some of them the note is enough."""
    assert choice({"one": BACK, "two": {**WORKER, "rollback": goal}}, "") == {"id": goal, "problem": ""}
    done = {**BACK, "rollback": "b2"}  # all are switched, but not all nodes restarted
    assert choice({"one": done, "two": done}, "") == {"id": "b2", "problem": ""}
    assert choice({"one": done, "two": done}, "a1")["id"] == "a1"


def test_a_rollback_that_failed_is_not_gone_on_with() -> None:
    """Its first host was put back, so no host runs what it went to; the note is all that is left of it."""
    failed = {**WORKER, "rollback": "a1"}
    assert choice({"one": failed, "two": failed}, "") == {"id": "b2", "problem": ""}


def test_a_release_that_failed_is_not_to_be_taken_back() -> None:
    """Nobody runs it, so a rollback would take back the one before it, which works."""
    tried = {**WORKER, "releases": ["d4", "c3", "b2"]}
    problem = choice({"one": tried, "two": tried}, "")["problem"]
    assert "The newest release, d4, is not what hosts run" in problem
    assert choice({"one": tried, "two": tried}, "b2") == {"id": "b2", "problem": ""}


def test_a_release_that_was_interrupted_is_taken_back() -> None:
    waiting = {**WORKER, "current": "b2", "previous": "a1"}
    assert choice({"one": WORKER, "two": waiting}, "") == {"id": "b2", "problem": ""}
    assert choice({"one": waiting, "two": WORKER, "three": waiting}, "")["id"] == "b2"


@pytest.mark.parametrize(
    ("one", "two"),
    [(WORKER, BACK), ({**WORKER, "rollback": "c3"}, {**BACK, "rollback": "b2"})],
    ids=["halfway, without a note", "two rollbacks"],
)
def test_what_several_interruptions_left_is_not_guessed(one: dict[str, Any], two: dict[str, Any]) -> None:
    """A release that was taken back and released again looks the same in both directions."""
    assert "different releases before" in choice({"one": one, "two": two}, "")["problem"]


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
    fresh = {"current": "a1", "previous": "", "rollback": "", "releases": ["a1"]}
    assert "No host had a release before this one." in choice({"one": fresh}, "")["problem"]


@pytest.mark.parametrize(("level", "line"), [("standard", "FLEET_LEVEL=standard"), ("full", "")])
def test_the_level_is_in_the_environment(level: str, line: str) -> None:
    """But for the default: an older release knows no levels, and its check refuses an unknown variable."""
    given = {"celery_app_import": "shop:app", "celery_app_settings": {"lease": 60}, "celery_app_level": level}
    text = Role("celery_app", **given).evaluate("__celery_app_variables | fleet.celery.fleet_env_file")
    lines = [found for found in text.replace('"', "").splitlines() if "LEVEL" in found]
    assert lines == ([line] if line else [])
