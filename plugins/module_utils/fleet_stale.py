# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a service runs with other files than the host has now.

Each service of the fleet writes the checksums of the files that shape it to a fingerprint when it starts.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection


def read_stamp(fingerprint: Path) -> dict[str, str]:
    """Return the checksum of each file as it was when the unit started; nothing where that is not known."""
    try:
        lines = fingerprint.read_text().splitlines()
    except FileNotFoundError:
        return {}
    # sha256sum prints "<sum>  <path>"; a file it cannot read is missing from the fingerprint
    return {path: checksum for checksum, _separator, path in (line.partition("  ") for line in lines)}


def is_stale(fingerprint: Path, changed_files: Collection[str]) -> bool:
    """Whether a file that the fingerprint names is not what it was, or no fingerprint tells."""
    sums = read_stamp(fingerprint)
    return not sums or any(
        path in changed_files or checksum(Path(path)) != then for path, then in sums.items()
    )


def checksum(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal, or nothing if there is no such file."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        return ""
