# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The locks of apt and dpkg: a fresh machine's first upgrades hold them for minutes."""

from __future__ import annotations

import fcntl
import struct
import time
from pathlib import Path

PATIENCE = 600  # seconds
LOCKS = (
    "var/lib/dpkg/lock-frontend",
    "var/lib/dpkg/lock",
    "var/lib/apt/lists/lock",
    "var/cache/apt/archives/lock",
)
FLOCK = "hh4xqqi4x"  # struct flock, on 64 bits: type, whence, start, length, process


def holder(root: Path = Path("/")) -> str:
    """Return who holds one of the locks, such as `unattended-upgr (process 812)`, or nothing."""
    for name in LOCKS:
        try:
            with (root / name).open("rb") as file:
                asked = struct.pack(FLOCK, fcntl.F_WRLCK, 0, 0, 0, 0)
                kind, *_, process = struct.unpack(FLOCK, fcntl.fcntl(file, fcntl.F_GETLK, asked))
        except FileNotFoundError:
            continue
        if kind != fcntl.F_UNLCK:
            return f"{_name(process)} (process {process})"
    return ""


def wait(patience: float = PATIENCE, root: Path = Path("/")) -> tuple[str, str]:
    """Wait until nobody holds a lock.

    Args:
        patience: For how many seconds at the most.
        root: The file system.

    Returns:
        Who held one when the wait began, and who still does.
    """
    first = now = holder(root)
    deadline = time.monotonic() + patience
    while now and time.monotonic() < deadline:
        time.sleep(min(2.0, patience))
        now = holder(root)
    return first, now


def _name(process: int) -> str:
    """Return the name of a process."""
    try:
        return Path(f"/proc/{process}/comm").read_text(encoding="utf-8").strip()
    except OSError:  # it ended meanwhile, or is out of sight
        return "a program"
