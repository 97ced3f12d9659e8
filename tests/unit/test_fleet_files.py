# SPDX-License-Identifier: MIT
"""The module fleet_files: a set of small files, exactly as asked for."""

from __future__ import annotations

import grp
import os
import pwd
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from ansible_collections.fleet.celery.plugins.module_utils import fleet_systemd
from ansible_collections.fleet.celery.plugins.module_utils.fleet_systemd import SystemdError
from ansible_collections.fleet.celery.plugins.modules import fleet_files
from ansible_collections.fleet.celery.plugins.modules.fleet_files import FilesError

if TYPE_CHECKING:
    from typing import Any

ME = {"owner": pwd.getpwuid(os.getuid()).pw_name, "group": grp.getgrgid(os.getgid()).gr_name}


def file(path: Path, content: str = "text\n", **options: Any) -> dict[str, Any]:
    """Return an item of `files`, with the defaults that AnsibleModule would have added."""
    return {"path": str(path), "content": content, "mode": "0644", "secret": False, **ME, **options}


def directory(path: Path, mode: str = "0755") -> dict[str, Any]:
    """Return an item of `directories`."""
    return {"path": str(path), "mode": mode, **ME}


def run(
    *files: Any, directories: Any = (), purge: Any = (), empty: Any = (), check: bool = False, **options: Any
) -> dict[str, Any]:
    """Run the module."""
    params = {
        "files": list(files),
        "directories": list(directories),
        "purge": list(purge),
        "empty": [str(path) for path in empty],
    }
    return fleet_files.apply(params, check=check, **options)


def mode(path: Path) -> int:
    """Return the permission bits of a path."""
    return path.stat().st_mode & 0o7777


def test_systemd_reads_its_units_again_when_one_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it cannot, the task fails."""
    units = tmp_path / "system"
    units.mkdir()
    monkeypatch.setattr(fleet_systemd, "UNIT_DIRECTORY", f"{units}/")
    ran: list[list[str]] = []

    def systemctl(argv: list[str]) -> tuple[int, str, str]:
        ran.append(argv)
        return len(ran) > 2, "", "no bus"

    unit, other = file(units / "a.service"), file(tmp_path / "a.env")
    run(unit, check=True, run=systemctl)
    run(other, run=systemctl)
    assert ran == []
    run(unit, run=systemctl)
    run(unit, run=systemctl)
    assert ran == [["systemctl", "--no-pager", "daemon-reload"]]
    run(purge=[f"{units}/*"], run=systemctl)
    assert len(ran) == 2
    with pytest.raises(SystemdError, match="no bus"):
        run(unit, run=systemctl)


def test_writes_what_is_missing_and_then_nothing(tmp_path: Path) -> None:
    """The second run finds everything as it should be."""
    target = tmp_path / "nodes" / "a.env"
    arguments: dict[str, Any] = {"directories": [directory(target.parent, "0750")]}
    first = run(file(target, mode="0600"), **arguments)
    assert (first["changed"], first["changed_files"]) == (True, [str(target)])
    assert target.read_text() == "text\n"
    assert (mode(target), mode(target.parent)) == (0o600, 0o750)
    assert run(file(target, mode="0600"), **arguments)["changed"] is False


@pytest.mark.parametrize("spoil", ["content", "mode", "link", "directory mode"])
def test_repairs_drift(tmp_path: Path, spoil: str) -> None:
    """Whatever was changed by hand is put right, and is reported."""
    target, elsewhere = tmp_path / "d" / "a.env", tmp_path / "elsewhere"
    arguments: dict[str, Any] = {"directories": [directory(target.parent)]}
    run(file(target), **arguments)
    if spoil == "content":
        target.write_text("other\n")
    elif spoil == "mode":
        target.chmod(0o666)
    elif spoil == "link":
        elsewhere.write_text("text\n")
        target.unlink()
        target.symlink_to(elsewhere)
    else:
        target.parent.chmod(0o777)
    assert run(file(target), **arguments)["changed"] is True
    assert target.is_file()
    assert not target.is_symlink()
    assert (target.read_text(), mode(target), mode(target.parent)) == ("text\n", 0o644, 0o755)


def test_a_file_never_has_a_wider_mode_than_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a secret gets its name it has its final mode, even under a careless umask."""
    seen: list[int] = []
    rename = Path.replace

    def spy(self: Path, to: Path) -> Path:
        seen.append(mode(self))
        return rename(self, to)

    monkeypatch.setattr(Path, "replace", spy)
    before = os.umask(0)
    try:
        run(file(tmp_path / "secret.env", mode="0600"))
    finally:
        os.umask(before)
    assert seen == [0o600]
    assert [path.name for path in tmp_path.iterdir()] == ["secret.env"]


def test_a_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk does not leave half a file."""
    target = tmp_path / "a.env"
    run(file(target, "old\n"))

    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        run(file(target, "new\n"))
    assert target.read_text() == "old\n"
    assert list(tmp_path.iterdir()) == [target]


def test_check_mode_predicts_and_touches_nothing(tmp_path: Path) -> None:
    """On a bare host neither the directory nor the owner exists yet."""
    target, stray = tmp_path / "none" / "a.env", tmp_path / "stray.env"
    stray.write_text("")
    told = run(
        file(target, owner="not-made-yet", group="not-made-yet"),
        directories=[directory(target.parent)],
        purge=[f"{tmp_path}/*.env"],
        check=True,
    )
    assert told["changed_files"] == [str(target)]
    assert told["removed_files"] == [str(stray)]
    assert list(tmp_path.iterdir()) == [stray]


def test_an_owner_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    """Outside of check mode there is no one to give the file to."""
    with pytest.raises(FilesError, match="no user 'nobody-of-this-name'"):
        run(file(tmp_path / "a", owner="nobody-of-this-name"))


def test_purge_removes_what_is_not_named(tmp_path: Path) -> None:
    """Files beyond the set go, with the drop-in directory that they leave empty; the rest stays."""
    kept = tmp_path / "celery-worker@a-1.service.d" / "limits.conf"
    gone = tmp_path / "celery-worker@b-1.service.d" / "limits.conf"
    shared = tmp_path / "celery-worker@c-1.service.d" / "limits.conf"
    for path in (kept, gone, shared):
        path.parent.mkdir()
        run(file(path))
    (shared.parent / "operators-own.conf").write_text("")
    purge = [f"{tmp_path}/celery-worker@*.service.d/limits.conf"]
    result = run(file(kept), purge=purge)
    assert result["removed_files"] == [str(gone), str(shared), str(gone.parent)]
    assert kept.exists()
    assert not gone.parent.exists()
    assert list(shared.parent.iterdir()) == [shared.parent / "operators-own.conf"]
    assert run(file(kept), purge=purge)["changed"] is False


def test_purge_keeps_a_directory_that_is_no_drop_in(tmp_path: Path) -> None:
    """An empty directory of another kind belongs to another program."""
    stray = tmp_path / "nodes" / "a.env"
    stray.parent.mkdir()
    stray.write_text("")
    run(purge=[f"{stray.parent}/*.env"])
    assert list(tmp_path.iterdir()) == [stray.parent]


@pytest.mark.parametrize("check", [True, False])
def test_directories_that_are_empty_at_last_are_removed(tmp_path: Path, check: bool) -> None:
    """The inner one first; one in which something is left stays, and so does what is no directory."""
    inner, shared = tmp_path / "celery" / "nodes", tmp_path / "shared"
    for path in (inner, shared):
        path.mkdir(parents=True)
        (path / "a.env").touch()
    (shared / "operators-own").touch()
    link = tmp_path / "link"
    link.symlink_to(inner)
    purge = [f"{tmp_path}/*/a.env", f"{tmp_path}/*/nodes/a.env"]
    result = run(purge=purge, empty=[inner, inner.parent, shared, link, tmp_path / "none"], check=check)
    assert result["removed_files"][-2:] == [str(inner), str(inner.parent)]
    assert inner.parent.exists() is check
    assert (shared / "operators-own").exists()
    if not check:
        assert run(purge=purge, empty=[inner, inner.parent, shared])["changed"] is False


def test_the_diff_shows_files_and_hides_secrets(tmp_path: Path) -> None:
    """An operator sees what changes, but no password: neither the old one nor the new one."""
    public, secret = tmp_path / "public", tmp_path / "secret"
    run(file(public, "a=1\n"), file(secret, "pw=old\n"))
    diff = run(file(public, "a=2\n"), file(secret, "pw=new\n", secret=True), check=True)["diff"]
    assert (diff[0]["before"], diff[0]["after"]) == ("a=1\n", "a=2\n")
    assert diff[1]["before"] != diff[1]["after"]
    only_mode = run(file(secret, "pw=old\n", secret=True, mode="0600"), check=True)["diff"]
    assert "pw=" not in str([diff[1], only_mode])
    assert "0600" in only_mode[0]["after_header"]


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([file(Path("relative"))], "not an absolute path"),
        ([file(Path("/x/a")), file(Path("/x/a"))], "named twice"),
        ([file(Path("/x/a"), mode="rw")], "not an octal number"),
    ],
)
def test_bad_arguments_are_refused(items: Any, message: str) -> None:
    """Before anything is written."""
    with pytest.raises(FilesError, match=message):
        run(*items, check=True)


def test_what_is_not_valid_is_not_written(tmp_path: Path) -> None:
    """Neither anything beside it. What is there already is not asked about again, nor is it in check mode."""
    asked = []

    def validate(command: str) -> tuple[int, str, str]:
        program, path = command.split()
        asked.append((program, Path(path).read_text()))
        return (1, "", "line 1: unknown directive") if "bad" in asked[-1][1] else (0, "", "")

    good, bad = tmp_path / "good.conf", tmp_path / "bad.conf"
    checked = {"validate": "check %s"}
    with pytest.raises(FilesError, match=r"bad\.conf was not written.*unknown directive"):
        run(file(good, **checked), file(bad, "bad\n", **checked), run=validate)
    assert list(tmp_path.iterdir()) == []
    assert asked == [("check", "text\n"), ("check", "bad\n")]
    run(file(good, **checked), run=validate)
    assert len(asked) == 3
    run(file(good, **checked), run=validate)
    run(file(bad, "bad\n", **checked), run=validate, check=True)
    assert len(asked) == 3
