"""Nodes that run, on a broker with TLS, hostile passwords and the fleet's real access rules."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from app.support.broker import Broker
from app.support.celery import CELERY, ENTRY, PATIENCE, Daemon, Fleet

if TYPE_CHECKING:
    from collections.abc import Iterator

APPS = str(Path(__file__).parent / "apps")
# A queue for each type of pool.
POOLS = {"default": "prefork", "email": "gevent", "heavy": "solo", "io": "threads"}
FLAGS = ("--concurrency=2", "--without-gossip", "--without-mingle", "--heartbeat-interval=10")


@pytest.fixture(scope="module")
def fleet(redis_server: Broker) -> Fleet:
    """Return an app that names another broker."""
    return Fleet(redis_server, "shop:app", PYTHONPATH=APPS, FLEET_RELEASE="3fa9c1d2e4b5")


@pytest.fixture(scope="module")
def nodes(fleet: Fleet) -> Iterator[dict[str, Daemon]]:
    """Yield a node for each queue, each with another type of pool."""
    started = {
        queue: fleet.worker(pool, f"--queues={queue}", f"--pool={pool}", *FLAGS)
        for queue, pool in POOLS.items()
    }
    with ExitStack() as stack:
        yield {queue: stack.enter_context(node) for queue, node in started.items()}


@pytest.fixture
def web(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return an app that sends tasks as an application outside the fleet does."""
    from celery import Celery
    from fleet_runtime.laying import lay
    from fleet_runtime.settings import FleetSettings

    environment = {"FLEET_APP": "shop:app", "FLEET_COMPONENT": "web"}
    for name in ("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND"):
        environment[name] = broker.url("web")
    for name in ("CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL"):
        environment[name] = ""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    app = Celery("web", set_as_current=False)
    lay(app, FleetSettings.from_environment())
    yield app
    app.close()


@pytest.mark.parametrize("queue", POOLS)
def test_every_type_of_pool_runs_a_task(nodes: dict[str, Daemon], web: Any, queue: str) -> None:
    """And its result comes back."""
    assert web.send_task("shop.add", (40, 2), queue=queue).get(timeout=PATIENCE) == 42


def test_probes_say_which_node_consumes(nodes: dict[str, Daemon], fleet: Fleet, broker: Broker) -> None:
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


def test_operators_ask_nodes_without_touching_their_messages(
    nodes: dict[str, Daemon], fleet: Fleet, broker: Broker
) -> None:
    """With kombu's defaults, whoever waits for replies also restores what it thinks was forgotten."""
    admin = broker.client("admin")
    admin.config_resetstat()
    result = fleet.run("ops", "inspect", "ping", "--json")
    assert result.returncode == 0, result.stderr
    assert {node for node, _ in json.loads(result.stdout).items()} == {
        f"{pool}@test" for pool in POOLS.values()
    }
    assert not admin.exists("unacked_mutex")
    assert "cmdstat_zrevrangebyscore" not in admin.info("commandstats")


def test_operators_run_no_tasks(fleet: Fleet) -> None:
    """They would lose them."""
    result = fleet.run("ops", "worker", "--queues=default")
    assert result.returncode == 1
    assert (
        result.stderr.splitlines()[-1] == "celery: only a process with FLEET_COMPONENT=worker may run tasks."
    )


def test_a_queue_without_a_node_is_told(fleet: Fleet, redis_server: Broker) -> None:
    """By name, and by the exit status; a queue that the broker refuses as well."""
    quiet = Fleet(redis_server, "shop:app", PYTHONPATH=APPS)
    redis_server.client("admin").sadd("unrelated", "key")
    result = quiet.run("ops", "fleet", "probe", "--queue", "nobody", "--timeout", "1")
    assert result.returncode == 1
    assert result.stderr.startswith("Error: A probe cannot be sent to the queue nobody: ")


def test_a_task_whose_process_is_killed_runs_again(
    nodes: dict[str, Daemon], web: Any, tmp_path: Path
) -> None:
    """It counts as a retry, so that one that always kills its process comes to an end."""
    result = web.send_task("shop.die_once", (str(tmp_path / "mark"),), queue="default")
    assert result.get(timeout=PATIENCE) == "survived"


def test_a_broken_broker_costs_no_task(tmp_path: Path) -> None:
    """What a task sends while Redis is away is sent when it is back, and so is the task's own result."""
    mark = tmp_path / "mark"
    (tmp_path / "redis").mkdir()
    broker = Broker(tmp_path / "redis")
    fleet = Fleet(broker, "shop:app", PYTHONPATH=APPS)
    try:
        with fleet.worker("one", "--queues=default", "--pool=threads", *FLAGS) as node:
            fleet.run("web", "call", "shop.order", f"--args={json.dumps([str(mark)])}")
            wait_until(mark.exists)
            broker.stop()
            mark.unlink()
            time.sleep(3)
            broker.start()
            node.wait_for("Task shop.order[", count=2)  # received, succeeded
            node.wait_for("Task shop.add[", count=2)
    finally:
        broker.stop()


def test_multi_starts_a_node_that_logs_to_no_file(fleet: Fleet, broker: Broker, tmp_path: Path) -> None:
    """As the unit does it. Celery's own way to say so, an empty --logfile, swallows the option after it."""
    pidfile = tmp_path / "worker.pid"
    words = ["multi", "start", "multi-1@test", "--quiet", "--no-color", "--app=fleet_runtime.app"]
    words += [f"--pidfile={pidfile}", "--logfile=/dev/null", "--queues=email", "--pool=solo", *FLAGS]
    subprocess.run(
        [CELERY, *words], env=fleet.component("worker"), cwd=tmp_path, check=True, timeout=PATIENCE
    )
    wait_until(pidfile.exists)
    pid = int(pidfile.read_text())
    try:
        command = Path(f"/proc/{pid}/cmdline").read_text()
        assert "pw" not in command
        assert "p%40ss" not in command
        ping = ["inspect", "ping", "--destination=multi-1@test"]
        wait_until(lambda: fleet.run("ops", *ping).returncode == 0)
        assert os.readlink(f"/proc/{pid}/fd/2") == "/dev/null", "there is no journal here"
        assert [path.name for path in tmp_path.iterdir()] == ["worker.pid"]
    finally:
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not Path(f"/proc/{pid}").exists())


def wait_until(happened: Any) -> None:
    """Wait until a function returns something."""
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)
