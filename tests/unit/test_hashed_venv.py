# SPDX-License-Identifier: MIT
"""The virtual environment of a tool is marked as whole when all is done, and not before."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from ansible_collections.fleet.celery.plugins.module_utils.hashed_venv import install, is_whole

if TYPE_CHECKING:
    from pathlib import Path

# A Python that makes "environments" of itself, and whose pip fails where a file says so.
PYTHON = """\
#!/bin/sh
case "$2" in
  venv) rm -rf "$4" && mkdir -p "$4/bin" && cp "$0" "$4/bin/python" ;;
  pip) echo "$*" >&2; env >&2; test ! -e "$FAIL" ;;
esac
"""


@pytest.fixture
def python(tmp_path: Path) -> str:
    """Return the path of the stand-in."""
    path = tmp_path / "python"
    path.write_text(PYTHON)
    path.chmod(0o755)
    return str(path)


def test_whole_or_unmarked(tmp_path: Path, python: str) -> None:
    """Only an installation that succeeded is marked; one that fails takes the mark of the one before away."""
    venv, fail = tmp_path / "opt" / "tool", tmp_path / "fail"
    assert install(venv, "tool==1\n", {"FAIL": str(fail)}, python) == ""
    assert is_whole(venv, "tool==1\n")
    assert not is_whole(venv, "tool==2\n")
    assert (venv / "requirements.txt").read_text() == "tool==1\n"
    fail.touch()
    assert install(venv, "tool==2\n", {"FAIL": str(fail)}, python)
    assert not (venv / "requirements.txt").exists()


def test_pip_is_held_to_the_hashes(tmp_path: Path, python: str) -> None:
    """Nothing is taken without a hash, nothing is compiled, and the index is in no command line."""
    (tmp_path / "fail").touch()
    env = {"FAIL": str(tmp_path / "fail"), "PIP_INDEX_URL": "https://user:secret@example.org/simple"}
    command, *variables = install(tmp_path / "tool", "tool==1\n", env, python).splitlines()
    assert "--require-hashes" in command
    assert "--only-binary=:all:" in command
    assert "secret" not in command
    assert "PIP_INDEX_URL=https://user:secret@example.org/simple" in variables
