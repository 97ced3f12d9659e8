# SPDX-License-Identifier: MIT
"""Reads what processes and Redis have used so far."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

TICK = 1 / os.sysconf("SC_CLK_TCK")  # seconds
PSS = re.compile(r"^Pss: +(\d+) kB$", re.MULTILINE)


@dataclass(frozen=True)
class Process:
    """A process of this machine.

    Attributes:
        pid: Its number.
        session: That of the leader of its session.
        cpu: Its seconds of CPU.
        ended: Those of its children that have ended.
    """

    pid: int
    session: int
    cpu: float
    ended: float


def processes(sessions: Collection[int]) -> Iterator[Process]:
    """Yield the processes of sessions. A process group would not do: rq gives each job one of its own."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:  # it has just ended
            continue
        # proc(5): 3 state, 6 session, 14 and 15 time of its own, 16 and 17 of its ended children
        fields = [int(field) for field in text.rpartition(")")[2].split()[1:]]
        if fields[2] in sessions:
            ticks = fields[10:14]
            yield Process(int(stat.parent.name), fields[2], sum(ticks[:2]) * TICK, sum(ticks[2:]) * TICK)


def cpu(sessions: Collection[int]) -> tuple[float, float]:
    """Return the seconds of CPU of the leaders of sessions, and of all other processes in them."""
    found = list(processes(sessions))
    leaders = sum(process.cpu for process in found if process.pid in sessions)
    return leaders, sum(process.cpu + process.ended for process in found) - leaders


def memory(pid: int) -> float:
    """Return the MiB that a process takes, where of pages that n processes share each has 1/n."""
    found = PSS.search(Path(f"/proc/{pid}/smaps_rollup").read_text())
    return int(found[1]) / 1024 if found else 0.0


def redis_cpu(said: Any) -> float:
    """Return the seconds of CPU that a server has used, by what INFO says."""
    return float(said["used_cpu_user"] + said["used_cpu_sys"])
