# SPDX-License-Identifier: MIT
"""What is compared: ways to run nodes of Celery, and what stands for a way in all measurements."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from ansible_collections.fleet.celery.plugins.filter import celery_worker
from fleet_runtime.broker import keys

from bench import ROOT, publish
from bench.app import QUEUE
from bench.servers import FLEET, PLAIN

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bench.servers import Server

CELERY = Path(sys.executable).with_name("celery")
CPUS = len(os.sched_getaffinity(0))
MEMORY_MB = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
# Options that `Celery.commands` gives by itself.
GIVEN = ("--queues=", "--pool=", "--concurrency=", "--loglevel=")
# What the fleet starts each node with: see roles/celery_worker, plugins/filter/celery_worker.py.
QUIET = ("--without-gossip", "--without-mingle", "--heartbeat-interval=10")


class Variant(Protocol):
    """A way to run tasks."""

    @property
    def name(self) -> str:
        """What the tables call it."""

    @property
    def server(self) -> str:
        """The kind of Redis that it has."""

    @property
    def share(self) -> float:
        """How many tasks it gets, for one of another: more of what is fast, or less than a second is seen."""

    def environment(self, server: Server) -> dict[str, str]:
        """Return what its processes find in their environment."""

    def commands(self) -> list[list[str]]:
        """Return the command line of each of its processes."""

    def fill(self, server: Server, count: int) -> None:
        """Put so many tasks into its queue."""

    def left(self, redis: Any) -> int:
        """Return how many tasks are not done, or not fetched."""

    def settled(self, redis: Any) -> bool:
        """Return whether nothing is held any more."""


@dataclass(frozen=True)
class Celery:
    """Nodes of Celery. The attributes that it shares with others are described there.

    Attributes:
        entry: The app, as `celery --app` wants it.
        variables: What a node finds in its environment besides.
        arguments: Of `celery worker`, besides.
        pool: The kind of pool.
        concurrency: How many tasks a node runs at the same time.
        nodes: How many nodes there are.
        task: The task of bench.app.
        user: As whom a node speaks to Redis.
    """

    name: str
    entry: str = "fleet_runtime.app"
    variables: Mapping[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = QUIET
    pool: str = "prefork"
    concurrency: int = 2
    nodes: int = 1
    task: str = "silent"
    user: str = "worker"
    server: str = PLAIN
    share: float = 1

    def with_pool(self, pool: str) -> Self:
        """Return the same with another kind of pool."""
        return self if pool == self.pool else replace(self, name=f"{self.name}, {pool}", pool=pool)

    def of(self, nodes: int, concurrency: int) -> Self:
        """Return the same with so many nodes, each of which runs so many tasks at the same time."""
        return replace(self, nodes=nodes, concurrency=concurrency)

    def names(self) -> list[str]:
        """Return the nodes' names."""
        return [f"bench-{number}@localhost" for number in range(1, self.nodes + 1)]

    def environment(self, server: Server) -> dict[str, str]:
        """Return what its processes find in their environment."""
        return {
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": f"{ROOT}:{ROOT / 'app' / 'runtime' / 'src'}",
            "FLEET_APP": "bench.app:app",
            "FLEET_COMPONENT": "worker",
            "CELERY_BROKER_URL": server.url(self.user),
            "CELERY_RESULT_BACKEND": server.url(self.user),
            **self.variables,
        }

    def commands(self, log_level: str = "WARNING") -> list[list[str]]:
        """Return the command line of each node."""
        words = [
            str(CELERY),
            f"--app={self.entry}",
            "worker",
            f"--queues={QUEUE}",
            f"--pool={self.pool}",
            f"--concurrency={self.concurrency}",
            f"--loglevel={log_level}",
            *self.arguments,
        ]
        return [[*words, f"--hostname={name}"] for name in self.names()]

    def fill(self, server: Server, count: int, how: str = "batch") -> None:
        """Put so many tasks into the queue, by a process that does not run the runtime: see `publish`."""
        url = server.url("web")
        plain = {"BENCH_SETTINGS": "", "CELERY_BROKER_URL": url, "CELERY_RESULT_BACKEND": url}
        publish.send({**self.environment(server), **plain}, self.task, count, how)

    def left(self, redis: Any) -> int:
        """Return how many messages are in the queue. A node holds the same few all the time."""
        return int(redis.llen(QUEUE))

    def settled(self, redis: Any) -> bool:
        """Return whether no node holds a message."""
        return not redis.exists(keys.UNACKED, *map(keys.unacked, self.names()))


DEFAULTS = Celery("Celery's defaults", "bench.app", arguments=())
STOCK = Celery("Celery, the fleet's settings", "bench.app", {"BENCH_SETTINGS": "fleet"})
TUTORIAL = Celery(
    "Celery, a tutorial's production settings, -E",
    "bench.app",
    {"BENCH_SETTINGS": "tutorial"},
    ("--task-events",),
    task="noop",
)
RUNTIME = Celery("the fleet")
STANDARD = Celery("the fleet, level standard", variables={"FLEET_LEVEL": "standard"})
# What the role runs by default where the inventory has a Flower; RUNTIME is what it runs where there is none.
EVENTS = replace(RUNTIME, name="the fleet, task events", arguments=(*QUIET, "--task-events"))
COMPARED = (STOCK, DEFAULTS, TUTORIAL, RUNTIME, EVENTS, STANDARD)
IDLE = (STOCK, DEFAULTS, RUNTIME, EVENTS)

# The same two on the fleet's own Redis. Its access rules do not know the keys that kombu's nodes share.
STOCK_TLS = replace(STOCK, name=f"{STOCK.name}, {FLEET}", server=FLEET, user="admin")
RUNTIME_TLS = replace(RUNTIME, name=f"{RUNTIME.name}, {FLEET}", server=FLEET)
SECURED = (STOCK_TLS, RUNTIME_TLS)

# What each of these adds to RUNTIME.
RESULTS = replace(RUNTIME, name="the fleet, results stored", task="noop")
COSTLY = (
    RESULTS,
    replace(RESULTS, name="the fleet, results, track_started", variables={"FLEET_TRACK_STARTED": "true"}),
    replace(
        RUNTIME, name="the fleet, max_tasks_per_child=100", arguments=(*QUIET, "--max-tasks-per-child=100")
    ),
    replace(
        RUNTIME, name="the fleet, max_tasks_per_child=1000", arguments=(*QUIET, "--max-tasks-per-child=1000")
    ),
)


def profile(name: str, cpus: int = CPUS, memory_mb: int = MEMORY_MB) -> Celery:
    """Return how the role celery_worker runs a pool with a profile, on a host of this size.

    Raises:
        KeyError: There is no such profile.
    """
    pools = {name: {"queues": [QUEUE], "profile": name, "time_limit": 3600}}
    options = celery_worker.complete(pools, cpus, memory_mb)[name]
    words = celery_worker.arguments(options, "WARNING", task_events=False)
    return Celery(
        f"the fleet, profile {name}",
        arguments=tuple(word for word in words if not word.startswith(GIVEN)),
        pool=options["pool"],
        concurrency=options["concurrency"],
        nodes=options["nodes"],
        # Several processes start at slightly different times: with more tasks, little of that is measured.
        share=3 if options["nodes"] > 1 else 1,
    )


PROFILES = tuple(map(profile, ("cpu", "io", "short", "long")))
