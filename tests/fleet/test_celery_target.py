"""`systemctl start|stop|restart celery.target` does what it says, for all that is Celery on a host."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.fleet.support.hosts import eventually

if TYPE_CHECKING:
    from tests.fleet.support.clients import Producer
    from tests.fleet.support.fleet import Fleet

pytestmark = [pytest.mark.faults, pytest.mark.group("workers")]


@pytest.fixture
def celery_units(fleet: Fleet) -> list[str]:
    """The units of the first host with nodes that are Celery's."""
    units = fleet.units(fleet.group("workers")[0])
    return [unit for unit in units if unit not in ("redis-server.service", "nginx.service")]


def test_target(fleet: Fleet, producer: Producer, celery_units: list[str]) -> None:
    """It stops all of Celery and nothing else, starts it, and restarts it; what was sent meanwhile is run."""
    host = fleet.group("workers")[0]
    before = fleet.starts()
    try:
        host.sh("systemctl stop celery.target", timeout=120)
        assert {
            unit.name for unit in host.units(celery_units).values() if unit["ActiveState"] != "inactive"
        } == set()
        sent = [producer.probe(queue) for queue in fleet.queues]
    finally:
        host.sh("systemctl start celery.target", timeout=120)
    assert {unit.name for unit in host.units(celery_units).values() if not unit.runs} == set()
    assert fleet.restarted(before) == {(host.name, unit) for unit in celery_units}
    assert all(producer.result(one, timeout=30)["node"] for one in sent)

    before = fleet.starts()
    host.sh("systemctl restart celery.target", timeout=120)
    assert fleet.restarted(before) == {(host.name, unit) for unit in celery_units}
    eventually(fleet.is_whole, timeout=60)


def test_stop_waits_for_running_tasks(fleet: Fleet, producer: Producer) -> None:
    """A node that is told to stop finishes what it runs first."""
    node = next(node for node in fleet.nodes if "default" in node.queues)
    peers = [other for other in fleet.nodes if "default" in other.queues and other is not node]
    try:
        for peer in peers:
            peer.host.sh('systemctl stop "$1"', peer.unit)
        sent = producer.send("demo.tasks.greet", "patience", 6, queue="default")
        eventually(lambda: is_running(fleet, sent.id), timeout=30)
        start = node.host.unit(node.unit).start
        node.host.sh('systemctl restart "$1"', node.unit, timeout=60)
        assert producer.result(sent, timeout=1) == "Hello, patience!"
        assert node.host.unit(node.unit).start != start
    finally:
        for peer in peers:
            peer.host.sh('systemctl start "$1"', peer.unit)


def is_running(fleet: Fleet, task_id: str) -> bool:
    """Whether some node runs a task now."""
    active = fleet.operator.ask("active", fleet.celery_names, timeout=1)
    return any(task["id"] == task_id for tasks in active.values() for task in tasks)
