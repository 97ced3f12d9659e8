# SPDX-License-Identifier: MIT
"""Nodes that run, on a broker with TLS, hostile passwords and the fleet's real access rules.

The fixture `broker`, and `web` with it, fails a test if Redis had to refuse anything.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from billiard.exceptions import TimeLimitExceeded

from fleet_testing.broker import Broker
from fleet_testing.commands import CELERY, FLAGS, PATIENCE, Daemon, Fleet, shop, together, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# A queue for each type of pool.
POOLS = {"default": "prefork", "email": "gevent", "heavy": "solo", "io": "threads"}


def test_multi_starts_a_node_that_logs_to_no_file(fleet: Fleet, web: Any, tmp_path: Path) -> None:
    """As the unit does it. Celery's own way to say so, an empty --logfile, swallows the option after it."""
    pidfile = tmp_path / "worker.pid"
    words = ["multi", "start", "multi-1@test", "--quiet", "--no-color", "--app=fleet_runtime.app"]
    words += [f"--pidfile={pidfile}", "--logfile=/dev/null", "--queues=email", "--pool=solo", *FLAGS]
    subprocess.run(
        [CELERY, *words], env=fleet.component("worker"), cwd=tmp_path, check=True, timeout=PATIENCE
    )
    wait_until(pidfile.exists)
    process = Path("/proc", pidfile.read_text().strip())
    try:
        assert web.send_task("fleet.probe", queue="email").get(timeout=PATIENCE) == {
            "node": "multi-1@test",
            "queue": "email",
            "release": "3fa9c1d2e4b5",
        }
        assert "rediss:" not in (process / "cmdline").read_text(), "ps would show the password"
        assert [path.name for path in tmp_path.iterdir()] == ["worker.pid"]
    finally:
        os.kill(int(process.name), signal.SIGTERM)
        wait_until(lambda: not process.exists())


def test_a_broken_broker_costs_no_task(connect: Callable[[Broker], Any], tmp_path: Path) -> None:
    """What a task sends while Redis is away is sent when it is back, and so is the task's own result."""
    mark = tmp_path / "mark"
    (tmp_path / "redis").mkdir()
    broker = Broker(tmp_path / "redis")
    try:
        with shop(broker).worker("one", "--queues=default", "--pool=solo", *FLAGS):
            order = shop(broker).run("web", "call", "shop.order", f"--args={json.dumps([str(mark)])}")
            wait_until(mark.exists)
            broker.stop()
            mark.unlink()
            time.sleep(3)
            broker.start()
            web = connect(broker)
            sent = web.AsyncResult(order.stdout.strip()).get(timeout=PATIENCE)
            assert web.AsyncResult(sent).get(timeout=PATIENCE) == 2
    finally:
        broker.stop()


@pytest.fixture(scope="module")
def nodes(fleet: Fleet) -> Iterator[dict[str, Daemon]]:
    """Yield a node for each queue, each with another type of pool."""
    started = {
        queue: fleet.worker(pool, f"--queues={queue}", f"--pool={pool}", "--time-limit=4", *FLAGS)
        for queue, pool in POOLS.items()
    }
    with together(started) as nodes:
        yield nodes


@pytest.mark.usefixtures("nodes")
@pytest.mark.parametrize("queue", POOLS)
def test_every_type_of_pool_runs_a_task(web: Any, queue: str) -> None:
    """And its result comes back."""
    assert web.send_task("shop.add", (40, 2), queue=queue).get(timeout=PATIENCE) == 42


@pytest.mark.usefixtures("nodes")
@pytest.mark.parametrize("queue", POOLS)
def test_a_node_that_runs_all_it_may_goes_on_at_once(web: Any, queue: str) -> None:
    """With kombu's transport, a gevent pool would look for the next tasks every two seconds."""
    started = time.monotonic()
    results = [web.send_task("shop.sleep", (0.1,), queue=queue) for _ in range(20)]
    for result in results:
        result.get(timeout=PATIENCE)
    assert time.monotonic() - started < 10


@pytest.mark.usefixtures("nodes", "broker")
def test_probes_say_which_node_consumes(fleet: Fleet) -> None:
    """One for each queue, and what it says is that of the node, not of the asker."""
    words = [word for queue in POOLS for word in ("--queue", queue)]
    result = fleet.run("ops", "fleet", "probe", "--json", *words)
    assert result.returncode == 0, result.stderr
    answers = json.loads(result.stdout)
    assert {queue: answer["node"] for queue, answer in answers.items()} == {
        queue: f"{pool}@test" for queue, pool in POOLS.items()
    }
    assert {answer["release"] for answer in answers.values()} == {"3fa9c1d2e4b5"}
    assert all(0 < answer["seconds"] < PATIENCE for answer in answers.values())


@pytest.mark.usefixtures("nodes", "broker")
def test_operators_ask_nodes(fleet: Fleet) -> None:
    """And each answers."""
    names = [f"{pool}@test" for pool in POOLS.values()]
    ping = ["inspect", "ping", "--json", f"--timeout={PATIENCE}", f"--destination={','.join(names)}"]
    result = fleet.run("ops", *ping)
    assert result.returncode == 0, result.stderr
    assert set(json.loads(result.stdout)) == set(names)


@pytest.mark.parametrize("pool", ["threads", "gevent"])
def test_a_node_that_is_to_leave_a_queue_keeps_its_connection(fleet: Fleet, web: Any, pool: str) -> None:
    """And the other queues."""
    words = ("--queues=default,email", f"--pool={pool}", *FLAGS)
    with fleet.worker(f"leaving-{pool}", *words) as node:
        target = ["--timeout=10", f"--destination=leaving-{pool}@test"]
        assert fleet.run("ops", "control", *target, "cancel_consumer", "email").returncode == 0
        for _ in range(3):
            assert web.send_task("shop.add", (40, 2), queue="default").get(timeout=PATIENCE) == 42
        assert fleet.run("ops", "control", *target, "add_consumer", "email").returncode == 0
        assert web.send_task("shop.add", (40, 2), queue="email").get(timeout=PATIENCE) == 42
        assert not node.lines("Connection to broker lost")


@pytest.mark.usefixtures("broker")
def test_operators_leave_the_messages_of_nodes_alone(fleet: Fleet) -> None:
    """With kombu's defaults, a client that waits for replies requeues messages after a short wait."""
    result = fleet.run("ops", "inspect", "ping", "--timeout=0.9", "--destination=nobody@test")
    assert result.stderr == "Error: No nodes replied within time constraint\n"


@pytest.mark.usefixtures("nodes")
def test_a_task_whose_process_is_killed_runs_again(web: Any, tmp_path: Path) -> None:
    """At once, and not when its time limit ends; and not as a retry: those are the task's own.

    Several times, because Celery by itself sees two of three deaths at once.
    """
    for mark in range(5):
        result = web.send_task("shop.die_once", (str(tmp_path / str(mark)),), queue="default")
        assert result.get(timeout=PATIENCE) == 0


@pytest.mark.usefixtures("nodes")
def test_the_time_limit_of_a_pool_holds(web: Any) -> None:
    """For a task without a limit of its own, from any sender."""
    with pytest.raises(TimeLimitExceeded):
        web.send_task("shop.sleep", (PATIENCE,), queue="default").get(timeout=PATIENCE)


@pytest.mark.parametrize(
    ("component", "words", "reason"),
    [
        ("ops", [], "only a process with FLEET_COMPONENT=worker may run tasks."),
        (
            "worker",
            ["--time-limit=604800"],
            "the time limit (604800) must be less than FLEET_VISIBILITY_TIMEOUT",
        ),
    ],
)
def test_a_node_that_would_lose_or_repeat_tasks_does_not_start(
    fleet: Fleet, component: str, words: list[str], reason: str
) -> None:
    """An operator may try."""
    result = fleet.run(component, "worker", *words)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(f"celery: {reason}")


@pytest.mark.parametrize(
    ("queue", "complaint"),
    [
        ("io", "no answer within 0.5 s"),
        ("typo", "Error: A probe cannot be sent to the queue typo: "),
    ],
)
def test_a_queue_without_a_node_is_told(
    tmp_path_factory: pytest.TempPathFactory, queue: str, complaint: str
) -> None:
    """By name, and by the exit status; one that Redis refuses, too."""
    broker = Broker(tmp_path_factory.mktemp("quiet"))
    try:
        result = shop(broker).run("ops", "fleet", "probe", "--queue", queue, "--timeout", "0.5")
    finally:
        broker.stop()
    assert result.returncode == 1
    assert complaint in result.stdout + result.stderr
    assert "Traceback" not in result.stderr


def test_a_broker_that_is_away_is_told(tmp_path: Path) -> None:
    """In one sentence."""
    broker = Broker(tmp_path)
    broker.stop()
    result = shop(broker).run("ops", "fleet", "probe", "--queue", "io")
    assert result.returncode == 1
    assert result.stderr.startswith("Error: The broker cannot be reached: Error 111 connecting to ")
    assert result.stderr.count("\n") == 1
