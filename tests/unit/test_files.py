# SPDX-License-Identifier: MIT
"""The module_util files: a file or a link is replaced in one step, or stays as it was."""

from __future__ import annotations

import re
from pathlib import Path
from unittest import mock

import pytest
from ansible_collections.fleet.celery.plugins.module_utils.files import copy, replace_file, replace_link

from tests.unit.rendering import PROJECT


def test_a_file_has_its_mode_before_it_has_its_name(tmp_path: Path) -> None:
    modes: list[int] = []

    def replace(new: Path, path: Path) -> None:
        modes.append(new.stat().st_mode & 0o777)
        new.rename(path)

    with mock.patch("pathlib.Path.replace", replace):
        replace_file(tmp_path / "a", "text é\n", mode=0o640)
    assert modes == [0o640]
    assert (tmp_path / "a").read_text(encoding="utf-8") == "text é\n"
    replace_file(tmp_path / "a", b"\x00")
    assert (tmp_path / "a").read_bytes() == b"\x00"
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600


def test_a_file_that_cannot_be_replaced_is_as_it_was(tmp_path: Path) -> None:
    """As on a full disk; and nothing is left beside it."""
    (tmp_path / "a").write_text("old")
    with (
        mock.patch("pathlib.Path.replace", side_effect=OSError("no space")),
        pytest.raises(OSError, match="space"),
    ):
        replace_file(tmp_path / "a", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    replace_link(tmp_path / "link", "file")
    replace_link(tmp_path / "link", "elsewhere")
    assert (tmp_path / "link").readlink() == Path("elsewhere")
    replace_link(tmp_path / "link", "file")
    replace_file(tmp_path / "link", "new")
    assert (tmp_path / "file").read_text() == "old"
    assert not (tmp_path / "link").is_symlink()


def test_a_copy_has_the_mode_and_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    (tmp_path / "file").chmod(0o604)
    (tmp_path / "link").symlink_to("nowhere")
    copy(tmp_path / "file", tmp_path / "file copied")
    copy(tmp_path / "link", tmp_path / "link copied")
    assert (tmp_path / "file copied").read_text() == "text"
    assert (tmp_path / "file copied").stat().st_mode & 0o777 == 0o604
    assert (tmp_path / "link copied").readlink() == Path("nowhere")


def test_nothing_else_replaces_files() -> None:
    """There is one way to do it, which waits for the disk and leaves nothing behind."""
    own_ways = re.compile(r"mkstemp|os\.replace|\.replace\((path|target|self\.)")
    found = {path.name for path in PROJECT.glob("plugins/*/*.py") if own_ways.search(path.read_text())}
    # hashed_venv marks an environment as whole, whose files it does not wait for either
    assert found == {"files.py", "hashed_venv.py"}
