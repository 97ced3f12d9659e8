"""`celery -A fleet_runtime.app fleet status`: what it shows of a fleet, and what it calls wrong."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from fleet_runtime import keys
from fleet_runtime.schedule import Schedule
from fleet_runtime.status import Node, QueueState, Server, Status

if TYPE_CHECKING:
    from pathlib import Path

    from app.tests.broker import Broker
    from app.tests.commands import Fleet

SERVER = Server("7.0.15", "master", 100, 1000, persistent=True, loading=False, replicas=0, link_up=True)
WELL = Status(
    server=SERVER,
    nodes=[Node("default-1@w", lease=20, reserved=0, queues=["default"])],
    queues=[QueueState("default", 0, None, 1)],
    dead_letters=0,
    schedule=Schedule(25, "nightly", "2026-01-01T00:00:00+00:00"),
)


def test_a_fleet_that_is_well_has_no_problem() -> None:
    """Dead letters are no problem of the fleet's, and an empty schedule needs no Beat."""
    assert WELL.problems() == []
    assert replace(WELL, dead_letters=7, schedule=Schedule(None, None, None)).problems() == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"server": replace(SERVER, loading=True)}, "loading"),
        ({"server": replace(SERVER, persistent=False)}, "append-only file refuses"),
        ({"server": replace(SERVER, memory=950)}, "95% of its memory"),
        ({"server": replace(SERVER, role="slave", link_up=False)}, "primary is away"),
        ({"nodes": [*WELL.nodes, Node("a-1@h", lease=-5, reserved=3)]}, "a-1@h .* holds 3 messages"),
        ({"nodes": []}, "No node lives"),
        ({"queues": [QueueState("lost", 4, 60, 0)]}, "queue lost, where 4 messages wait"),
        ({"schedule": Schedule(None, "nightly", None)}, "no Beat holds its lock"),
    ],
)
def test_what_is_wrong_is_said(change: dict[str, Any], said: str) -> None:
    """Each thing that is wrong is one sentence."""
    (problem,) = replace(WELL, **change).problems()
    assert re.search(said, problem)


def test_a_node_and_a_queue_that_waits(fleet: Fleet, broker: Broker, web: Any) -> None:
    """What waits is counted in every priority, with the age of the oldest."""
    for priority in (0, 9):
        web.send_task("fleet.probe", queue="heavy", priority=priority)
    admin = broker.client("admin")
    admin.lpush("io", b"no message at all")
    facts = {
        "pool": "solo",
        "concurrency": 1,
        "queues": ["heavy"],
        "release": "r",
        "started": time.time() - 60,
    }
    admin.hset(keys.NODES, "heavy-1@test", json.dumps(facts))
    admin.zadd(keys.LEASES, {"heavy-1@test": time.time() + 25, "gone-1@test": time.time() - 5})
    admin.hset(keys.unacked("gone-1@test"), "tag", "[]")
    time.sleep(1)

    done = fleet.run("ops", "fleet", "status", "--json")
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    nodes = {node["name"]: node for node in found["nodes"]}
    assert nodes["heavy-1@test"]["lease"] == pytest.approx(20, abs=10)
    assert nodes["heavy-1@test"]["uptime"] == pytest.approx(65, abs=10)
    assert nodes["gone-1@test"]["lease"] < 0
    assert nodes["gone-1@test"]["reserved"] == 1
    queues = {queue["name"]: queue for queue in found["queues"]}
    assert (queues["heavy"]["depth"], queues["heavy"]["consumers"]) == (2, 1)
    assert 1 <= queues["heavy"]["oldest"] < 30
    assert any("gone-1@test" in problem for problem in found["problems"])

    shown = fleet.run("ops", "fleet", "status").stdout
    for text in ("heavy-1@test", "solo x1", "gone-1@test", "ended", "Redis         7.", "! "):
        assert text in shown, shown


def test_it_answers_soon_when_redis_is_away(fleet: Fleet, tmp_path: Path) -> None:
    """An operator who asks what is wrong is told, and does not wait."""
    del tmp_path
    nowhere: Any = _Nowhere(fleet.broker)
    fleet_without = type(fleet)(nowhere, fleet.environment["FLEET_APP"], **_rest(fleet))
    began = time.monotonic()
    done = fleet_without.run("ops", "fleet", "status")
    assert done.returncode != 0
    assert "Redis cannot be asked" in done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - began < 20  # most of it is Python's start


class _Nowhere:
    """A broker that is away."""

    def __init__(self, broker: Broker) -> None:
        """Take the real one's URL."""
        self._broker = broker

    def url(self, user: str) -> str:
        """Return a URL with a port on which nobody listens."""
        return str(self._broker.url(user)).replace(f":{self._broker.port}/", ":1/")


def _rest(fleet: Fleet) -> dict[str, str]:
    """Return the variables of a fleet, besides its app."""
    return {name: value for name, value in fleet.environment.items() if name not in ("FLEET_APP", "PATH")}
