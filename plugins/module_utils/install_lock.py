# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One installation at a time on a host: what an interrupted run left behind is ended before the next begins.

When Ansible is interrupted, its module goes on on the host, and would install beside the next run's. The
fleet's own lock keeps other operators out, so another holder of this lock belongs to a run that is over.
"""

from __future__ import annotations

import fcntl
import os
import signal
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATIENCE = 60.0  # seconds that what was told to end may take


class StillHeldError(Exception):
    """Another process installs, and does not end."""


@contextmanager
def only_one(
    path: Path, *, stop: Callable[[], None] = lambda: None, patience: float = PATIENCE
) -> Iterator[int]:
    """Hold the lock, and yield the id of the process that had to be ended for it, or 0.

    Args:
        path: The lock's file; it stays, and holds the id of the process that has the lock.
        stop: Ends what that process started elsewhere, such as a unit of systemd.
        patience: Seconds to wait for its end.

    Raises:
        StillHeldError: It did not end; the message names it.
    """
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        ended = 0
        deadline = time.monotonic() + patience
        while not _take(descriptor):
            if time.monotonic() > deadline:
                raise StillHeldError(f"Process {ended} installs here, and did not end in {patience:g} s.")
            if holder := _holder(descriptor):
                ended = holder
                for process in (holder, *children(holder)):
                    _terminate(process)
            stop()
            time.sleep(0.2)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield ended
    finally:
        os.close(descriptor)


def children(process: int) -> list[int]:
    """Return the ids of all that a process started, directly or not."""
    found: list[int] = []
    for listing in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            started = [int(word) for word in listing.read_text().split()]
        except OSError:  # it ended meanwhile
            continue
        for child in started:
            found += [child, *children(child)]
    return found


def _take(descriptor: int) -> bool:
    """Take the lock if it is free."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(descriptor: int) -> int:
    """Return the id of the process that has the lock, or 0 while it has not written it yet."""
    text = os.pread(descriptor, 32, 0).strip()
    return int(text) if text.isdigit() else 0


def _terminate(process: int) -> None:
    """Ask a process to end."""
    try:
        os.kill(process, signal.SIGTERM)
    except ProcessLookupError:
        return
