# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A virtual environment for a tool, pinned by hash, made by Python's own pip.

It is for a tool that has to be there before anything better than pip is. A copy of its requirements, which is
written last, says that it is whole. The module pip repairs no environment that an interrupted run left half
made, and needs python3-packaging on the host.
"""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

PYTHON = "/usr/bin/python3"
PIP = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}


def is_whole(path: Path, requirements: str) -> bool:
    """Return whether an environment is there, and has what it should."""
    marker = path / "requirements.txt"
    return marker.is_file() and marker.read_text(encoding="utf-8") == requirements


def install(path: Path, requirements: str, env: Mapping[str, str], python: str = PYTHON) -> str:
    """Make an environment anew.

    Args:
        path: Its directory.
        requirements: Text of a requirements file in which everything has a hash.
        env: Variables of pip, such as its index, proxies and certificates.
        python: The interpreter to make it with.

    Returns:
        What went wrong; nothing if all went well.
    """
    wanted = path.with_name(f"{path.name}.requirements")
    before = os.umask(0o022)  # every user may read it, and only root may change it
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        wanted.write_text(requirements, encoding="utf-8")
        venv = [python, "-m", "venv", "--clear", str(path)]
        pip = [
            str(path / "bin" / "python"),
            "-m",
            "pip",
            "install",
            "--require-hashes",
            "--only-binary=:all:",
        ]
        for argv in (venv, [*pip, "--requirement", str(wanted)]):
            whole = {**os.environ, **PIP, **env}
            result = subprocess.run(argv, env=whole, capture_output=True, text=True, check=False)
            if result.returncode:
                return result.stderr.strip() or result.stdout.strip()
        wanted.replace(path / "requirements.txt")
        return ""
    finally:
        os.umask(before)
