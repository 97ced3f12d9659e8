# SPDX-License-Identifier: MIT
"""Latency: how long a task waits at a node that has time, from the call that sends it to its start."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import quantiles
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from bench.group import running

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.servers import Server
    from bench.variants import Celery

RATE = 60  # tasks a second
WARM = 60  # of the first tasks, which are not counted


@dataclass(frozen=True)
class Latency:
    """What tasks waited in one run: milliseconds."""

    variant: str
    p50: float
    p90: float
    p99: float
    longest: float

    @classmethod
    def of(cls, variant: str, seconds: Sequence[float]) -> Latency:
        """Return how long tasks waited."""
        percent = quantiles(seconds, n=100, method="inclusive")
        p50, p90, p99, longest = (
            1000 * value for value in (*(percent[n - 1] for n in (50, 90, 99)), max(seconds))
        )
        return cls(variant, p50, p90, p99, longest)


def run(server: Server, variant: Celery, *, tasks: int) -> Latency:
    """Send so many tasks at a steady, low rate.

    Raises:
        RuntimeError: They do not all run.
    """
    server.client("admin").flushdb()
    with TemporaryDirectory() as folder:
        file = Path(folder) / "waited"
        file.touch()
        waiting = replace(variant, task="wait", variables={**variant.variables, "BENCH_LATENCY": str(file)})
        with running(waiting.commands(), waiting.environment(server)) as group:
            waiting.fill(server, WARM, str(RATE))
            group.await_that(lambda: entries(file) == WARM, "tasks did not run")
            waiting.fill(server, tasks, str(RATE))
            group.await_that(lambda: entries(file) == WARM + tasks, "tasks did not run")
        waited = [seconds for (seconds,) in struct.iter_unpack("d", file.read_bytes())]
    return Latency.of(variant.name, waited[WARM:])


def entries(file: Path) -> int:
    """Return how many tasks have written what they waited."""
    return file.stat().st_size // struct.calcsize("d")
