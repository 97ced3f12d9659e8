# SPDX-License-Identifier: MIT
"""Idle nodes: what they cost Redis and their hosts as they start, and then for doing nothing."""

from __future__ import annotations

import re
import time
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from bench import usage
from bench.group import running

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from bench.servers import Server
    from bench.variants import Celery

FLEETS = (1, 20)  # nodes
# Seconds from the moment at which the last node is ready. What happens every ten seconds makes a connection
# the first time, which is part of the start.
SETTLE = 15.0
WINDOW = 30.0  # seconds, a multiple of how often anything happens in a node of the fleet
READY = re.compile(r"@localhost ready\.")
NODE = re.compile(r"bench-\d+@localhost")


@dataclass(frozen=True)
class Idle:
    """What so many nodes cost.

    Attributes:
        variant: Which nodes.
        nodes: How many.
        start: Commands that Redis was asked by all until they were ready and still.
        sent: Commands a second that each node sent.
        commands: The same with those that scripts on the server called for it.
        requests: What Redis read a second, for each node: commands that a client sends together are one.
        connections: Of each node.
        cpu: Percent of a core, for each node.
        redis: Percent of a core, of Redis for all nodes.
        kinds: Commands a second, for each node, by name.
        names: Connections of each node, by their name in CLIENT LIST, or by their last command.
    """

    variant: str
    nodes: int
    start: float
    sent: float
    commands: float
    requests: float
    connections: float
    cpu: float
    redis: float
    kinds: dict[str, float]
    names: dict[str, float]


def fleets(variant: Celery) -> list[Celery]:
    """Return a variant with as many nodes as there are to be, of one child each."""
    return [replace(variant.of(nodes, 1), name=f"{variant.name} x {nodes}") for nodes in FLEETS]


def run(server: Server, variant: Celery) -> Idle:
    """Start a variant's nodes, and let them be.

    Raises:
        RuntimeError: They do not start.
    """
    redis = server.client("admin")
    redis.flushdb()
    redis.script_flush()
    nodes, others = variant.nodes, {client["id"] for client in redis.client_list()}
    begin = redis.info("all")
    with running(variant.commands("INFO"), variant.environment(server)) as group:
        ready: list[float] = []

        def all_ready() -> bool:
            found = len(READY.findall(group.said()))
            ready.extend([time.monotonic()] * (found - len(ready)))
            return found >= nodes

        group.await_that(all_ready, "not all nodes are ready")
        time.sleep(SETTLE)
        first, first_at, first_cpu = redis.info("all"), time.monotonic(), sum(usage.cpu(group.leaders))
        sent = count_sent(server, WINDOW)
        last, last_at, last_cpu = redis.info("all"), time.monotonic(), sum(usage.cpu(group.leaders))
        connections = by_name(client for client in redis.client_list() if client["id"] not in others)
    seconds = last_at - first_at
    commands = asked(first, last, "total_commands_processed") / seconds / nodes
    # What those did that were ready while others still started is no part of the start.
    idle = commands * sum(first_at - moment for moment in ready)
    return Idle(
        variant=variant.name,
        nodes=nodes,
        start=asked(begin, first, "total_commands_processed") - idle,
        sent=sent / seconds / nodes,
        commands=commands,
        requests=asked(first, last, "total_reads_processed") / seconds / nodes,
        connections=connections.total() / nodes,
        cpu=100 * (last_cpu - first_cpu) / seconds / nodes,
        redis=100 * (usage.redis_cpu(last) - usage.redis_cpu(first)) / seconds,
        kinds={name: count / seconds / nodes for name, count in kinds(first, last).most_common()},
        names={name: count / nodes for name, count in connections.most_common()},
    )


def count_sent(server: Server, seconds: float) -> int:
    """Return how many commands clients send in a time, without those that scripts call."""
    count, until = 0, time.monotonic() + seconds
    with server.client("admin").monitor() as monitor:
        while (left := until - time.monotonic()) > 0:
            if monitor.connection.can_read(left) and monitor.next_command()["client_type"] != "lua":
                count += 1
    return count


def asked(first: Any, last: Any, counter: str) -> int:
    """Return by how much a counter of INFO grew, without the question itself."""
    return int(last[counter] - first[counter]) - 1


def kinds(first: Any, last: Any) -> Counter[str]:
    """Return how often each command was called between two answers of INFO, without the question itself."""
    calls: Counter[str] = Counter()
    for name, said in last.items():
        if name.startswith("cmdstat_"):
            calls[name.removeprefix("cmdstat_")] = said["calls"] - first.get(name, {"calls": 0})["calls"]
    calls["info"] -= 1
    return +calls


def by_name(clients: Iterable[Mapping[str, str]]) -> Counter[str]:
    """Return how many connections there are of each name, whichever node's; without one, by last command."""
    return Counter(NODE.sub("<node>", client["name"]) or f"({client['cmd']})" for client in clients)
