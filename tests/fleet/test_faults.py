# SPDX-License-Identifier: MIT
"""Whatever dies, the fleet is whole again by itself, and within seconds."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.fleet.support.hosts import eventually

if TYPE_CHECKING:
    from tests.fleet.support.clients import Producer
    from tests.fleet.support.fleet import Fleet, Node
    from tests.fleet.support.hosts import Host

pytestmark = pytest.mark.faults


def processes(host: Host, unit: str) -> set[str]:
    """Return the processes of a unit."""
    return set(host.sh('systemd-cgls --no-pager --unit "$1" | grep -o "[0-9]\\+ " || true', unit).split())


@pytest.mark.group("workers")
def test_killed_nodes_come_back(fleet: Fleet, producer: Producer) -> None:
    """Nodes whose main process is killed are back, whatever kind of pool they have; the others go on."""
    *victims, spared = one_of_each_pool(fleet)
    before = fleet.starts()
    for node in victims:
        node.host.sh('systemctl kill --kill-who=main --signal=KILL "$1"', node.unit)

    killed = {(node.host.name, node.unit) for node in victims}
    eventually(lambda: fleet.restarted(before) == killed, timeout=60)
    names = {node.celery_name for node in victims}
    eventually(lambda: fleet.operator.ask("ping", names).keys() == names, timeout=60)
    for queue in {queue for node in [*victims, spared] for queue in node.queues}:
        assert producer.result(producer.probe(queue))["node"]
    assert fleet.restarted(before) == killed


def one_of_each_pool(fleet: Fleet) -> list[Node]:
    """Return the first node of each pool."""
    return list({node.pool: node for node in reversed(fleet.nodes)}.values())


@pytest.mark.group("workers")
def test_killed_node_leaves_nothing_behind(fleet: Fleet) -> None:
    """The children of a killed node die with it: none goes on with a task that others will run."""
    node = next(node for node in fleet.nodes if node.options["pool"] == "prefork")
    before = processes(node.host, node.unit)
    start = node.host.unit(node.unit).start
    node.host.sh('systemctl kill --kill-who=main --signal=KILL "$1"', node.unit)
    eventually(
        lambda: node.host.unit(node.unit).start != start and node.host.unit(node.unit).runs, timeout=60
    )
    assert before
    assert not before & processes(node.host, node.unit)
    alive = node.host.sh('for pid; do [ ! -e "/proc/$pid" ] || echo "$pid"; done', *before)
    assert alive == ""


@pytest.mark.group("redis")
@pytest.mark.parametrize("how", ["kill --signal=KILL", "restart"])
def test_redis_comes_back(fleet: Fleet, producer: Producer, how: str) -> None:
    """When Redis is killed or restarted, what it took is still there, and nodes go on without a restart."""
    host, unit = fleet.group("redis")[0], "redis-server.service"
    before, since = fleet.starts(), host.sh("date --utc '+%F %T'").strip()
    keys = {f"canary:{how.split()[0]}:{number}": str(number) for number in range(5)}
    with fleet.broker.connect("admin") as client:
        transaction = client.pipeline(transaction=True)
        transaction.mset(keys)
        transaction.rpush("canary:list", *keys)
        transaction.execute()
    fleet.broker.keep_denials()
    host.sh(f'systemctl {how} "$1"', unit)

    eventually(fleet.broker.answers, timeout=60)
    with fleet.broker.connect("admin") as client:
        assert client.mget(keys) == list(keys.values())
        assert client.lrange("canary:list", 0, -1) == list(keys)
        client.delete("canary:list", *keys)
    assert "AOF-loading-client" not in host.sh('journalctl --unit="$1" --since="$2"', unit, since)

    eventually(fleet.is_whole, timeout=60)
    for sent in [producer.probe(queue) for queue in fleet.queues]:
        assert producer.result(sent)["node"]
    assert fleet.restarted(before) == {(host.name, unit)}


@pytest.mark.group("redis")
def test_functions_that_were_lost_are_there_after_a_start(fleet: Fleet, producer: Producer) -> None:
    """They are in the append-only file, and so is their flush.

    Nodes call them for each message, and Beat to renew its lock. Both ask again until they are back.
    """
    host, unit = fleet.group("redis")[0], "redis-server.service"
    before = fleet.starts()
    with fleet.broker.connect("admin") as client:
        functions = len(client.function_list())
    fleet.broker.keep_denials()
    with fleet.broker.connect("admin") as client:
        client.function_flush()
    host.sh('systemctl restart "$1"', unit)

    eventually(fleet.broker.answers, timeout=60)
    with fleet.broker.connect("admin") as client:
        assert len(client.function_list()) == functions > 10
        client.acl_log_reset()  # nodes called some in between
    eventually(fleet.is_whole, timeout=60)
    for sent in [producer.probe(queue) for queue in fleet.queues]:
        assert producer.result(sent)["node"]
    assert fleet.restarted(before) == {(host.name, unit)}


@pytest.mark.group("flower")
@pytest.mark.parametrize("unit", ["flower.service", "nginx.service"])
def test_killed_flower_comes_back(fleet: Fleet, unit: str) -> None:
    """Flower and its nginx are back when they are killed, and ask for the password as before."""
    host = fleet.group("flower")[0]
    start = host.unit(unit).start
    host.sh('systemctl kill --signal=KILL "$1"', unit)
    eventually(
        lambda: host.unit(unit).start != start and fleet.flower.get("/healthcheck").status == 200, timeout=60
    )
    assert fleet.flower.ask("/workers").status == 401


def test_rebooted_hosts_come_back(fleet: Fleet, producer: Producer) -> None:
    """When all hosts go down at once, all that ran runs again, in whatever order they come up."""
    if fleet.group("redis"):
        fleet.broker.keep_denials()
    before = fleet.starts()
    for host in fleet.hosts.values():
        host.sh("systemctl --no-block reboot")
    began = time.monotonic()

    eventually(lambda: fleet.restarted(before) >= set(before), timeout=120)
    eventually(fleet.is_whole, timeout=60)
    for sent in [producer.probe(queue) for queue in fleet.queues]:
        assert producer.result(sent)["node"]
    assert time.monotonic() - began < 120
