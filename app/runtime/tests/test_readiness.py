# SPDX-License-Identifier: MIT
"""A node proves that it works before it takes a task of others; `fleet ready` says whether it has."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner, _NamedTextIOWrapper
from fleet_runtime.broker import keys
from fleet_runtime.cli.fleet import fleet
from fleet_runtime.inspect import readiness
from fleet_runtime.recovery.requeue import forget
from fleet_runtime.worker.readiness import CHECK_INTERVAL_S

from fleet_testing.commands import APPS, FLAGS, PATIENCE, Fleet, wait_until
from fleet_testing.params import FIRST_OF_POOLS

if TYPE_CHECKING:
    from fleet_testing.broker import Broker

PROVED = "This node takes tasks now, from"


@pytest.fixture
def sick(broker: Broker) -> Fleet:
    """An app that BREAK breaks."""
    return Fleet(broker, "sick:app", PYTHONPATH=APPS, FLEET_RELEASE="3fa9c1d2e4b5")


def proofs(broker: Broker) -> list[bytes]:
    """Return the queues that are for proofs."""
    return list(broker.client("admin").scan_iter(f"{keys.SELF_TEST_PREFIX}*"))


@pytest.mark.parametrize("pool", FIRST_OF_POOLS)
def test_a_node_that_works(sick: Fleet, broker: Broker, web: Any, pool: str) -> None:
    """It runs a task that only it could get, and nothing of that stays; then it takes what waited."""
    web.send_task("sick.wait", (0,), queue="email", ignore_result=True)
    with sick.worker("one", "--queues=default,email", f"--pool={pool}", *FLAGS) as node:
        [line] = node.wait_for(PROVED)
        assert line.endswith("from default, email.")
        node.wait_for("Task sick.wait")
        printed = node.lines("")
        assert printed.index(line) < printed.index(node.lines("Task sick.wait")[0])
        done = sick.run("ops", "fleet", "ready", "one@test", "default", "email")
        assert done.returncode == 0, done.stderr
        assert "consumes default, email, has run a task of release 3fa9c1d2e4b5" in done.stdout
        assert proofs(broker) == []
        active = sick.run("ops", "inspect", "active_queues", "--json").stdout
        assert keys.SELF_TEST_PREFIX not in active


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("consumption", "one@test should consume default, and consumes nothing."),
        ("tasks", "one@test did not pass its self-test within 4 seconds, and takes no other task."),
        ("processes", "has failed its self-test: WorkerLostError: "),
    ],
)
def test_a_node_that_does_not(sick: Fleet, broker: Broker, web: Any, broken: str, said: str) -> None:
    """A sentence names the fault. Other messages are not touched, and no dead letter is left."""
    redis = broker.client("admin")
    web.send_task("sick.wait", (0,), queue="default", ignore_result=True)
    waiting, dead = redis.llen("default"), redis.zcard(keys.DEAD)
    with sick.worker("one", "--queues=default", "--pool=prefork", *FLAGS, BREAK=broken):
        done = sick.run("ops", "fleet", "ready", "one@test", "default", "--timeout=4")
        assert done.returncode == 1
        assert said in done.stderr
        assert redis.llen("default") == waiting
        assert redis.zcard(keys.DEAD) == dead


def test_a_proof_that_takes_long(sick: Fleet, web: Any) -> None:
    """It is waited for, and the node says so; tasks come after it."""
    web.send_task("sick.wait", (0,), queue="default", ignore_result=True)
    with sick.worker("one", "--queues=default", "--pool=prefork", *FLAGS, BREAK="tasks") as node:
        node.wait_for("takes no other task. It has not ended yet.")
        assert node.lines("Task sick.wait") == []
        node.wait_for(PROVED)
        node.wait_for("Task sick.wait")


def test_what_an_app_says_of_all_tasks_is_not_said_of_the_proof(sick: Fleet, web: Any) -> None:
    """Routes, early acknowledgement, requests of its own, another serializer; nor does it consume before."""
    variables = {"BREAK": "tasks settings", "FLEET_ACCEPT_CONTENT": "json,yaml"}
    for queue in ("default", "email"):
        web.send_task("sick.wait", (0,), queue=queue, ignore_result=True)
    with sick.worker("one", "--queues=default", "--pool=prefork", *FLAGS, **variables) as node:
        node.wait_for("takes no other task. It has not ended yet.")
        assert node.lines("Task sick.wait") == []
        [line] = node.wait_for(PROVED)
        assert line.endswith("from default, email.")
        node.wait_for("Task sick.wait")


def test_a_node_that_stops_does_not_wait_for_its_proof(sick: Fleet) -> None:
    """Not as for a task of others, which it may finish within its time limit."""
    with sick.worker("one", "--queues=default", "--pool=threads", *FLAGS, BREAK="for long") as node:
        node.wait_for("takes no other task. It has not ended yet.")
        began = time.monotonic()
    assert time.monotonic() - began < 25


def test_a_node_that_stops_soon_after_its_proof_does_not_begin_again(
    sick: Fleet, broker: Broker, web: Any
) -> None:
    """It looks once more whether it consumes, as it finishes what it runs: it should not."""
    redis = broker.client("admin")
    redis.delete("default")  # a test before stops its node at the first of several tasks
    for _ in range(5):
        web.send_task("sick.wait", (CHECK_INTERVAL_S + 2,), queue="default", ignore_result=True)
    with sick.worker("one", "--queues=default", *FLAGS[1:], "--concurrency=1") as node:
        node.wait_for("It waits.")  # from then on the node finishes it
        node.process.terminate()
        node.process.wait(PATIENCE)
        assert len(node.lines(PROVED)) == 1
        assert not node.lines("Traceback")
    assert redis.llen("default") == 4, node.lines("")
    redis.delete("default")


def test_a_proof_that_fails_is_tried_again(sick: Fleet, tmp_path: Any) -> None:
    """What was wrong may have gone by then: the processes die while there is no file."""
    cure = tmp_path / "cure"
    with sick.worker("one", "--queues=default", *FLAGS, BREAK="processes", CURE=str(cure)) as node:
        node.wait_for("takes no other task. WorkerLostError: ")
        cure.touch()
        node.wait_for(PROVED)


def test_a_node_that_was_cut_off_goes_on(sick: Fleet, broker: Broker, web: Any) -> None:
    """It has proved that it works, and takes tasks at once on its next connection."""
    with sick.worker("one", "--queues=default", *FLAGS) as node:
        node.wait_for(PROVED)
        broker.client("admin").execute_command("CLIENT", "KILL", "USER", "worker")
        web.send_task("sick.wait", (0,), queue="default", ignore_result=True)
        node.wait_for("Task sick.wait")
        assert len(node.lines(PROVED)) == 1


def test_a_node_that_was_cut_off_before_it_has(sick: Fleet, broker: Broker) -> None:
    """It begins again."""
    with sick.worker("one", "--queues=default", *FLAGS, BREAK="tasks") as node:
        broker.client("admin").execute_command("CLIENT", "KILL", "USER", "worker")
        node.wait_for(PROVED)
        wait_until(lambda: proofs(broker) == [])


def test_a_node_that_is_not_there(sick: Fleet) -> None:
    """A node that consumes other queues is not ready, either."""
    done = sick.run("ops", "fleet", "ready", "two@test", "default", "--timeout=1")
    assert (done.returncode, done.stderr.strip()) == (1, "Error: two@test does not answer.")


@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_a_node_that_has_no_room_works_too(sick: Fleet, web: Any, pool: str) -> None:
    """It took what waited once it had proved that it works, and a solo one cannot even answer."""
    room = {"prefork": 2, "solo": 1}[pool]
    for _ in range(4):
        web.send_task("sick.wait", (20,), queue="default", ignore_result=True)
    flags = FLAGS if pool == "prefork" else FLAGS[1:]
    with sick.worker("one", "--queues=default", f"--pool={pool}", *flags, FLEET_LEASE="6") as node:
        node.wait_for("Task sick.wait", count=room)
        done = sick.run("ops", "fleet", "ready", "one@test", "default", "--timeout=5")
        assert done.returncode == 0, done.stderr
        assert ("is busy" in done.stdout) == (pool == "solo")
        told = sick.run("ops", "fleet", "consumed", "one@test", "two@test", "--timeout=2")
        assert json.loads(told.stdout) == {"one@test": ["default"]}
        node.process.kill()


def test_nothing_stays_of_a_node_that_is_forgotten(broker: Broker) -> None:
    """Its self-test is deleted, too."""
    redis = broker.client("admin")
    redis.rpush(keys.self_test_queue("gone@test"), "{}")
    assert forget(redis, "gone@test", if_dead=False)
    assert proofs(broker) == []


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


def test_old_name_of_ready_is_hidden_and_says_the_new_one_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Programs still use it, and their output has no other line."""
    monkeypatch.setattr(readiness, "require", lambda app, node, queues, timeout: f"{node} is ready.")
    obj = SimpleNamespace(app=None)
    assert "prove" not in CliRunner().invoke(fleet, ["--help"]).output
    result = CliRunner().invoke(fleet, ["prove", "one@test"], obj=obj)
    assert (result.stdout, result.stderr) == ("one@test is ready.\n", "")
    monkeypatch.setattr(_NamedTextIOWrapper, "isatty", lambda self: True)
    assert "is now `fleet ready`" in CliRunner().invoke(fleet, ["prove", "one@test"], obj=obj).stderr
    assert CliRunner().invoke(fleet, ["ready", "one@test"], obj=obj).stderr == ""
