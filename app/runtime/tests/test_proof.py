"""`fleet prove`: a node that is asked for it proves that it answers, consumes and runs tasks."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from fleet_runtime import keys

from app.runtime.tests.conftest import APPS, FIRST_OF_POOLS
from app.tests.commands import FLAGS, Fleet, wait_until

if TYPE_CHECKING:
    from app.tests.broker import Broker


@pytest.fixture
def sick(broker: Broker) -> Fleet:
    """An app that BREAK breaks."""
    return Fleet(broker, "sick:app", PYTHONPATH=APPS, FLEET_RELEASE="3fa9c1d2e4b5")


@pytest.mark.parametrize("pool", FIRST_OF_POOLS)
def test_a_node_that_works(sick: Fleet, broker: Broker, pool: str) -> None:
    """It runs a task that only it could get, and nothing of that stays."""
    with sick.worker("one", "--queues=default,email", f"--pool={pool}", *FLAGS):
        for _ in range(2):
            done = sick.run("ops", "fleet", "prove", "one@test", "default", "email")
            assert done.returncode == 0, done.stderr
            assert "consumes default, email, and ran a task of release 3fa9c1d2e4b5" in done.stdout
        left = [key for key in broker.client("admin").scan_iter() if "fleet:proof" in str(key)]
        assert left == []
        active = sick.run("ops", "inspect", "active_queues", "--json").stdout
        assert "fleet:proof" not in active


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("consumption", "one@test should consume default, and consumes nothing."),
        ("tasks", "one@test consumes its queues, but did not run a task within 3 seconds."),
    ],
)
def test_a_node_that_does_not(sick: Fleet, broken: str, said: str) -> None:
    """What is wrong is said in a sentence."""
    with sick.worker("one", "--queues=default", "--pool=prefork", *FLAGS, BREAK=broken):
        done = sick.run("ops", "fleet", "prove", "one@test", "default", "--timeout=3")
        assert done.returncode == 1
        assert said in done.stderr


def test_a_node_that_is_not_there(sick: Fleet) -> None:
    """Nor one that consumes something else."""
    done = sick.run("ops", "fleet", "prove", "two@test", "default", "--timeout=1")
    assert (done.returncode, done.stderr.strip()) == (1, "Error: two@test does not answer.")


def test_a_node_that_has_no_room_works_too(sick: Fleet, web: Any) -> None:
    """It took what waited as it started, and runs as many tasks as it may."""
    with sick.worker("one", "--queues=default", "--pool=prefork", *FLAGS) as node:
        for _ in range(4):
            web.send_task("sick.wait", (20,), queue="default", ignore_result=True)
        node.wait_for("sick.wait", count=2)
        done = sick.run("ops", "fleet", "prove", "one@test", "default", "--timeout=2")
        assert done.returncode == 0, done.stderr
        assert "runs 2 tasks, as many as it may" in done.stdout


def test_hosts_that_are_drained_are_shown(sick: Fleet, broker: Broker) -> None:
    """And no longer once they are not."""
    said = [
        sick.run("ops", "fleet", "drained", "worker1", *words).stdout
        for words in (["--why=a disk"], ["--why=a new disk"], ["--why=a new disk"])
    ]
    assert said == ["worker1 is drained.\n", "worker1 is drained.\n", "worker1 is drained already.\n"]
    assert json.loads(sick.run("ops", "fleet", "drained", "--list").stdout) == ["worker1"]
    shown = sick.run("ops", "fleet", "status").stdout
    assert "Drained       worker1, for" in shown
    assert "a new disk" in shown
    said = [sick.run("ops", "fleet", "drained", "worker1", "--no").stdout for _ in range(2)]
    assert said == ["worker1 is not drained.\n", "worker1 is not drained already.\n"]
    wait_until(lambda: not broker.client("admin").exists(keys.DRAINED))
