# SPDX-License-Identifier: MIT
"""One installation at a time; what an interrupted run left is ended with all that it started."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ansible_collections.fleet.celery.plugins.module_utils.install_lock import (
    StillHeldError,
    children,
    only_one,
)

HOLD = """
import signal, subprocess, sys, time
sys.path.insert(0, {utils!r})
from pathlib import Path
from install_lock import only_one
{before}
with only_one(Path({lock!r})):
    child = subprocess.Popen(["sleep", "100"])
    print(child.pid, flush=True)
    time.sleep(100)
"""


def held(lock: Path, before: str = "") -> tuple[subprocess.Popen[str], int]:
    """Start a process that holds the lock, and return it with the id of its child."""
    utils = str(Path(__file__).parents[2] / "plugins" / "module_utils")
    script = HOLD.format(utils=utils, lock=str(lock), before=before)
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    return process, int(process.stdout.readline())


def gone(process: int) -> bool:
    """Whether a process has ended, or is about to be forgotten."""
    try:
        return "State:\tZ" in Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return True


def test_a_free_lock_is_taken(tmp_path: Path) -> None:
    """Nobody is ended for it, nor the next time, and nobody else may read or write it."""
    for _ in range(2):
        with only_one(tmp_path / "opt" / ".lock") as ended:
            assert ended == 0
            assert (tmp_path / "opt" / ".lock").read_text() == f"{os.getpid()}\n"
    assert (tmp_path / "opt" / ".lock").stat().st_mode & 0o777 == 0o600


def test_what_was_left_behind_is_ended(tmp_path: Path) -> None:
    """The process, what it started here, and what it started elsewhere."""
    process, child = held(tmp_path / ".lock")
    stopped: list[int] = []
    assert child in children(process.pid)
    with only_one(tmp_path / ".lock", stop=lambda: stopped.append(1)) as ended:
        assert ended == process.pid
        assert stopped
    process.wait(10)
    deadline = time.monotonic() + 10
    while not gone(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert gone(child)


def test_what_does_not_end_is_named(tmp_path: Path) -> None:
    """No second installation begins beside it."""
    process, child = held(tmp_path / ".lock", "signal.signal(signal.SIGTERM, signal.SIG_IGN)")
    try:
        refused = pytest.raises(StillHeldError, match=f"Process {process.pid} installs here")
        with refused, only_one(tmp_path / ".lock", patience=1):
            pytest.fail("it was entered")
    finally:
        if not gone(child):
            os.kill(child, 9)
        process.kill()
        process.wait()
