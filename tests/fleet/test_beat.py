# SPDX-License-Identifier: MIT
"""The schedule fires, once, whatever process dies."""

from __future__ import annotations

import json
import re
from datetime import datetime
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from tests.fleet.faults.faults import REDIS
from tests.fleet.support.hosts import eventually

if TYPE_CHECKING:
    from tests.fleet.support.fleet import Fleet
    from tests.fleet.support.hosts import Host

pytestmark = pytest.mark.group("beat")

UNIT = "celery-beat.service"
TICK = re.compile(r"\btick (\d{4}-\d\d-\d\dT\S+)$", re.MULTILINE)


def ticks(fleet: Fleet, since: str) -> list[datetime]:
    """Return when the scheduled task of the demo app ran, on whatever node."""
    read = 'journalctl --no-pager --output=cat --since="$1" --unit="celery-worker@*" --grep="tick 2" || true'
    journals = [host.sh(read, since) for host in fleet.group("workers")]
    return sorted(datetime.fromisoformat(time) for journal in journals for time in TICK.findall(journal))


def interval(fleet: Fleet) -> float:
    """Return how many seconds are between two ticks, as the schedule in Redis has it."""
    with fleet.broker.connect("admin") as client:
        return float(json.loads(client.hget("redbeat:tick", "definition"))["schedule"]["every"])


def holders(fleet: Fleet) -> list[str]:
    """Return the hosts whose Beat runs and has not been told to wait for the lock."""
    with fleet.broker.connect("admin") as client:
        assert client.exists("redbeat::lock")
    return [host.name for host in fleet.group("beat") if host.unit(UNIT).runs]


def test_fires_once_each_time(fleet: Fleet) -> None:
    """Each tick comes once, when it is due; a node that is busy may run it late."""
    host = fleet.group("beat")[0]
    since = host.unit(UNIT)["ActiveEnterTimestamp"].split(" ", 1)[1].removesuffix(" UTC")
    every = interval(fleet)
    eventually(lambda: len(ticks(fleet, since)) > 2, timeout=4 * every)
    seen = ticks(fleet, since)
    gaps = [(after - before).total_seconds() for before, after in pairwise(seen)]
    assert all(every / 2 < gap < every * 1.5 for gap in gaps), gaps


def test_one_holds_the_lock(fleet: Fleet) -> None:
    """One Beat has the lock, and renews it before it ends."""
    timeout = 30
    with fleet.broker.connect("admin") as client:
        left = client.ttl("redbeat::lock")
        assert 0 < left <= timeout
        eventually(lambda: client.ttl("redbeat::lock") > left - 1, timeout=timeout / 2)


@pytest.mark.faults
def test_killed_beat_comes_back(fleet: Fleet, host: Host) -> None:
    """A Beat that is killed is back, and the schedule goes on, when the lock of the dead one has ended."""
    before = host.unit(UNIT)
    host.sh('systemctl kill --signal=KILL "$1"', UNIT)
    eventually(lambda: host.unit(UNIT).runs and host.unit(UNIT).start != before.start, timeout=10)
    since = host.sh("date --utc '+%F %T'").strip()
    eventually(lambda: ticks(fleet, since), timeout=30 + 2 * interval(fleet))


@pytest.mark.faults
def test_hung_beat_is_started_anew(fleet: Fleet, host: Host) -> None:
    """A Beat that neither ends nor sends is killed by systemd, and the schedule goes on."""
    before = host.unit(UNIT)
    watchdog = host.sh('systemctl show --property=WatchdogUSec --value "$1"', UNIT).strip()
    assert watchdog not in {"0", "infinity"}
    host.sh('systemctl kill --signal=STOP "$1"', UNIT)
    eventually(lambda: host.unit(UNIT).runs and host.unit(UNIT).start != before.start, timeout=240)
    assert "watchdog" in host.sh('journalctl --no-pager --output=cat --unit="$1" --lines=200', UNIT)
    since = host.sh("date --utc '+%F %T'").strip()
    eventually(lambda: ticks(fleet, since), timeout=60 + 2 * interval(fleet))


@pytest.mark.faults
def test_beat_waits_for_redis(fleet: Fleet, host: Host) -> None:
    """For longer than it sleeps, so that it notices: it is not started anew, and has its lock still."""
    fleet.broker.keep_denials()
    before = fleet.starts()
    broker = fleet.group("redis")[0]
    broker.sh('systemctl stop "$1"; sleep 8; systemctl start "$1"', REDIS, timeout=60)
    eventually(fleet.is_whole, timeout=60)
    assert (host.name, UNIT) not in fleet.restarted(before)
    since = host.sh("date --utc '+%F %T'").strip()
    eventually(lambda: ticks(fleet, since), timeout=2 * interval(fleet))
