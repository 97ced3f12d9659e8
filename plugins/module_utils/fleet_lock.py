"""A lock on the whole fleet: a file on one host, which says who has it.

The file is made whole under another name, and gets its own by a hard link, which fails if there is one.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

LOCK = Path("/var/lib/fleet/lock")


def holder(lock: Path = LOCK) -> dict[str, Any] | None:
    """Return who has the lock, or None."""
    try:
        found: dict[str, Any] = json.loads(lock.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:  # somebody has written to it; whoever it was is not to be guessed
        return {"id": "", "who": "somebody", "what": "something", "since": "an unknown time"}
    return found


def take(who: dict[str, Any], instead_of: str = "", lock: Path = LOCK) -> dict[str, Any]:
    """Take the lock, if nobody has it, or who has it is the one in place of whom it is taken.

    Args:
        who: `id`, and what is said of it to others.
        instead_of: The `id` of the one who had it.
        lock: The file.

    Returns:
        Who has it now.
    """
    lock.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    found = holder(lock)
    if found and found["id"] not in {who["id"], instead_of or who["id"]}:
        return found
    handle, name = tempfile.mkstemp(dir=lock.parent, prefix=".lock.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(who, file)
        if found:
            Path(name).replace(lock)
        else:
            os.link(name, lock)
    except FileExistsError:
        return holder(lock) or take(who, instead_of, lock)
    finally:
        Path(name).unlink(missing_ok=True)
    return who


def free(identity: str, lock: Path = LOCK) -> bool:
    """Give the lock back, and return whether this one had it."""
    found = holder(lock)
    if found is None or found["id"] != identity:
        return False
    lock.unlink()
    return True
