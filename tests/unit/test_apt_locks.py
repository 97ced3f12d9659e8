# SPDX-License-Identifier: MIT
"""Who holds apt's locks is named, and waited for."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from ansible_collections.fleet.celery.plugins.module_utils import apt_locks

if TYPE_CHECKING:
    from pathlib import Path

HOLD = (
    "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); "
)


def hold(path: Path, seconds: float) -> subprocess.Popen[str]:
    """Hold a lock as dpkg does, for a while."""
    process = subprocess.Popen(
        [sys.executable, "-c", f"{HOLD}time.sleep({seconds})", str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    process.stdout.readline()
    return process


@pytest.fixture(params=apt_locks.LOCKS)
def lock(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """One of the locks; the others are not there."""
    path: Path = tmp_path / request.param
    path.parent.mkdir(parents=True)
    path.touch()
    return path


def test_a_free_lock_is_not_waited_for(lock: Path, tmp_path: Path) -> None:
    assert apt_locks.wait(9, tmp_path) == ("", "")


def test_a_lock_is_waited_for(lock: Path, tmp_path: Path) -> None:
    with hold(lock, 0.5) as process:
        first, last = apt_locks.wait(30, tmp_path)
    assert first.endswith(f"(process {process.pid})")
    assert first.startswith("python")
    assert last == ""


def test_a_lock_that_is_not_given_back_is_named(lock: Path, tmp_path: Path) -> None:
    with hold(lock, 60) as process:
        first, last = apt_locks.wait(0.1, tmp_path)
        process.terminate()
    assert first == last == f"{last.split()[0]} (process {process.pid})"
