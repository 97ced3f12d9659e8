# SPDX-License-Identifier: MIT
"""The role celery_beat: what it writes, and whether Celery and systemd take it."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from celery.bin.beat import beat as celery_beat_command

from tests.unit.rendering import PROJECT, Role

if TYPE_CHECKING:
    from pathlib import Path


def unit(**variables: Any) -> str:
    """Return the rendered unit."""
    given = {"celery_beat_app_name": "demo", "celery_beat_broker_url": "rediss://beat:s3cret@broker:6379/0"}
    return Role("celery_beat", **given, **variables).template("celery-beat.service.j2")


@pytest.mark.parametrize("scheduler", ["redbeat", "persistent"])
def test_systemd_takes_the_unit(scheduler: str, tmp_path: Path) -> None:
    """`systemd-analyze verify` finds no unknown or misplaced setting. Program and user must exist here."""
    file = tmp_path / "celery-beat.service"
    text = unit(celery_beat_scheduler=scheduler).replace("=celery-beat\n", "=root\n")
    file.write_text(text.replace("/opt/celery/demo/current/bin/celery", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(file)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_sandbox_keeps_its_budget(tmp_path: Path) -> None:
    """`systemd-analyze security` rates the exposure; 10 is none of these settings."""
    file = tmp_path / "celery-beat.service"
    file.write_text(unit())
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=15", "--no-pager", str(file)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("scheduler", ["redbeat", "persistent"])
def test_celery_knows_every_option(scheduler: str) -> None:
    """An option that this version of Celery does not have would stop Beat."""
    start = next(
        line for line in unit(celery_beat_scheduler=scheduler).splitlines() if line.startswith("ExecStart=")
    )
    words = start.split(" beat ")[1].split()
    parser = celery_beat_command.make_parser(celery_beat_command.context_class(celery_beat_command))
    options, rest, _ = parser.parse_args(words)
    assert rest == []
    assert options["pidfile"] == ""
    assert options["scheduler"].endswith("Scheduler")


def test_addresses_are_all_or_those_that_are_named() -> None:
    """Beat imports the same app as nodes do."""
    assert "IPAddress" not in unit()
    assert "IPAddressDeny=any\n" in unit(celery_beat_ip_allow=["192.0.2.1"])
    assert "IPAddressAllow=192.0.2.1\n" in unit(celery_beat_ip_allow=["192.0.2.1"])


BOUNDS = ("MemoryMax", "MemorySwapMax", "TasksMax", "LogRateLimitIntervalSec", "LogRateLimitBurst")


def test_beat_is_bounded() -> None:
    """It imports the app, which may start or take whatever it likes."""
    found = dict(line.split("=", 1) for line in unit().splitlines() if line.startswith(BOUNDS))
    assert found == dict(zip(BOUNDS, ("50%", "0", "1024", "10", "100000"), strict=True))
    assert "MemoryMax=2G\n" in unit(celery_beat_memory_max="2G")
    assert "TasksMax=99\n" in unit(celery_beat_tasks_max=99)


def test_only_a_schedule_in_a_file_needs_a_directory() -> None:
    """With RedBeat there is nothing on the host to lose."""
    assert "StateDirectory=" not in unit()
    persistent = unit(celery_beat_scheduler="persistent")
    assert "StateDirectory=celery-beat\n" in persistent
    assert "--schedule=/var/lib/celery-beat/schedule" in persistent


def test_the_unit_compares_what_it_reads() -> None:
    """Each environment file and each file of the role is in the fingerprint, which root alone may write."""
    lines = unit().splitlines()
    fingerprint = next(line for line in lines if line.startswith("ExecStartPre="))
    read = [line.partition("=")[2] for line in lines if line.startswith("EnvironmentFile=")]
    assert read == ["/etc/celery/app.env", "/etc/celery/beat.env"]
    for path in (*read, "/etc/systemd/system/celery-beat.service", "/opt/celery/demo/current/release.json"):
        assert f" {path} " in fingerprint
    assert fingerprint.endswith(" >/run/celery-beat.started'")


def test_no_secret_is_in_the_unit() -> None:
    """The broker's URL is in beat.env and nowhere else."""
    assert "s3cret" not in unit()


def test_a_beat_that_hangs_is_killed_unless_nobody_wants_that() -> None:
    """The runtime asks systemd for it; an older runtime gives no sign of life, and is not killed for it."""
    watched = unit().splitlines()
    assert {"NotifyAccess=main", "Environment=FLEET_BEAT_WATCHDOG=60", "TimeoutAbortSec=10"} <= {*watched}
    assert not [line for line in watched if line.startswith("WatchdogSec=")]
    assert "NotifyAccess" not in unit(celery_beat_watchdog=0)


def test_beat_counts_as_dead_no_sooner_than_the_app_may_take_to_load() -> None:
    """A release whose check passed is not put back because its app takes long to load."""
    given = yaml.safe_load((PROJECT / "playbooks/vars/celery_beat.yml").read_text())
    assert given["celery_beat_import_timeout"] == "{{ celery_app_check_timeout | default(60) }}"
    slow = {"celery_beat_import_timeout": 300, "celery_beat_health_delay": 2}
    more = {"celery_beat_health_retries": 400}
    assert Role("celery_beat", **slow).evaluate("__celery_beat_retries") == 150
    assert Role("celery_beat", **slow, **more).evaluate("__celery_beat_retries") == 400
