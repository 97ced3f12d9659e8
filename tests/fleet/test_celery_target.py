# SPDX-License-Identifier: MIT
"""`systemctl start|stop|restart celery.target` does what it says, for all that is Celery on a host."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.fleet.support.hosts import eventually

if TYPE_CHECKING:
    from tests.fleet.support.clients import Producer
    from tests.fleet.support.fleet import Fleet
    from tests.fleet.support.hosts import Host

pytestmark = [pytest.mark.faults, pytest.mark.group("workers")]


def celery_units(fleet: Fleet, host: Host) -> set[tuple[str, str]]:
    """Return the units of a host that run a program of Celery."""
    others = ("redis-server.service", "nginx.service")
    return {(host.name, unit) for unit in fleet.units(host) if unit not in others}


def test_target(fleet: Fleet, producer: Producer) -> None:
    """It stops all of Celery and nothing else, starts it, and restarts it; what was sent meanwhile is run."""
    host, before = fleet.group("workers")[0], fleet.starts()
    celery = celery_units(fleet, host)
    host.sh("systemctl stop celery.target", timeout=120)
    stopped = host.units([unit for _, unit in celery]).values()
    assert {unit.name for unit in stopped if unit["ActiveState"] != "inactive"} == set()
    sent = [producer.probe(queue) for queue in fleet.queues]
    host.sh("systemctl start celery.target")
    eventually(fleet.is_whole, timeout=120)
    assert fleet.restarted(before) == celery
    assert all(producer.result(one, timeout=30)["node"] for one in sent)

    before = fleet.starts()
    host.sh("systemctl restart celery.target", timeout=120)
    eventually(fleet.is_whole, timeout=120)
    assert fleet.restarted(before) == celery


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
