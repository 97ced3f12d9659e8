# SPDX-License-Identifier: MIT
"""The output of a node in the journal, and its levels there."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from celery import Celery
from fleet_runtime.logging.celery_logging import FleetLogging, LevelPrefix

# Prints, tells of a child, and dies as a C library would make it die.
PROGRAM = """
import os, subprocess, sys
{first}
from pathlib import Path
from fleet_runtime.logging import journal
print(journal.adopt_streams("default-1@host1", Path(sys.argv[1])))
print(journal.is_journal(2), os.get_blocking(2), file=sys.stderr)
subprocess.run(["sh", "-c", "echo child; echo wrong >&2"])
os.abort()
"""


@pytest.fixture
def journal(tmp_path: Path) -> socket.socket:
    """Return the listening socket of a journal."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "stdout"))
    listening.listen()
    listening.settimeout(20)
    return listening


def start(stream: Path, first: str = "", stdout: int = subprocess.DEVNULL) -> bytes:
    """Run the program as a node that `celery multi` has detached; return what it leaves on a pipe."""
    command = [sys.executable, "-c", PROGRAM.format(first=first), str(stream)]
    return subprocess.run(command, env={}, stdout=stdout, stderr=subprocess.DEVNULL, check=False).stdout


@pytest.mark.parametrize("first", ["", "import gevent.monkey; gevent.monkey.patch_all()"])
def test_a_detached_node_writes_to_the_journal(journal: socket.socket, tmp_path: Path, first: str) -> None:
    """With its children and to its last word; the stream begins as systemd-cat's does."""
    start(tmp_path / "stdout", first)
    connection, _ = journal.accept()
    with connection, connection.makefile() as stream:
        lines = stream.read().splitlines()
    assert lines[:7] == ["default-1", "", "6", "1", "0", "0", "0"]
    assert lines[7:] == ["True", "True True", "child", "wrong"]


def test_other_output_stays_where_it_goes(journal: socket.socket, tmp_path: Path) -> None:
    """A node whose output goes to a pipe does not write to the journal."""
    printed = start(tmp_path / "stdout", stdout=subprocess.PIPE)
    journal.settimeout(0.1)
    with pytest.raises(TimeoutError):
        journal.accept()
    assert printed.splitlines()[-1] == b"child"


# Begins as `celery multi` begins a node, with a journal of the test.
ENTRY = """
import sys
from pathlib import Path
from fleet_runtime.logging import journal
journal.adopt_streams.__defaults__ = (Path(sys.argv[1]),)
sys.argv.append("--detach")
import fleet_runtime.app
"""


@pytest.mark.parametrize(("component", "is_node"), [("worker", True), ("ops", False)])
def test_only_a_node_adopts_the_streams(
    journal: socket.socket, tmp_path: Path, component: str, *, is_node: bool
) -> None:
    """The output of other commands is discarded on purpose."""
    environment = {"FLEET_COMPONENT": component, "FLEET_NODE": "default-1@host1"}
    command = [sys.executable, "-c", ENTRY, str(tmp_path / "stdout")]
    nowhere = subprocess.DEVNULL
    subprocess.run(command, env=environment, stdout=nowhere, stderr=nowhere, check=True)
    journal.settimeout(0.1)
    if not is_node:
        with pytest.raises(TimeoutError):
            journal.accept()
        return
    connection, _ = journal.accept()
    with connection, connection.makefile() as stream:
        assert stream.readline() == "default-1\n"


def test_without_a_journal_a_node_starts_as_well(tmp_path: Path) -> None:
    """There may be none, or one that does not answer."""
    start(tmp_path / "nowhere")
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(tmp_path / "deaf"))  # it does not listen
        start(tmp_path / "deaf")


def test_each_line_has_its_level() -> None:
    """A traceback, too, so that `journalctl -p err` shows all of it."""
    formatter = LevelPrefix(logging.Formatter("%(levelname)s %(message)s"))
    for level, prefix in {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}.items():
        record = logging.LogRecord("a", getattr(logging, level), "a.py", 1, "one\ntwo", (), None)
        assert formatter.format(record) == f"<{prefix}>{level} one\n<{prefix}>two"


@pytest.mark.parametrize("is_journal", [True, False])
def test_levels_are_for_the_journal_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_journal: bool
) -> None:
    """A terminal and a file get none."""
    with (tmp_path / "stream").open("w") as stream:
        status = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}" if is_journal else "1:1")
        monkeypatch.setattr(sys, "__stderr__", stream)
        logger = logging.Logger("a")
        app = Celery(set_as_current=False)
        app.fleet_settings = SimpleNamespace(node="", log_file="")
        FleetLogging(app).setup_handlers(logger, None, "%(message)s", False)
        logger.error("out of stock")
    assert (tmp_path / "stream").read_text() == ("<3>out of stock\n" if is_journal else "out of stock\n")
