# SPDX-License-Identifier: MIT
"""Which release the upgrade begins with (tests/fleet/upgrade), and what a checkout without it is told."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.fleet.upgrade import previous

if TYPE_CHECKING:
    from pathlib import Path

VERSIONS = ("0.1.0", "0.2.0")


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a commit for each version, and one more."""
    monkeypatch.setattr(previous, "ROOT", tmp_path)
    git("init", "-q", folder=tmp_path)
    for name in (*VERSIONS, "later"):
        (tmp_path / "version").write_text(name)
        git("add", "version", folder=tmp_path)
        git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", name, folder=tmp_path)
        git("tag", name, folder=tmp_path)
    git("tag", "-d", "later", folder=tmp_path)
    return tmp_path


def git(*words: str, folder: Path) -> str:
    """Run git in a folder, and return what it prints."""
    done = subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_the_newest_tag_is_the_release_before(clone: Path) -> None:
    assert previous.commit() == git("rev-parse", "0.2.0", folder=clone)
    assert (previous.checkout() / "version").read_text() == "0.2.0"
    assert previous.checkout() == previous.checkout()


def test_a_release_begins_with_the_one_before(clone: Path) -> None:
    git("checkout", "-q", "0.2.0", folder=clone)
    assert previous.commit() == git("rev-parse", "0.1.0", folder=clone)


def test_without_a_tag_it_is_the_first_one(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = git("rev-parse", "0.1.0", folder=clone)
    git("tag", "-d", *VERSIONS, folder=clone)
    monkeypatch.setattr(previous, "FIRST", first[:7])
    assert previous.commit() == first


def test_a_clone_without_that_commit_is_told_so(clone: Path) -> None:
    git("tag", "-d", *VERSIONS, folder=clone)
    with pytest.raises(previous.NoHistoryError, match=rf"does not have {previous.FIRST}.*--unshallow"):
        previous.commit()


def test_a_folder_that_is_no_clone_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(previous, "ROOT", tmp_path)
    with pytest.raises(previous.NoHistoryError, match="no clone"):
        previous.checkout()
