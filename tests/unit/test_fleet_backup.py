# SPDX-License-Identifier: MIT
"""What a host had before a batch changed it, and how it comes back."""

from __future__ import annotations

import grp
import os
import pwd
from pathlib import Path

import pytest
from ansible_collections.fleet.celery.plugins.module_utils.fleet_backup import (
    OWNERS,
    WAS,
    WAS_NOT,
    Backup,
    all_backups,
    legacy_owner,
)
from ansible_collections.fleet.celery.plugins.modules import fleet_files

ME = {"owner": pwd.getpwuid(os.getuid()).pw_name, "group": grp.getgrgid(os.getgid()).gr_name}

NOTHING_ELSE: dict[str, list[str]] = {"directories": [], "purge": [], "empty": []}


@pytest.fixture
def backup(tmp_path: Path) -> Backup:
    """What is backup: nothing yet."""
    return Backup("celery_worker", tmp_path / "kept")


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """Files of a host: a secret, a link, and a directory in which more can be."""
    root = tmp_path / "etc"
    root.mkdir()
    (root / "app.env").write_text("old\n")
    (root / "app.env").chmod(0o600)
    (root / "current").symlink_to("releases/old")
    return root


def change(host: Path, backup: Backup, text: str) -> None:
    """Change the host as a run does."""
    for name in ("app.env", "new.env"):
        file = {"path": str(host / name), "content": text, "mode": "0644", "secret": False, **ME}
        fleet_files.apply({"files": [file], **NOTHING_ELSE}, check=False, backup=backup)
    backup.save(host / "current")
    (host / "current").unlink()
    (host / "current").symlink_to(f"releases/{text.strip()}")


def as_it_was(host: Path) -> bool:
    """Whether the host is as it was."""
    return (
        (host / "app.env").read_text() == "old\n"
        and (host / "app.env").stat().st_mode & 0o7777 == 0o600
        and not (host / "new.env").exists()
        and (host / "current").readlink() == Path("releases/old")
    )


def test_what_was_changed_comes_back(host: Path, backup: Backup) -> None:
    change(host, backup, "new\n")
    assert not as_it_was(host)
    assert backup.paths(WAS) == [host / "app.env", host / "current"]
    assert backup.paths(WAS_NOT) == [host / "new.env"]
    backup.restore()
    assert as_it_was(host)
    backup.drop()
    assert backup.paths() == []


def test_what_an_interrupted_run_kept_is_older_and_stays(host: Path, backup: Backup) -> None:
    change(host, backup, "new\n")
    change(host, Backup(backup.owner, backup.root), "newer\n")
    backup.restore()
    assert as_it_was(host)


def test_a_restoration_that_was_interrupted_is_done_again(host: Path, backup: Backup) -> None:
    change(host, backup, "new\n")
    backup.restore()
    backup.restore()
    assert as_it_was(host)


def test_nothing_is_kept_in_check_mode_nor_of_what_does_not_change(host: Path, backup: Backup) -> None:
    file = {"path": str(host / "app.env"), "content": "new\n", "mode": "0600", "secret": False, **ME}
    params = {"files": [file], **NOTHING_ELSE}
    fleet_files.apply(params, check=True, backup=backup)
    fleet_files.apply({**params, "files": [{**file, "content": "old\n"}]}, check=False, backup=backup)
    assert backup.paths() == []


def test_no_folder_is_left_behind(host: Path, tmp_path: Path) -> None:
    """Unless something else is in it."""
    folder = tmp_path / "lib" / "fleet"
    folder.parent.mkdir()
    backup = Backup("flower", folder / "kept")
    for other, left in ((False, []), (True, ["lock"])):
        change(host, backup, "new\n")
        if other:
            (folder / "lock").touch()
        backup.restore()
        backup.drop()
        assert [path.name for path in folder.glob("*")] == left
        assert folder.exists() is other


def test_secrets_are_kept_where_only_root_reads(host: Path, backup: Backup) -> None:
    change(host, backup, "new\n")
    assert backup.directory.stat().st_mode & 0o7777 == 0o700
    modes = {entry.lstat().st_mode & 0o077 for entry in backup.directory.iterdir() if not entry.is_symlink()}
    assert modes == {0}


def test_what_follows_something_else_is_not_kept(host: Path, backup: Backup) -> None:
    file = {"path": str(host / "app.env"), "content": "new\n", "mode": "0600", "secret": True, **ME}
    fleet_files.apply({"files": [{**file, "backup": False}], **NOTHING_ELSE}, check=False, backup=backup)
    assert backup.paths() == []


def test_a_drop_in_directory_that_was_not_there_goes_as_well(host: Path, backup: Backup) -> None:
    limits = host / "celery-worker@a-1.service.d" / "limits.conf"
    backup.save(limits)
    limits.parent.mkdir()
    limits.write_text("new")
    backup.restore()
    assert not limits.parent.exists()


def test_what_lies_in_a_directory_that_is_gone_comes_back(host: Path, backup: Backup) -> None:
    limits = host / "celery-worker@a-1.service.d" / "limits.conf"
    limits.parent.mkdir()
    limits.write_text("old")
    backup.save(limits)
    limits.unlink()
    limits.parent.rmdir()
    backup.restore()
    assert limits.read_text() == "old"
    assert backup.target(host / "current") == ""
    backup.save(host / "current")
    assert backup.target(host / "current") == "releases/old"


def test_a_role_puts_back_nothing_of_another_one(host: Path, backup: Backup) -> None:
    """As after a workers' batch that was interrupted, and a Flower that fails then."""
    change(host, backup, "new\n")
    flower = Backup("flower", backup.root)
    flower.save(host / "flower.env")
    (host / "flower.env").write_text("new")
    flower.restore()
    flower.drop()
    assert not (host / "flower.env").exists()
    assert (host / "app.env").read_text() == "new\n"
    assert (host / "current").readlink() == Path("releases/new")
    backup.restore()
    assert as_it_was(host)


def test_what_two_roles_share_each_keeps_as_it_found_it(host: Path, backup: Backup) -> None:
    change(host, backup, "new\n")
    beat = Backup("celery_beat", backup.root)
    change(host, beat, "newer\n")
    beat.restore()
    assert (host / "app.env").read_text() == "new\n"
    assert (host / "current").readlink() == Path("releases/new")


LEGACY = {
    "/etc/systemd/system/celery-worker@.service": "celery_worker",
    "/etc/celery/nodes/a-1.env": "celery_worker",
    "/etc/systemd/system/celery-beat.service": "celery_beat",
    "/etc/nginx/sites-available/flower.conf": "flower",
    "/etc/systemd/system/flower.service": "flower",
    "/opt/celery/flowershop/current": "celery_worker",
    "/etc/celery/app.env": "celery_worker",
}


def test_what_an_earlier_version_kept_belongs_to_a_role() -> None:
    """By its path; what roles share by the company that it is in, the workers first."""
    paths = list(map(Path, LEGACY))
    assert {str(path): legacy_owner(path, paths) for path in paths} == LEGACY
    shared, flower = Path("/etc/celery/app.env"), Path("/etc/nginx/sites-available/flower.conf")
    assert legacy_owner(shared, [shared, flower]) == "flower"
    assert legacy_owner(shared, [shared]) == "celery_worker"


def test_what_an_earlier_version_kept_is_put_back_by_its_role_only(host: Path, backup: Backup) -> None:
    """It is older than what this version keeps after it."""
    unit = host / "celery-worker@.service"
    unit.write_text("oldest")
    backup.save(unit)
    for entry in backup.directory.iterdir():
        entry.rename(backup.root / entry.name)
    backup.directory.rmdir()
    unit.write_text("new")
    for other in OWNERS.keys() - {"celery_worker"}:
        Backup(other, backup.root).restore()
        Backup(other, backup.root).drop()
    assert (backup.paths(WAS), unit.read_text()) == ([unit], "new")
    backup.save(unit)
    backup.restore()
    assert unit.read_text() == "oldest"
    backup.drop()
    assert not backup.root.exists()
    assert all(not one.paths() for one in all_backups(backup.root))
