# SPDX-License-Identifier: MIT
"""The ledger: who ran what, as the tasks noted it themselves, on the disks of the hosts that ran them.

It owes nothing to Celery, whose word is what is in doubt, nor to Redis, which may be what died. Each run of
`demo.tasks.record` adds a line to a file of its host as it starts, and one as it ends.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.fleet.support.hosts import eventually

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.fleet.support.fleet import Fleet
    from tests.fleet.support.hosts import Host

TASK = "demo.tasks.record"
FILE = "/var/lib/demo/ledger.jsonl"
# The sandbox of a node lets it write nowhere else. What the users of the pools share belongs to their group.
DROPIN = "/etc/systemd/system/celery-worker@.service.d/ledger.conf"
# Prints when the host was started, in seconds since the epoch by its clock as it is now.
BOOT = "python3 -c 'import time; print(time.time() - time.monotonic())'"
DROPIN_TEXT = f"[Service]\nReadWritePaths=-{Path(FILE).parent}\nEnvironment=DEMO_LEDGER={FILE}\n"
# A host that is not of the fleet yet has no such group.
MAKE_FOLDER = 'getent group celery || groupadd -r celery; install -d -g celery -m 2770 "$(dirname "$1")"'


@dataclass
class Run:
    """One run of a task; it has no end if what ran it died."""

    name: str
    node: str
    delivery: str
    redelivered: bool
    start: float
    end: float | None = None


class Ledger:
    """The ledger of a fleet, which is kept in a file on each host of workers."""

    def __init__(self, fleet: Fleet) -> None:
        """Take note of the hosts."""
        self._fleet = fleet
        self._hosts = fleet.group("workers")

    def install(self) -> None:
        """Let the nodes write, which takes a restart of each."""
        self.lay()
        self._restart()

    def lay(self) -> None:
        """Let nodes write that are started from here on."""
        for host in self._hosts:
            host.sh(MAKE_FOLDER, FILE)
            host.sh('mkdir -p "$(dirname "$1")" && cat >"$1"', DROPIN, text=DROPIN_TEXT)

    def remove(self) -> None:
        """Leave the hosts as they were."""
        self.take_back()
        self._restart()

    def take_back(self) -> None:
        """Remove its files, and restart nothing; the folder stays, for nodes that run have it mounted."""
        for host in self._hosts:
            host.sh('rm -rf "$1" "$(dirname "$2")"', DROPIN, FILE)
            host.sh('d=$(dirname "$1"); [ ! -e "$d" ] || rmdir --ignore-fail-on-non-empty "$d"', DROPIN)

    def runs(self, trial: str) -> list[Run]:
        """Return every run of a trial's tasks so far."""
        return [run for host in self._hosts for run in self._noted_by(host, trial)]

    def _noted_by(self, host: Host, trial: str) -> list[Run]:
        """Return the runs on one host."""
        boot, *lines = host.sh(f'{BOOT}; grep -F "$1" "$2" || true', f'"{trial}:', FILE).splitlines()
        return paired(lines, float(boot))

    def _restart(self) -> None:
        """Restart the nodes, and wait until the fleet is whole."""
        for host in self._hosts:
            host.sh("systemctl daemon-reload && systemctl restart celery.target", timeout=300)
        eventually(self._fleet.is_whole, timeout=120)


def paired(lines: Iterable[str], boot: float = 0) -> list[Run]:
    """Return the runs that the lines of one host tell of, oldest first.

    Args:
        lines: The lines.
        boot: When the host was started, which is where their times begin.

    >>> line = {"name": "a", "node": "n", "delivery": "d", "redelivered": False}
    >>> [died, done] = paired(json.dumps({**line, "event": event, "at": at})
    ...                       for at, event in enumerate(["start", "start", "end"]))
    >>> died.end, done.start, done.end
    (None, 1, 2)
    """
    runs: list[Run] = []
    under_way: dict[tuple[str, ...], list[Run]] = defaultdict(list)
    for line in lines:
        noted: dict[str, Any] = json.loads(line)
        event, at = noted.pop("event"), boot + noted.pop("at")
        started = under_way[noted["name"], noted["node"], noted["delivery"]]
        if event == "end":
            started.pop().end = at  # what started before, on this node, died with it
        else:
            started.append(Run(**noted, start=at))
            runs.append(started[-1])
    return runs
