# SPDX-License-Identifier: MIT
"""Other task queues on Redis, each at the setting that its documentation gives for at-least-once delivery.

A module here has the task, and puts many of them into the queue: `python -m bench.peers.dramatiq COUNT`. It
runs in a venv of the peers, because theirs and ours ask for different versions of the same packages. What is
in this file runs in ours.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bench.servers import Server

VENVS = ROOT / ".cache" / "bench" / "venvs"
QUEUE = "bench"


@dataclass(frozen=True)
class Peer:
    """Another task queue, with two processes that run tasks. Its part as a variant is described there.

    Attributes:
        module: That of this package.
        command: Its worker's command line, in its venv.
        count: How many undone tasks its keys show.
        workers: How many such workers there are.
        venv: The name of its venv, and of its requirements.
    """

    name: str
    module: str
    command: str
    count: Callable[[Any], int]
    workers: int = 1
    venv: str = "bench"
    server: str = "plain"
    share: float = 1

    def is_there(self) -> bool:
        """Return whether it is installed."""
        return (VENVS / self.venv / "bin" / self.command.split()[0]).exists()

    def environment(self, server: Server) -> dict[str, str]:
        """Return what its processes find in their environment."""
        url = server.url("admin")
        # rq has an option, too, and its name is read by nobody else
        return {
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": str(ROOT),
            "BENCH_REDIS": url,
            "RQ_REDIS_URL": url,
        }

    def commands(self) -> list[list[str]]:
        """Return the command line of each worker."""
        program, *words = self.command.split()
        return [[str(VENVS / self.venv / "bin" / program), *words]] * self.workers

    def fill(self, server: Server, count: int) -> None:
        """Put so many tasks into the queue."""
        python = VENVS / self.venv / "bin" / "python"
        command = [str(python), "-m", f"bench.peers.{self.module}", str(count)]
        subprocess.run(command, env=self.environment(server), check=True)

    def left(self, redis: Any) -> int:
        """Return how many tasks are not done, or not fetched."""
        return self.count(redis)

    def settled(self, redis: Any) -> bool:
        """Return whether nothing is held any more; that shows in its keys only if it shows in `left`."""
        return self.left(redis) == 0


def in_stream(redis: Any) -> int:
    """Return how many entries of a stream its group has not read, or not acknowledged."""
    (group,) = redis.xinfo_groups(QUEUE)
    return int(group["lag"]) + int(group["pending"])


DRAMATIQ = Peer(
    "dramatiq",
    "dramatiq",
    "dramatiq bench.peers.dramatiq --processes=2",
    lambda redis: int(redis.hlen(f"dramatiq:{QUEUE}.msgs")),
    share=4,
)
TASKIQ = Peer(
    "taskiq, Redis streams",
    "taskiq",
    "taskiq worker --workers=2 --log-level=WARNING bench.peers.taskiq:broker",
    in_stream,
    share=4,
)
RQ = "worker-pool --num-workers=2 --logging-level=WARNING --worker-class=rq.worker.{}"
RQ_FORK = Peer(
    "rq",
    "rq",
    f"rq {RQ.format('Worker')} {QUEUE}",
    lambda redis: int(redis.llen(f"rq:queue:{QUEUE}")),
    share=0.1,
)
RQ_SIMPLE = Peer(
    "rq, SimpleWorker", "rq", f"rq {RQ.format('SimpleWorker')} {QUEUE}", RQ_FORK.count, share=0.5
)
ARQ = Peer(
    "arq",
    "arq",
    "arq bench.peers.arq.Worker",
    lambda redis: int(redis.zcard(QUEUE)),
    workers=2,
    venv="bench-arq",
)
HUEY = Peer(
    "huey (at most once)",
    "huey",
    "huey_consumer bench.peers.huey.huey --worker-type=process --workers=2 --quiet",
    lambda redis: int(redis.llen(f"huey.redis.{QUEUE}")),
    share=4,
)
PEERS = (DRAMATIQ, TASKIQ, RQ_FORK, RQ_SIMPLE, ARQ, HUEY)


def missing() -> Iterator[str]:
    """Yield the names of the peers that are not installed."""
    yield from (peer.name for peer in PEERS if not peer.is_there())
