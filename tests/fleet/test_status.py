# SPDX-License-Identifier: MIT
"""`fleet status` knows what the inventory wants, and what is there."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.fleet.support.hosts import eventually

if TYPE_CHECKING:
    from tests.fleet.support.fleet import Fleet

pytestmark = pytest.mark.group("workers")


def test_all_nodes_of_the_inventory_are_wanted_and_there(fleet: Fleet) -> None:
    """Each has said when it was started; nothing else is wanted."""

    def knows_all() -> bool:
        found = json.loads(fleet.group("workers")[0].sh("fleet-celery fleet status --json || true"))
        assert set(found["wanted"]) == fleet.celery_names
        assert found["beat"] == ("redbeat" if fleet.group("beat") else "")
        assert {node["name"] for node in found["nodes"] if node["lease"] > 0} == fleet.celery_names
        assert not [problem for problem in found["problems"] if "inventory" in problem]
        return True

    eventually(knows_all, timeout=60)


@pytest.mark.long
@pytest.mark.faults
def test_a_node_that_falls_again_and_again_is_told_of(fleet: Fleet) -> None:
    """Though it is there each time that somebody looks."""
    node = fleet.nodes[0]

    def is_back() -> bool:
        found = json.loads(node.host.sh("fleet-celery fleet status --json || true"))
        assert any(one["name"] == node.celery_name and one["proved"] for one in found["nodes"])
        return True

    for _ in range(3):
        eventually(is_back, timeout=120)
        node.host.sh('systemctl kill --signal=KILL -- "$1"', node.unit)
        eventually(lambda: node.host.units([node.unit])[node.unit].runs, timeout=120)
    eventually(is_back, timeout=120)
    told = node.host.infra.run("fleet-celery fleet status")
    assert told.rc == 1
    assert f"{node.celery_name} ended and was restarted" in told.stdout
    with fleet.broker.connect("admin") as client:
        client.hdel("fleet:history", node.celery_name)  # it was on purpose; others ask whether all is well
