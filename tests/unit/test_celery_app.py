# SPDX-License-Identifier: MIT
"""Filters of the role celery_app."""

from __future__ import annotations

import subprocess
from pathlib import Path
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


# Prints its arguments, one a line, in place of systemd-run.
PRINT = """#!/bin/sh
printf '%s\\n' "$@"
"""


def run_command(tmp_path: Path, *words: str, described: bool = True) -> dict[str, Any]:
    """Run `fleet-celery` with a systemd-run that prints: return the environment files, and the command."""
    programs = tmp_path / "bin"
    programs.mkdir(exist_ok=True)
    for name, text in {"systemd-run": PRINT, "id": "#!/bin/sh\necho 0\n"}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    description = tmp_path / "fleet-app.json"
    description.unlink(missing_ok=True)
    if described:
        description.touch()
    text = Role("celery_app", celery_app_name="shop").template("fleet-celery.j2")
    assert "/opt/celery/shop/current/fleet-app.json" in text
    script = tmp_path / "fleet-celery"
    script.write_text(text.replace("/opt/celery/shop/current/fleet-app.json", str(description)))
    path = f"{programs}:/usr/bin:/bin"
    done = subprocess.run(
        ["sh", script, *words], env={"PATH": path}, capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    start = "--property=EnvironmentFile="
    return {
        "environment": [line.removeprefix(start) for line in lines if line.startswith(start)],
        "command": lines[lines.index("--") + 1 :],
    }


FLEET = ("/opt/celery/fleet/current", "/etc/celery/fleet.env")
APP = ("/opt/celery/shop/current", "/etc/celery/app.env")


@pytest.mark.parametrize(
    ("words", "described", "place", "passed"),
    [
        (["fleet", "status"], True, FLEET, ["fleet", "status"]),
        (["inspect", "ping", "-d", "a b"], True, FLEET, ["inspect", "ping", "-d", "a b"]),
        ([], True, FLEET, []),
        (["fleet", "check", "--queues", "a"], True, APP, ["fleet", "check", "--queues", "a"]),
        (["shell"], True, APP, ["shell"]),
        (["report"], True, APP, ["report"]),
        (["app", "call", "shop.add", "--args=[$x]"], True, APP, ["call", "shop.add", "--args=[$$x]"]),
        (["app"], True, APP, []),
        (["fleet", "status"], False, APP, ["fleet", "status"]),
    ],
)
def test_a_command_runs_from_the_venv_that_it_needs(
    tmp_path: Path, words: list[str], place: tuple[str, str], passed: list[str], *, described: bool
) -> None:
    """From the fleet's own without the app's environment; from the release what needs the app itself."""
    venv, environment = place
    found = run_command(tmp_path, *words, described=described)
    assert found["environment"] == [environment, "/etc/celery/ops.env"]
    assert found["command"] == [f"{venv}/bin/celery", "-A", "fleet_runtime.app", *passed]


def test_the_environment_of_the_fleet_has_nothing_of_the_app() -> None:
    """Its own settings alone; the app's may be passwords."""
    role = Role(
        "celery_app",
        celery_app_name="shop",
        celery_app_import="shop:app",
        celery_app_level="standard",
        celery_app_settings={"accept_content": "json,yaml"},
        celery_app_environment={"SHOP_DSN": "postgres://secret"},
    )
    assert role.evaluate("__celery_app_fleet_environment") == {
        "FLEET_APP_FILE": "/opt/celery/shop/current/fleet-app.json",
        "FLEET_LEVEL": "standard",
        "FLEET_ACCEPT_CONTENT": "json,yaml",
    }
    assert role.evaluate("__celery_app_variables") == {
        "FLEET_APP": "shop:app",
        "FLEET_LEVEL": "standard",
        "FLEET_ACCEPT_CONTENT": "json,yaml",
        "SHOP_DSN": "postgres://secret",
    }


@pytest.mark.parametrize(
    ("pools", "scheduler", "extras"),
    [
        (["prefork", "threads"], "", []),
        (["gevent"], "persistent", ["gevent"]),
        (["gevent", "prefork"], "redbeat", ["gevent", "redbeat"]),
    ],
)
def test_an_app_gets_what_pools_and_scheduler_need(
    pools: list[str], scheduler: str, extras: list[str]
) -> None:
    role = Role("celery_app", celery_app_pools=pools, celery_app_beat_scheduler=scheduler)
    assert role.evaluate("__celery_app_runtime_extras") == extras
