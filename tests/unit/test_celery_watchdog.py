# SPDX-License-Identifier: MIT
"""A node that hangs is seen from outside, though a task has told systemd to wait for longer."""

from __future__ import annotations

import hashlib
import importlib.util
import time
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "roles/celery_worker/files/fleet_celery_watchdog.py"
SECONDS, START = 60.0, 300.0
ABRT, KILL = "kill --kill-whom=main --signal=SIGABRT", "kill --kill-whom=main --signal=SIGKILL"
# Answers as systemctl does: `show` from a file; what is killed is gone if it ends by that signal.
SYSTEMCTL = """#!/bin/sh
case "$*" in
    show*) cat "$(dirname "$0")/state" ;;
    *) echo "$*" >>"$(dirname "$0")/done"; case "$*" in *{ends_by}*) : >"$(dirname "$0")/state" ;; esac ;;
esac
"""


class Host:
    """A host whose systemd says what a test wants."""

    def __init__(self, folder: Path, program: Any) -> None:
        """Have a unit file, and a stand-in for systemctl."""
        self.folder, self.program = folder, program
        self.unit, self.state = folder / "unit", folder / "state"
        self.unit.write_text("[Service]\n")
        program.SYSTEMCTL, program.ABORT, program.LOOK = str(folder / "systemctl"), 0.3, 0.01
        self.nodes: list[str] = []
        self.ends_by("SIGABRT")

    def ends_by(self, signal: str) -> None:
        """Let nodes end by a signal."""
        script = self.folder / "systemctl"
        script.write_text(SYSTEMCTL.replace("{ends_by}", signal))
        script.chmod(0o755)

    def has(self, name: str, waits: str, silence: float, *, starts: bool = False, **other: str) -> None:
        """Have a node that gave its last sign of life some seconds ago, or that began to start then."""
        last = int((time.monotonic() - silence) * 1e6)
        active = last + 3_000_000 if starts else last - 1
        state = {
            "Id": f"celery-worker@{name}.service", "ActiveState": "active", "SubState": "running",
            "MainPID": "7", "WatchdogUSec": waits, "WatchdogTimestampMonotonic": str(last),
            "ActiveEnterTimestampMonotonic": str(active), **other,
        }  # fmt: skip
        self.nodes.append("".join(f"{key}={value}\n" for key, value in state.items()))
        self.state.write_text("\n".join(self.nodes))
        self.fingerprint(name)

    def fingerprint(self, name: str) -> None:
        """Let a node have started with the unit as it is now."""
        checksum = hashlib.sha256(self.unit.read_bytes()).hexdigest()
        (self.folder / f"{name}.started").write_text(f"aa  /etc/celery/app.env\n{checksum}  {self.unit}\n")

    def killed(self) -> list[str]:
        """Let the program look, and return what it had systemd do."""
        self.program.main(SECONDS, START, self.unit, str(self.folder / "{}.started"))
        done = self.folder / "done"
        return done.read_text().splitlines() if done.exists() else []


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """Return a host without nodes."""
    spec = importlib.util.spec_from_file_location("fleet_celery_watchdog", SCRIPT)
    assert spec
    assert spec.loader
    module: Any = importlib.util.module_from_spec(spec)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    spec.loader.exec_module(module)
    host = Host(tmp_path, module)
    host.state.write_text("")
    return host


@pytest.mark.parametrize("waits", ["1d", "infinity", "0", "1h 30min", "1min 1us"])
def test_a_hang_that_systemd_was_told_to_overlook_is_seen(
    host: Host, capsys: pytest.CaptureFixture[str], waits: str
) -> None:
    """The node is killed as by systemd; the others go on, and the journal has the reason."""
    host.has("io-1", waits, silence=SECONDS + 11)
    host.has("io-2", "1min", silence=15)
    assert host.killed() == [f"{ABRT} celery-worker@io-1.service"]
    said = capsys.readouterr().err
    assert said.startswith(
        "<3>celery-worker@io-1.service hangs: no sign of life for 71 s, and systemd was told"
    )
    assert "in place of 60, which only a task can have done. It is killed" in said
    assert len(said.splitlines()) == 1


def test_a_node_that_lives_is_not_killed_for_what_a_task_has_said(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its next sign of life sets the time back. The journal has who it was."""
    host.has("io-1", "1d", silence=14)
    assert host.killed() == []
    assert capsys.readouterr().err == (
        "<4>celery-worker@io-1.service: systemd was told to wait for 86400 s in place of 60, "
        "which only a task can have done.\n"
    )


@pytest.mark.parametrize(
    ("waits", "silence", "starts"),
    [("1min", SECONDS + 9, False), ("5min", START + 9, True), ("5min", SECONDS + 11, True)],
)
def test_what_systemd_sees_is_left_to_systemd(
    host: Host, capsys: pytest.CaptureFixture[str], waits: str, silence: float, starts: bool
) -> None:
    """For as long as it takes to act; and a node that starts has the time of its unit."""
    host.has("io-1", waits, silence, starts=starts)
    assert host.killed() == []
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("waits", "silence", "starts"), [("1min", SECONDS + 11, False), ("5min", START + 11, True)]
)
def test_a_hang_that_systemd_should_have_seen_is_ended(
    host: Host, waits: str, silence: float, starts: bool
) -> None:
    """Whatever the reason."""
    host.has("io-1", waits, silence, starts=starts)
    assert host.killed() == [f"{ABRT} celery-worker@io-1.service"]


def test_the_time_of_a_start_is_over_with_the_first_sign_of_life(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    """With it a node sets its own time, so that only a task can have set this one again."""
    host.has("io-1", "5min", SECONDS + 11)
    host.has("io-2", "5min", 15)
    assert host.killed() == [f"{ABRT} celery-worker@io-1.service"]
    said = capsys.readouterr().err
    assert "io-1.service hangs: no sign of life for 71 s, and systemd was told to wait for 300 s" in said
    assert "<4>celery-worker@io-2.service: systemd was told to wait for 300 s in place of 60" in said


@pytest.mark.parametrize(
    "state",
    [
        {"ActiveState": "activating", "SubState": "start-post"},
        {"ActiveState": "deactivating", "SubState": "stop"},
        {"ActiveState": "deactivating", "SubState": "stop-watchdog"},
        {"ActiveState": "inactive", "SubState": "dead"},
        {"ActiveState": "failed", "SubState": "failed"},
        {"WatchdogTimestampMonotonic": "0"},
    ],
)
def test_a_node_that_starts_or_stops_is_left_alone(host: Host, state: dict[str, Any]) -> None:
    """It may take its time, and a host that is drained has no other."""
    host.has("io-1", "1d", 1000, **state)
    assert host.killed() == []


def test_a_node_with_an_older_unit_is_left_alone(host: Host) -> None:
    """It may have another time; and one of which nobody knows with what it runs."""
    host.has("io-1", "1d", 1000)
    host.has("io-2", "1d", 1000)
    host.unit.write_text("[Service]\nWatchdogSec=1\n")
    host.fingerprint("io-2")
    (host.folder / "io-2.started").unlink()
    assert host.killed() == []
    host.fingerprint("io-1")
    assert host.killed() == [f"{ABRT} celery-worker@io-1.service"]


def test_a_node_that_does_not_end_is_ended_for_good(host: Host) -> None:
    """A task may have caught SIGABRT, or have stopped the process."""
    host.ends_by("SIGKILL")
    host.has("io-1", "1d", 1000)
    assert host.killed() == [f"{ABRT} celery-worker@io-1.service", f"{KILL} celery-worker@io-1.service"]


def test_a_host_without_nodes(host: Host) -> None:
    """There is nothing to do."""
    assert host.killed() == []


def test_times_are_read_as_systemd_prints_them(host: Host) -> None:
    """From systemd.time(7)."""
    times = {
        "0": 0,
        "1min": 60,
        "1min 30s": 90,
        "2h 5min": 7500,
        "1w 1d": 691200,
        "1.500s": 1.5,
        "20ms": 0.02,
    }
    assert {text: host.program.seconds_of(text) for text in times} == pytest.approx(times)
