# SPDX-License-Identifier: MIT
"""A Redis that has reached its memory limit: nodes go on with what it has, and make room."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from fleet_testing.commands import wait_until
from fleet_testing.dead_letters import failing
from fleet_testing.params import FIRST_OF_POOLS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fleet_testing.broker import Broker

pytestmark = pytest.mark.server
FLAGS = ("--queues=default", "--concurrency=2", "--without-gossip", "--without-mingle")
LEASE = 6  # seconds
TASKS = 20


@pytest.mark.parametrize("pool", FIRST_OF_POOLS)
def test_nodes_empty_the_queues_of_a_full_redis(
    broker: Broker, connect: Callable[[Broker], Any], pool: str, tmp_path: Path
) -> None:
    """A node that starts without work waits, keeps its lease, and then runs each message once."""
    admin, web, runs = broker.client("admin"), connect(broker), tmp_path / "runs"
    admin.flushall()
    for _ in range(TASKS):
        web.send_task("failing.note", (str(runs),), queue="heavy", ignore_result=True)
    fleet = failing(broker, FLEET_LEASE=str(LEASE))
    admin.config_set("maxmemory", 1)
    with fleet.worker(f"full-{pool}", f"--pool={pool}", *FLAGS) as node:
        try:
            time.sleep(2 * LEASE)
            assert node.process.poll() is None, "\n".join(node.lines(""))
            assert lease_left(admin, f"full-{pool}@test") > 0
            admin.rename("heavy", "default")
            wait_until(lambda: runs.exists() and len(runs.read_text().splitlines()) == TASKS)
            wait_until(lambda: not admin.exists(f"unacked:full-{pool}@test"))
        finally:
            admin.config_set("maxmemory", 0)
        assert web.send_task("failing.note", (str(runs),), queue="default").get(40) == TASKS + 1
        assert not node.lines("Traceback"), "\n".join(node.lines(""))


def lease_left(admin: Any, node: str) -> float:
    """Return for how many seconds a node's lease still is."""
    seconds, micros = admin.time()
    return float(admin.zscore("fleet:leases", node) or 0) - float(seconds) - float(micros) / 1e6
