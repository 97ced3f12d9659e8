# SPDX-License-Identifier: MIT
"""Nodes of a crowded boot start a few at a time, and say what they wait for."""

from __future__ import annotations

import importlib.util
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

SCRIPT = Path(__file__).parents[2] / "roles/celery_worker/files/fleet_celery_start.py"


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the script as a module that knows no other node and no process."""
    spec = importlib.util.spec_from_file_location("fleet_celery_start", SCRIPT)
    assert spec
    assert spec.loader
    module: Any = importlib.util.module_from_spec(spec)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    spec.loader.exec_module(module)
    (tmp_path / "proc").mkdir()
    module.FOLDER, module.PROCESSES = tmp_path / "starting", tmp_path / "proc"
    module.LOOK, module.SAY = 0.01, 0.02
    monkeypatch.setenv("PIDFILE", str(tmp_path / "worker.pid"))
    return module


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Yield what systemd is told."""
    words: list[str] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))

        def listen() -> None:
            """Listen until the end."""
            while word := systemd.recv(1000):
                words.append(word.decode())

        thread = threading.Thread(target=listen)
        thread.start()
        yield words
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
            end.sendto(b"", str(tmp_path / "notify"))
        thread.join()


def process(start: Any, pidfile: str, number: int = 7) -> Path:
    """Let there be a process that would write a PID file."""
    folder = Path(start.PROCESSES, str(number))
    folder.mkdir()
    (folder / "cmdline").write_bytes(b"python\0-m\0celery\0worker\0--pidfile=" + pidfile.encode() + b"\0")
    return folder


def test_as_many_start_at_once_as_there_are_cpus(start: Any, said: list[str]) -> None:
    """The next one waits for one of them, and says for which."""
    for node in ("a-1", "a-2"):
        start.take_turn(node, 60, at_once=2)
    third = threading.Thread(target=start.take_turn, args=("a-3", 60, 2))
    third.start()
    third.join(0.3)
    assert third.is_alive()
    assert said[0] == "STATUS=waiting for its turn to start, behind a-1, a-2\nEXTEND_TIMEOUT_USEC=60000000"
    start.over("a-1")
    third.join(5)
    assert not third.is_alive()
    assert sorted(start.starting("none", 60)) == ["a-2", "a-3"]


def test_a_node_that_starts_again_takes_its_own_place(start: Any) -> None:
    """Whatever became of its start before."""
    start.take_turn("a-1", 60, at_once=1)
    start.take_turn("a-1", 60, at_once=1)
    assert start.main("over", "a-1") == 0
    assert start.main("over", "a-1") == 0


def test_what_is_left_over_keeps_nobody(start: Any) -> None:
    """As by a systemd that was killed."""
    start.FOLDER.mkdir()
    (start.FOLDER / "a-1").write_text(str(time.monotonic() - 181))
    (start.FOLDER / "a-2").write_text("nonsense")
    assert start.starting("a-3", 60) == []


def test_a_start_ends_when_the_node_is_up(start: Any, said: list[str], tmp_path: Path) -> None:
    """Its PID file has something in it by then."""
    pidfile = tmp_path / "worker.pid"
    process(start, str(pidfile))
    start.take_turn("a-1", 60, at_once=1)
    threading.Timer(0.3, pidfile.write_text, ("7\n",)).start()
    assert start.main("wait", "a-1") == 0
    until = time.monotonic() + 5
    while said[-1:] != ["STATUS=connecting"]:
        assert time.monotonic() < until, said
        time.sleep(0.01)
    assert said[0].startswith("STATUS=importing the app, for 0 s now")
    assert start.starting("none", 60) == []


def test_a_start_fails_when_no_process_is_left(start: Any, tmp_path: Path, capsys: Any) -> None:
    """One of another node does not count."""
    process(start, str(tmp_path / "worker.pid.other"))
    ended = process(start, str(tmp_path / "worker.pid"), 8)
    begun = time.monotonic()
    threading.Timer(0.2, (ended / "cmdline").unlink).start()
    assert start.main("wait", "a-1") == 1
    assert time.monotonic() - begun >= 0.2
    assert "ended before it was up" in capsys.readouterr().err
