# SPDX-License-Identifier: MIT
"""One operator at a time: the lock, and which run may take it from another."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.fleet.celery.plugins.action import fleet_lock as action
from ansible_collections.fleet.celery.plugins.module_utils.fleet_lock import free, holder, take

from tests.unit.rendering import PROJECT

ONE = {"id": "one", "who": "ann@desk", "what": "site.yml", "since": "2026-01-01 00:00:00 UTC"}
TWO = {**ONE, "id": "two", "who": "bob@desk"}


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    """Where the lock is, in a directory that is not there yet."""
    return tmp_path / "fleet" / "lock"


def test_one_has_it_until_it_is_given_back(lock: Path) -> None:
    assert holder(lock) is None
    assert take(ONE, lock=lock) == ONE
    assert take(ONE, lock=lock) == ONE, "the same run, in another of its playbooks"
    assert take(TWO, lock=lock) == ONE
    assert not free("two", lock)
    assert holder(lock) == ONE
    assert free("one", lock)
    assert take(TWO, lock=lock) == TWO


def test_it_is_taken_from_nobody_but_who_was_seen_to_have_it(lock: Path) -> None:
    take(ONE, lock=lock)
    assert take(TWO, "another", lock) == ONE
    assert take(TWO, "one", lock) == TWO
    assert [path.name for path in lock.parent.iterdir()] == ["lock"]


def test_one_of_many_gets_it(lock: Path) -> None:
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from ansible_collections.fleet.celery.plugins.module_utils.fleet_lock import take\n"
        "print(take({'id': sys.argv[1]}, lock=Path(sys.argv[2]))['id'])\n"
    )
    command = [sys.executable, "-c", script]
    env = os.environ | {"PYTHONPATH": str(PROJECT / ".ansible" / "collections")}
    running = [
        subprocess.Popen([*command, str(number), str(lock)], stdout=subprocess.PIPE, text=True, env=env)
        for number in range(4)
    ]
    winners = {process.communicate()[0].strip() for process in running}
    assert len(winners) == 1
    assert winners < {str(number) for number in range(4)}


def test_a_lock_that_somebody_wrote_to_is_held_by_somebody(lock: Path) -> None:
    lock.parent.mkdir()
    lock.write_text("?")
    assert take(ONE, lock=lock)["who"] == "somebody"


def test_a_run_is_over_when_its_process_is_gone() -> None:
    me: dict[str, Any] = action.identity()
    assert me["process"] == os.getppid()
    assert not action.is_over(me)
    assert action.is_over({**me, "began": "1"}), "the number belongs to another process by now"
    assert action.is_over({**me, "process": 2**22 + 1})
    assert not action.is_over({**me, "machine": "another", "process": 2**22 + 1}), "nobody here can know"
    assert not action.is_over({"id": "", "who": "somebody"})


def test_what_a_host_says_of_the_lock_is_only_shown() -> None:
    """The host of the lock may lie: it names no file of the controller, and tells its terminal nothing."""
    assert not action.is_over({"machine": action.machine(), "process": "../../etc", "began": "1"})
    said = action.spelled({"who": "\x1b]0;ann\x07", "what": "x" * 10_000, "since": None})
    assert said.isprintable()
    assert len(said) < 300


def test_who_has_it_is_said() -> None:
    assert action.spelled(ONE) == "ann@desk runs site.yml on this fleet since 2026-01-01 00:00:00 UTC."
