# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A lock on the whole fleet: a file on one host, which names the run that has it."""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ansible_collections.fleet.celery.plugins.module_utils.files import replace_file
from ansible_collections.fleet.celery.plugins.module_utils.paths import STATE_DIR

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

LOCK = Path(STATE_DIR, "lock")


def holder(lock: Path = LOCK) -> dict[str, Any] | None:
    """Return the run that has the lock, or None."""
    try:
        found: dict[str, Any] = json.loads(lock.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:  # the file was edited by hand, so the holder is not known
        return {"id": "", "who": "somebody", "what": "something", "since": "an unknown time"}
    return found


def take(run: dict[str, Any], previous_run: str = "", lock: Path = LOCK) -> dict[str, Any]:
    """Take the lock, if no run has it, or only the previous run that it is taken from.

    Args:
        run: The run that takes it: its `id`, and what others are told of it.
        previous_run: The `id` of the run that had it.
        lock: The file.

    Returns:
        The run that has it now.
    """
    lock.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    with alone(lock):
        found = holder(lock)
        if found and found["id"] not in {run["id"], previous_run or run["id"]}:
            return found
        replace_file(lock, json.dumps(run))
    return run


def free(identity: str, lock: Path = LOCK) -> bool:
    """Give the lock back, and return whether this one had it."""
    if not lock.parent.is_dir():
        return False
    with alone(lock):
        found = holder(lock)
        if found is None or found["id"] != identity:
            return False
        lock.unlink()
    return True


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Let nobody else look at the lock, and take it, at the same moment."""
    handle = os.open(lock.parent, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
