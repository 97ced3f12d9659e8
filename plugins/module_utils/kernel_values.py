# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Values under /proc/sys and /sys, as far as the kernel lets one set them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

CHOSEN = re.compile(r"\[(\S+)]")


def current(text: str) -> str:
    """Return a value; of several, as in `always [madvise] never`, the one that is chosen."""
    chosen = CHOSEN.search(text)
    return chosen[1] if chosen else text.strip()


def set_values(values: list[dict[str, Any]], *, check: bool) -> tuple[list[str], dict[str, str]]:
    """Write the values that are not as wanted.

    Args:
        values: `path`, `value`, `accept` and `reason` of each, as in the option `kernel` of fleet_files.
        check: Whether to write nothing.

    Returns:
        The paths that were, or in check mode would be, written; and those that were left alone, each with a
        text that says why, and what that means.
    """
    changed: list[str] = []
    refused: dict[str, str] = {}
    for item in values:
        path = Path(item["path"])
        try:
            now = current(path.read_text())
            if now in {item["value"], *item["accept"]}:
                continue
            if not check:
                path.write_text(item["value"])
            changed.append(item["path"])
        except OSError as error:
            refused[item["path"]] = (
                f"the kernel lets nobody set it from here ({error.strerror}). Set it to {item['value']} on "
                f"the machine, if you can: {item['reason']}."
            )
    return changed, refused
