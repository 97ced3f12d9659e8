# SPDX-License-Identifier: MIT
"""The module fleet_stale: which services run with other files than the host has now."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from ansible_collections.fleet.celery.plugins.filter.fleet import status_rows
from ansible_collections.fleet.celery.plugins.module_utils.fleet_systemd import SystemdError
from ansible_collections.fleet.celery.plugins.modules import fleet_stale

if TYPE_CHECKING:
    from typing import Any

UNIT = "celery-worker@a-1.service"


class Systemd:
    """A stand-in for systemctl, which knows the units of one host."""

    def __init__(self, **active: str) -> None:
        """Take the ActiveState of each unit `celery-worker@<name>.service`; `_` stands for `-`."""
        self.active = {
            f"celery-worker@{name.replace('_', '-')}.service": state for name, state in active.items()
        }
        self.enabled = "enabled"
        self.main_pid = 0
        self.sub = "running"

    def __call__(self, argv: list[str]) -> tuple[int, str, str]:
        """Answer as systemctl would."""
        verb, *rest = [word for word in argv if not word.startswith("-")][1:]
        if verb == "list-units":
            running = [unit for unit, state in self.active.items() if state != "inactive"]
            return 0, "".join(f"{unit} loaded active running A node\n" for unit in running), ""
        assert verb == "show"
        if "--property=MainPID" in argv:
            return 0, f"{self.main_pid}\n", ""
        blocks = [
            f"LoadState=loaded\nActiveState={self.active.get(unit, 'inactive')}\n"
            f"SubState={self.sub}\n"
            f"UnitFileState={self.enabled}\nNeedDaemonReload=no\n"
            for unit in rest
        ]
        return 0, "\n".join(blocks), ""


@pytest.fixture
def shaped(tmp_path: Path) -> dict[str, Any]:
    """Arguments for one unit whose fingerprint was just written by sha256sum, as its ExecStartPre does."""
    files = [tmp_path / name for name in ("app.env", "worker.env")]
    for file in files:
        file.write_text(f"{file.name}\n")
    fingerprint = tmp_path / "a-1.started"
    with fingerprint.open("w") as out:
        subprocess.run(["sha256sum", *files], check=True, stdout=out)
    return {"units": [{"unit": UNIT, "fingerprint": str(fingerprint)}], "changed_files": [], "pattern": None}


def compare(params: dict[str, Any], systemd: Systemd, unit_dir: Path | None = None) -> dict[str, Any]:
    """Run the module."""
    return fleet_stale.compare(params, systemd, unit_dir or Path("/nonexistent"))


def test_a_unit_with_the_files_it_started_with_is_fresh(shaped: dict[str, Any]) -> None:
    """Nothing to do."""
    result = compare(shaped, Systemd(a_1="active"))
    assert result == {
        "changed": False,
        "stale": [],
        "down": [],
        "replaced": [],
        "surplus": [],
        "states": {UNIT: "active"},
        "drained": False,
        "reason": "",
        "current": "",
        "previous": "",
    }


@pytest.mark.parametrize("state", ["active", "activating", "reloading"])
@pytest.mark.parametrize("spoil", ["changed", "removed", "no fingerprint", "empty fingerprint"])
def test_a_unit_with_other_files_is_stale(
    shaped: dict[str, Any], tmp_path: Path, state: str, spoil: str
) -> None:
    """So is one that does not tell what it started with. One in a crash loop counts as running."""
    fingerprint = tmp_path / "a-1.started"
    match spoil:
        case "changed":
            (tmp_path / "worker.env").write_text("another password\n")
        case "removed":
            (tmp_path / "app.env").unlink()
        case "no fingerprint":
            fingerprint.unlink()
        case "empty fingerprint":
            fingerprint.write_text("")
    assert compare(shaped, Systemd(a_1=state))["stale"] == [UNIT]


@pytest.mark.parametrize(("sub", "stale"), [("start-pre", []), ("start", [UNIT]), ("start-post", [UNIT])])
def test_a_unit_that_has_read_nothing_yet_is_not_stale(
    shaped: dict[str, Any], tmp_path: Path, sub: str, stale: list[str]
) -> None:
    """As one that waits for its turn after a boot: a restart would only put it behind the others."""
    (tmp_path / "a-1.started").unlink()
    systemd = Systemd(a_1="activating")
    systemd.sub = sub
    assert compare(shaped, systemd)["stale"] == stale


@pytest.mark.parametrize("state", ["inactive", "failed"])
def test_a_unit_that_does_not_run_is_not_stale(shaped: dict[str, Any], tmp_path: Path, state: str) -> None:
    """It reads the new files when it starts."""
    (tmp_path / "worker.env").write_text("another password\n")
    assert compare(shaped, Systemd(a_1=state))["stale"] == []


def test_a_dry_run_counts_what_would_change(shaped: dict[str, Any], tmp_path: Path) -> None:
    """In check mode the files are still the old ones."""
    shaped["changed_files"] = [str(tmp_path / "worker.env")]
    assert compare(shaped, Systemd(a_1="active"))["stale"] == [UNIT]
    shaped["changed_files"] = ["/etc/celery/beat.env"]
    assert compare(shaped, Systemd(a_1="active"))["stale"] == []


def test_a_dry_run_on_a_bare_host(tmp_path: Path) -> None:
    """No unit, no fingerprint, no file: nothing would restart."""
    params = {
        "units": [{"unit": UNIT, "fingerprint": str(tmp_path / "none")}],
        "changed_files": [],
        "pattern": "celery-worker@*",
    }
    assert compare(params, Systemd(), tmp_path)["stale"] == []


@pytest.mark.parametrize(
    ("program", "watched", "stale"),
    [
        ("/usr/bin/redis-check-rdb", True, False),
        ("/usr/bin/redis-check-rdb (deleted)", True, True),
        ("/usr/bin/redis-check-rdb (deleted)", False, False),
        (None, True, False),
    ],
)
def test_a_unit_whose_program_was_replaced_is_stale(
    shaped: dict[str, Any], tmp_path: Path, program: str | None, watched: bool, stale: bool
) -> None:
    """A package was upgraded, and nothing restarted it; where that is asked for."""
    systemd = Systemd(a_1="active")
    systemd.main_pid = 42
    (tmp_path / "42").mkdir()
    if program:
        (tmp_path / "42" / "exe").symlink_to(program)
    shaped["units"][0]["program"] = watched
    result = fleet_stale.compare(shaped, systemd, Path("/nonexistent"), tmp_path)
    assert (result["stale"], result["replaced"]) == (([UNIT], [UNIT]) if stale else ([], []))


def test_surplus_units_are_found_by_what_is_left_of_them(shaped: dict[str, Any], tmp_path: Path) -> None:
    """A run, a failure, an enablement or a drop-in each give a unit away; other families do not count."""
    wants = tmp_path / "celery.target.wants"
    wants.mkdir()
    for name in (UNIT, "celery-worker@enabled-1.service", "celery-beat.service"):
        (wants / name).symlink_to("/dev/null")
    (tmp_path / "celery-worker@tuned-1.service.d").mkdir()
    (tmp_path / "celery-worker@.service.d").mkdir()  # for all instances: an administrator's
    (tmp_path / "redis-server.service.d").mkdir()
    systemd = Systemd(a_1="active", running_1="active", broken_1="failed", gone_1="inactive")
    shaped["pattern"] = "celery-worker@*.service"
    assert compare(shaped, systemd, tmp_path)["surplus"] == [
        f"celery-worker@{name}-1.service" for name in ("broken", "enabled", "running", "tuned")
    ]


def test_a_host_may_have_no_unit_at_all(tmp_path: Path) -> None:
    """The last pool was removed: all that runs is surplus."""
    params: dict[str, Any] = {"units": [], "changed_files": [], "pattern": "celery-worker@*.service"}
    result = compare(params, Systemd(a_1="active"), tmp_path)
    assert (result["stale"], result["surplus"]) == ([], [UNIT])


def test_systemctl_that_fails_is_an_error(shaped: dict[str, Any]) -> None:
    """Its own message is shown."""
    with pytest.raises(SystemdError, match="Failed to connect to bus"):
        fleet_stale.compare(shaped, lambda argv: (1, "", "Failed to connect to bus\n"))


def test_a_mark_says_that_the_host_is_drained(shaped: dict[str, Any], tmp_path: Path) -> None:
    marker = tmp_path / "drained"
    shaped["drain_marker"] = str(marker)
    assert compare(shaped, Systemd(a_1="active"))["drained"] is False
    marker.touch()
    assert compare(shaped, Systemd(a_1="active"))["drained"] is True


@pytest.mark.parametrize(
    ("state", "enabled", "is_down"),
    [
        ("active", "enabled", False),
        ("active", "static", False),
        ("active", "disabled", True),
        ("inactive", "enabled", True),
        ("activating", "enabled", True),
    ],
)
def test_what_does_not_run_or_would_not_after_a_reboot_is_down(
    shaped: dict[str, Any], state: str, enabled: str, is_down: bool
) -> None:
    """The same holds for what has no fingerprint."""
    systemd = Systemd(a_1=state, other=state)
    systemd.enabled = enabled
    other = "celery-worker@other.service"
    found = compare({**shaped, "other_units": [other]}, systemd)
    assert found["down"] == ([UNIT, other] if is_down else [])
    assert other not in found["stale"]


def test_the_reason_of_a_drain_and_the_releases_are_told(shaped: dict[str, Any], tmp_path: Path) -> None:
    for link, release in (("current", "3f"), ("previous", "2e")):
        (tmp_path / link).symlink_to(f"releases/{release}")
    (tmp_path / "drained").write_text("a new disk\n")
    arguments = {**shaped, "drain_marker": str(tmp_path / "drained"), "app_dir": str(tmp_path)}
    result = compare(arguments, Systemd(a_1="inactive"))
    assert (result["drained"], result["reason"]) == (True, "a new disk")
    assert (result["current"], result["previous"]) == ("3f", "2e")


@pytest.mark.parametrize(
    ("found", "row"),
    [
        ({}, "no no answer"),
        ({"states": {"a.service": "active", "b.service": "active"}}, "yes 3f - 2 of 2 - - -"),
        ({"states": {"a.service": "active"}, "stale": ["a.service"]}, "no 3f - 1 of 1 1 - -"),
        ({"states": {"a.service": "activating"}, "stale": ["a.service"]}, "no 3f - 0 of 1 - - a"),
        ({"states": {"a.service": "failed"}}, "no 3f - 0 of 1 - - a"),
        ({"states": {"a.service": "inactive"}, "drained": True}, "yes 3f - 0 of 1 - yes a"),
        (
            {"states": {"a.service": "inactive"}, "drained": True, "reason": "a disk"},
            "yes 3f - 0 of 1 - a disk a",
        ),
        ({"states": {"a.service": "activating"}, "drained": True}, "no 3f - 0 of 1 - yes a"),
    ],
)
def test_a_host_is_well_if_its_units_are_up_with_the_files_that_it_has(
    found: dict[str, Any], row: str
) -> None:
    if found:
        found = {"stale": [], "drained": False, "reason": "", "current": "3f", "previous": ""} | found
    (cells,) = status_rows({"h": {"found": {"services": found}}}, {"workers": ["h"]}, {"workers": "found"})
    assert " ".join(map(str, cells.values())) == f"h workers {row}"
