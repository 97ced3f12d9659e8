# SPDX-License-Identifier: MIT
"""What a task reaches of the network, where the inventory names addresses (celery_worker_ip_allow).

An attack runs as the user of a pool, in a unit with the lines that the role writes into each node's
(tests/unit/test_worker.py). The node is left alone: systemd does not take such a bound off a unit that runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from ansible_collections.fleet.celery.plugins.filter.celery_worker import user
from ansible_collections.fleet.celery.plugins.filter.fleet import addresses

if TYPE_CHECKING:
    from tests.fleet.support.fleet import Fleet, Node

pytestmark = [pytest.mark.group("workers"), pytest.mark.group("redis"), pytest.mark.one_of_each_pool]

# Of no host; the way there is the default route. Source: RFC 5737.
ELSEWHERE = "192.0.2.1"
# $1: udp or tcp, $2: the address, $3: the port. Prints what became of it; what is dropped gets no answer.
REACH = """
import socket, sys
kind = {"udp": socket.SOCK_DGRAM, "tcp": socket.SOCK_STREAM}[sys.argv[1]]
to = (sys.argv[2], int(sys.argv[3]))
with socket.socket(socket.AF_INET, kind) as attack:
    attack.settimeout(5)
    try:
        attack.connect(to)
        if kind == socket.SOCK_DGRAM:
            attack.send(b"x")
        print("reached")
    except OSError as error:
        print("refused" if isinstance(error, (PermissionError, TimeoutError)) else error)
"""


def reach(node: Node, named: list[str], kind: str, address: str, port: int) -> str:
    """Return what becomes of a process that wants to reach an address.

    Args:
        node: As whose task it runs, in a unit of its own.
        named: What the inventory names.
        kind: udp or tcp.
        address: What it wants to reach.
        port: The port there.
    """
    lines = [f"User={user(node.pool)}", "Group=celery", "Slice=celery.slice", *addresses(named)]
    options = [f"--property={line}" for line in lines]
    command = 'systemd-run --quiet --wait --pipe --collect "$@"'
    words = (*options, "python3", "-c", REACH, kind, address, str(port))
    return node.host.sh(command, *words).strip()


def test_a_task_reaches_what_the_inventory_names_only(fleet: Fleet, node: Node) -> None:
    """The broker, here; and no other host, by no protocol."""
    broker = fleet.group("redis")[0].variables
    redis = (str(broker["fleet_redis_host"]), int(broker["fleet_redis_port"]))
    others = [
        (str(host.variables["ansible_host"]), int(host.variables["flower_port"]))
        for host in fleet.group("flower")
        if host.variables["ansible_host"] != redis[0] and host is not node.host
    ]
    for address, port in [redis, *others]:
        assert reach(node, [], "tcp", address, port) == "reached"
    assert reach(node, [], "udp", ELSEWHERE, 9) == "reached"
    assert reach(node, [redis[0]], "tcp", *redis) == "reached"
    assert reach(node, [redis[0]], "udp", ELSEWHERE, 9) == "refused"
    for address, port in others:
        assert reach(node, [redis[0]], "tcp", address, port) == "refused"
