"""One run: a node drains a queue, and from the first to the last tenth everything is counted."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

from fleet_runtime import keys

from bench.app import QUEUE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from app.tests.broker import Broker
    from bench.variants import Variant

ROOT = Path(__file__).resolve().parent.parent
CELERY = Path(sys.executable).with_name("celery")
NODE = "bench@localhost"
PATIENCE = 300.0  # seconds for a run
TICK = 1 / os.sysconf("SC_CLK_TCK")  # seconds


@dataclass(frozen=True)
class Reading:
    """What has been used so far.

    Attributes:
        time: Seconds of a clock that only goes forward.
        left: Messages in the queue.
        main: Seconds of CPU of the node's main process.
        node: Of all processes of the node.
        redis: Of Redis.
        commands: What Redis was asked so far.
    """

    time: float
    left: int
    main: float
    node: float
    redis: float
    commands: int


@dataclass(frozen=True)
class Run:
    """What a task cost in one run: microseconds of CPU, and commands."""

    variant: str
    tasks_per_second: float
    cpu: float
    main: float
    children: float
    redis: float
    commands: float

    @classmethod
    def between(cls, variant: str, first: Reading, last: Reading) -> Run:
        """Return what the tasks between two readings cost."""
        tasks = first.left - last.left
        each = 1e6 / tasks
        node, main, redis = last.node - first.node, last.main - first.main, last.redis - first.redis
        return cls(
            variant=variant,
            tasks_per_second=tasks / (last.time - first.time),
            cpu=(node + redis) * each,
            main=main * each,
            children=(node - main) * each,
            redis=redis * each,
            commands=(last.commands - first.commands) / tasks,
        )


def run(broker: Broker, variant: Variant, *, tasks: int, task: str) -> Run:
    """Let a node drain a queue of so many tasks.

    Raises:
        RuntimeError: It does not.
    """
    redis = broker.client("admin")
    redis.flushdb()
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
        "FLEET_APP": "bench.app:app",
        "FLEET_COMPONENT": "worker",
        "CELERY_BROKER_URL": broker.url("admin"),
        "CELERY_RESULT_BACKEND": broker.url("admin"),
        **variant.environment,
    }
    fill(environment, tasks, task)
    with node(variant, environment) as process:
        await_left(redis, process, tasks * 9 // 10)
        first = read(redis, process)
        await_left(redis, process, tasks // 10)
        last = read(redis, process)
        await_left(redis, process, 0)
        await_settled(redis, process)
    return Run.between(variant.name, first, last)


def fill(environment: Mapping[str, str], tasks: int, task: str) -> None:
    """Put tasks into the queue, as a process of its own, so that this one keeps no connection."""
    code = (
        "import sys; from bench.app import app\n"
        "with app.producer_pool.acquire(block=True) as producer:\n"
        "    for _ in range(int(sys.argv[2])): app.tasks[sys.argv[1]].apply_async(producer=producer)"
    )
    stock = {**environment, "BENCH_STOCK": "1"}
    subprocess.run([sys.executable, "-c", code, f"bench.app.{task}", str(tasks)], env=stock, check=True)


@contextmanager
def node(variant: Variant, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a node as the leader of a group of processes."""
    words = ["worker", f"--hostname={NODE}", f"--queues={QUEUE}", "--loglevel=WARNING", "--concurrency=2"]
    words += ["--without-gossip", "--without-mingle", *variant.arguments]
    with TemporaryFile() as log:
        process = subprocess.Popen(
            [CELERY, f"--app={variant.entry}", *words],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            yield process
        except RuntimeError as error:
            log.seek(0)
            raise RuntimeError(f"{variant.name}: {error}\n{log.read().decode(errors='replace')}") from None
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def await_left(redis: Any, process: subprocess.Popen[bytes], most: int) -> None:
    """Wait until the queue has no more than so many messages."""
    _await(process, lambda: redis.llen(QUEUE) <= most, f"more than {most} messages are left")


def await_settled(redis: Any, process: subprocess.Popen[bytes]) -> None:
    """Wait until nothing is held."""
    held = (keys.UNACKED, keys.unacked(NODE))
    _await(process, lambda: not redis.exists(*held), "messages are held, and not acknowledged")


def _await(process: subprocess.Popen[bytes], happened: Any, problem: str) -> None:
    """Wait until something has happened."""
    deadline = time.monotonic() + PATIENCE
    while not happened():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{problem}; exit code: {process.poll()}")
        time.sleep(0.05)


def read(redis: Any, process: subprocess.Popen[bytes]) -> Reading:
    """Read all counters."""
    times = {pid: seconds for pid, group, seconds in processes() if group == process.pid}
    said = redis.info()
    return Reading(
        time=time.monotonic(),
        left=redis.llen(QUEUE),
        main=times[process.pid],
        node=sum(times.values()),
        redis=said["used_cpu_user"] + said["used_cpu_sys"],
        commands=said["total_commands_processed"],
    )


def processes() -> Iterator[tuple[int, int, float]]:
    """Yield each process of this machine, its group, and its seconds of CPU. Source: proc(5), stat."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        yield int(stat.parent.name), int(fields[2]), (int(fields[11]) + int(fields[12])) * TICK
