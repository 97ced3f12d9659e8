# SPDX-License-Identifier: MIT
"""fleet-redis-aof: an append-only file whose end a crash has broken is mended, any other is left alone."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import shutil
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import redis

from tests.unit.rendering import PROJECT

if TYPE_CHECKING:
    from collections.abc import Callable

PROGRAM = PROJECT / "roles" / "redis" / "files" / "fleet-redis-aof"
HALF = b"*3\r\n$5\r\nLPUSH\r\n$7\r\ndefault\r\n$10\r\nhal"
WHOLE = b"*3\r\n$5\r\nLPUSH\r\n$7\r\ndefault\r\n$1\r\nx\r\n"
MULTI, EXEC = b"*1\r\n$5\r\nMULTI\r\n", b"*1\r\n$4\r\nEXEC\r\n"


@pytest.fixture(scope="module")
def program() -> Any:
    """Import the program, which has no suffix."""
    loader = importlib.machinery.SourceFileLoader("fleet_redis_aof", str(PROGRAM))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def start(data: Path) -> subprocess.Popen[bytes]:
    """Start a server on a directory, as redis.conf would."""
    words = ["--port", "0", "--unixsocket", str(data / "socket"), "--appendonly", "yes", "--save", ""]
    log = (data / "log").open("ab")
    with log:
        return subprocess.Popen(["redis-server", *words, "--dir", str(data)], stdout=log)


def messages(data: Path) -> list[Any] | None:
    """Return the messages of a server that is started on a directory; None if it does not start."""
    server, client = start(data), redis.Redis(unix_socket_path=str(data / "socket"))
    try:
        while server.poll() is None:
            try:
                return list(client.lrange("default", 0, -1))
            except redis.ConnectionError:
                time.sleep(0.02)
        return None
    finally:
        server.terminate()
        server.wait(10)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a directory of data with a base and what came after it."""
    data = tmp_path_factory.mktemp("whole")
    server, client = start(data), redis.Redis(unix_socket_path=str(data / "socket"))
    for number in range(4):
        while True:
            try:
                client.lpush("default", number)
                break
            except redis.ConnectionError:
                time.sleep(0.02)
        if number == 1:
            client.bgrewriteaof()
            while client.info("persistence")["aof_rewrite_in_progress"]:
                time.sleep(0.02)
    server.terminate()
    server.wait(10)
    return data


@pytest.fixture
def data(whole: Path, program: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the data, which the program takes for those of the host."""
    data = tmp_path / "redis"
    shutil.copytree(whole, data, ignore=shutil.ignore_patterns("socket"))
    monkeypatch.setattr(program, "DATA", data)
    monkeypatch.setattr(program, "COPIES", tmp_path / "broken")
    monkeypatch.setattr(program, "STOP", tmp_path / "run" / "stop.conf")
    monkeypatch.setattr(program, "reload", lambda: None)
    monkeypatch.setattr(program, "as_redis", lambda action: program.ACTIONS[action]())
    (data / "starting").touch()  # the last start has failed
    return data


def newest(data: Path) -> Path:
    """Return the file to which Redis has written last."""
    return next(iter(data.glob("appendonlydir/*.incr.aof")))


REMNANTS = {
    "zeros": b"\0" * 4096,
    "half a command": HALF,
    "half a command and zeros": HALF + b"\0" * 512,
    "an open transaction": MULTI + WHOLE,
    "an open transaction, half a command and zeros": MULTI + WHOLE + HALF + b"\0" * 9,
    "the first byte": b"*",
    "a length": b"*3\r\n$5\r\nLPUSH\r\n$",
}


@pytest.mark.parametrize("tail", REMNANTS.values(), ids=REMNANTS)
def test_what_a_crash_leaves_is_cut_off(
    program: Any, data: Path, tail: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    file = newest(data)
    good = file.stat().st_size
    file.write_bytes(file.read_bytes() + tail)
    assert program.before() == 0
    assert file.stat().st_size == good
    (copy,) = (data.parent / "broken").iterdir()
    assert copy.read_bytes() == tail
    assert f"cut off {len(tail)} bytes" in capsys.readouterr().err
    assert messages(data) == [b"3", b"2", b"1", b"0"]


def crash(program: Any, data: Path, tail: bytes, now: str) -> str:
    """Let a crash leave an end, and the program mend it; return what it says."""
    file = newest(data)
    file.write_bytes(file.read_bytes() + tail)
    said: str = program.mend(data / "appendonlydir" / "appendonly.aof.manifest", now)
    return said


def test_copies_of_what_is_cut_off_are_few(program: Any, data: Path) -> None:
    """The newest, and what is not the program's stays: Redis needs the disk."""
    for day in range(1, 6):
        crash(program, data, HALF, f"2026120{day}T000000Z")
        (data.parent / "broken" / "notes").touch()
    copies = sorted(path.name[:8] for path in (data.parent / "broken").iterdir())
    assert copies == ["20261203", "20261204", "20261205", "notes"]


def test_zeros_of_a_copy_take_no_room(program: Any, data: Path) -> None:
    """They are most of what a power cut leaves."""
    tail = HALF + b"\0" * (8 << 20)
    crash(program, data, tail, "20261201T000000Z")
    (copy,) = (data.parent / "broken").iterdir()
    assert copy.read_bytes() == tail
    assert copy.stat().st_blocks * 512 < 1 << 20


def test_a_copy_never_fills_the_disk(program: Any, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That Redis starts counts for more; what is cut off is no whole command."""
    good = newest(data).stat().st_size
    monkeypatch.setattr(program.shutil, "disk_usage", lambda _: SimpleNamespace(free=9 * len(HALF)))
    said = crash(program, data, HALF, "20261201T000000Z")
    assert f"cut off {len(HALF)} bytes" in said
    assert "No copy was made" in said
    assert not list((data.parent / "broken").iterdir())
    assert newest(data).stat().st_size == good
    assert messages(data) == [b"3", b"2", b"1", b"0"]


def test_redis_itself_does_not_start_with_zeros(data: Path) -> None:
    """Else all this would not be needed."""
    file = newest(data)
    file.write_bytes(file.read_bytes() + b"\0" * 4096)
    assert messages(data) is None


def break_middle(file: Path) -> None:
    """Put zeros where a command begins."""
    text = bytearray(file.read_bytes())
    text[40:46] = b"\0" * 6
    file.write_bytes(text)


BREAKS: dict[str, Callable[[Path], object]] = {
    "a block in the middle": lambda data: break_middle(newest(data)),
    "a block of the base": lambda data: break_middle(next(iter(data.glob("appendonlydir/*.base.*")))),
    "zeros before a whole command": lambda data: newest(data).write_bytes(
        newest(data).read_bytes() + b"\0" * 512 + WHOLE
    ),
    "what is no command": lambda data: newest(data).write_bytes(newest(data).read_bytes() + b"text\r\n"),
    "a whole transaction behind zeros": lambda data: newest(data).write_bytes(
        newest(data).read_bytes() + b"\0" + MULTI + WHOLE + EXEC
    ),
}


@pytest.mark.parametrize("damage", BREAKS.values(), ids=BREAKS)
def test_any_other_damage_is_left_alone_and_the_unit_stops(
    program: Any, data: Path, damage: Callable[[Path], object], capsys: pytest.CaptureFixture[str]
) -> None:
    damage(data)
    files = {path: path.read_bytes() for path in data.glob("appendonlydir/*")}
    assert program.before() == program.BROKEN
    assert {path: path.read_bytes() for path in data.glob("appendonlydir/*")} == files
    assert not (data.parent / "broken").exists()
    assert "Restart=no" in program.STOP.read_text()
    said = capsys.readouterr().err
    assert program.PAGE in said
    assert (PROJECT / program.PAGE).exists()
    assert program.before() == program.BROKEN, "the next start looks again"


def test_a_start_after_one_that_went_well_looks_at_nothing(program: Any, data: Path) -> None:
    """To read all of the file takes as long as to load it."""
    (data / "starting").unlink()
    break_middle(newest(data))
    assert program.before() == 0
    assert (data / "starting").exists()
    assert program.before() == program.BROKEN


def test_a_file_that_is_whole_stays(program: Any, data: Path) -> None:
    files = {path: path.read_bytes() for path in data.glob("appendonlydir/*")}
    assert program.before() == 0
    assert {path: path.read_bytes() for path in data.glob("appendonlydir/*")} == files
