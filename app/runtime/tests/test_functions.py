# SPDX-License-Identifier: MIT
"""Scripts as functions of Redis: who may load them, and what happens where they are missing."""

from __future__ import annotations

import importlib
import sys
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from fleet_runtime.broker import functions, scripts
from redis.backoff import ConstantBackoff
from redis.exceptions import NoPermissionError
from redis.lock import Lock
from redis.retry import Retry

from fleet_testing.broker import HOST, Broker
from fleet_testing.commands import APPS, FLAGS, PATIENCE, Fleet, noted, shop, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LOOP = "while true do end"


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Broker]:
    """Yield a Redis of a test's own; what it refuses is part of the test."""
    broker = Broker(tmp_path)
    yield broker
    broker.stop()


@pytest.fixture(autouse=True)
def _unknown() -> Iterator[None]:
    """Let a test begin without what this process knows of another Redis, and leave nothing."""
    functions._present.clear()
    yield
    functions._present.clear()


@pytest.mark.parametrize("user", ["worker", "beat", "flower", "web", "ops", "health"])
def test_nobody_may_load_a_script(own: Broker, user: str) -> None:
    """By one that does not end, any of them could stop Redis."""
    client = own.client(user)
    for words in (
        ("SCRIPT", "LOAD", LOOP),
        ("EVAL", LOOP, 0),
        ("EVALSHA", own.client("admin").script_load("return 1"), 0),
        ("FUNCTION", "LOAD", f"#!lua name=x\n{LOOP}"),
    ):
        with pytest.raises(NoPermissionError):
            client.execute_command(*words)


def test_a_function_gives_no_right(own: Broker) -> None:
    """Beat may call it, and not touch what a node holds."""
    call = functions.PREFIX + functions.sha(scripts.ONCE_FINISH)
    with pytest.raises(NoPermissionError):
        own.client("beat").fcall(call, 1, "fleet:once:key", "mine", "", "0")


def test_a_redis_without_functions_gets_the_script(own: Broker) -> None:
    """As with a plain Redis, from a client that may load scripts."""
    admin = own.client("admin")
    admin.function_flush()
    admin.set("fleet:once:key", "mine")
    functions.run(admin, scripts.ONCE_FINISH, ["fleet:once:key"], ["mine", "", "0"])
    assert not admin.exists("fleet:once:key")
    assert admin.script_exists(functions.sha(scripts.ONCE_FINISH)) == [True]


def test_a_lock_of_redis_is_a_function(own: Broker) -> None:
    """RedBeat's, and kombu's, are of this kind."""
    client = own.client("worker")
    with Lock(client, "unacked_mutex:one@test", timeout=10) as lock:
        assert lock.owned()
    assert not own.client("admin").exists("unacked_mutex:one@test")
    assert own.denied() == []


def test_a_function_that_is_missing_is_named(own: Broker) -> None:
    """And found again, once it is there."""
    own.client("admin").function_flush()
    expected = functions.PREFIX + functions.sha(scripts.ONCE_FINISH)
    with pytest.raises(functions.FunctionMissingError, match=expected) as caught:
        functions.run(own.client("worker"), scripts.ONCE_FINISH, ["fleet:once:key"], ["mine", "", "0"])
    assert "playbooks/redis.yml" in str(caught.value)
    own.load_functions()
    functions.run(own.client("worker"), scripts.ONCE_FINISH, ["fleet:once:key"], ["mine", "", "0"])


def test_a_function_that_is_missing_for_a_moment_is_waited_for(own: Broker) -> None:
    """As long as a Redis that is away: a moment after its start, it is there."""
    client = own.client("worker")
    client.set_retry(Retry(ConstantBackoff(1), PATIENCE))
    own.client("admin").function_flush()
    later = threading.Timer(2, own.load_functions)
    later.start()
    functions.run(client, scripts.ONCE_FINISH, ["fleet:once:key"], ["mine", "", "0"])
    later.join()


def test_beat_waits_for_a_function_that_is_missing_for_a_moment(own: Broker) -> None:
    """It renews its lock by one, with each look at its schedule."""
    admin = own.client("admin")
    fleet = Fleet(own, "scheduled:app", PYTHONPATH=APPS, FLEET_BEAT_MAX_INTERVAL="1")

    def renewals() -> int:
        return int(admin.info("commandstats").get("cmdstat_fcall", {}).get("calls", 0))

    with fleet.beat() as beat:
        wait_until(lambda: renewals() > 2)
        admin.function_flush()
        refused = refusals(own)
        wait_until(lambda: refusals(own) > refused)  # Beat has asked for what is not there
        own.load_functions()
        before = renewals()
        wait_until(lambda: renewals() > before + 2)
        assert beat.process.poll() is None, beat.lines("")
        assert admin.get("redbeat::lock")


def refusals(broker: Broker) -> int:
    """Return how often Beat called a function that Redis does not have, so that it tried to run a script."""
    entries = broker.client("admin").acl_log()
    return sum(
        int(one["count"]) for one in entries if one["username"] == "beat" and one["object"] == "evalsha"
    )


def test_a_result_waits_for_a_function_that_is_missing_for_a_moment(
    own: Broker, connect: Callable[[Broker], Any], tmp_path: Path
) -> None:
    """A task that ends meanwhile has succeeded, and its result is there later."""
    app, gate = connect(own), tmp_path / "gate"
    gate.touch()
    with shop(own).worker("one", "--queues=default", "--pool=threads", *FLAGS) as node:
        sent = app.send_task("shop.note", (str(tmp_path / "notes"), "one", str(gate)), queue="default")
        wait_until(lambda: noted(tmp_path, "starts"))
        own.client("admin").function_flush()
        gate.unlink()
        node.wait_for("Redis does not have the function")
        own.load_functions()
        sent.get(timeout=PATIENCE)
        assert not node.lines("Traceback"), "\n".join(node.lines(""))


def test_a_node_without_functions_does_not_start(own: Broker) -> None:
    """It says what to do, in one sentence."""
    own.client("admin").function_flush()
    result = shop(own).run("worker", "worker", "--hostname=one@test", "--pool=solo", *FLAGS)
    assert result.returncode == 1
    assert "playbooks/redis.yml loads it" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_functions_outlive_what_scripts_do_not(own: Broker, connect: Callable[[Broker], Any]) -> None:
    """A flush of scripts, and a restart of Redis.

    A flush of functions a node notices, and goes on when they are back.
    """
    admin = own.client("admin")
    add = connect(own).signature("shop.add", args=(1, 2), queue="default")

    def is_done(result: Any) -> bool:
        return bool(own.client("admin").exists(f"celery-task-meta-{result.id}"))

    with shop(own).worker("one", "--queues=default", "--pool=threads", *FLAGS) as node:
        wait_until(partial(is_done, add.apply_async()))
        admin.script_flush()
        wait_until(partial(is_done, add.apply_async()))
        own.stop()
        own.start()
        wait_until(partial(is_done, add.apply_async()))
        own.client("admin").function_flush()
        waiting = add.apply_async()
        node.wait_for("Redis does not have the function")
        own.load_functions()
        wait_until(partial(is_done, waiting))


def libraries(broker: Broker) -> list[str]:
    """Return the code of each library of functions that a Redis has."""
    found = broker.client("admin").execute_command("FUNCTION LIST", "WITHCODE")
    return sorted(library[library.index("library_code") + 1] for library in found)


@pytest.fixture
def replica(own: Broker, tmp_path: Path) -> Iterator[Broker]:
    """Yield a Redis that has no functions of its own, and copies what the test's own one has."""
    (folder := tmp_path / "replica").mkdir()
    broker = Broker(folder)
    admin = broker.client("admin")
    admin.function_flush()
    for name, value in {
        "tls-ca-cert-file": own.folder / "ca.crt",
        "tls-replication": "yes",
        "masteruser": "admin",
        "masterauth": own.passwords["admin"],
    }.items():
        admin.config_set(name, str(value))
    admin.replicaof(HOST, own.port)
    wait_until(lambda: admin.info("replication")["master_link_status"] == "up")
    yield broker
    broker.stop()


def promote(replica: Broker) -> None:
    """Make a replica the master."""
    admin = replica.client("admin")
    admin.replicaof("NO", "ONE")
    wait_until(lambda: admin.info("replication")["role"] == "master")


def test_a_promoted_replica_has_the_functions(
    own: Broker, replica: Broker, connect: Callable[[Broker], Any]
) -> None:
    """With the data, and in its own file: nothing is to be loaded for nodes and senders to go on."""
    waiting = connect(own).signature("shop.add", args=(1, 2), queue="default").apply_async().id
    wait_until(lambda: replica.client("admin").llen("default") == 1)
    had = libraries(own)
    assert had
    own.process.kill()
    promote(replica)
    assert libraries(replica) == had
    functions._present.clear()  # a sender that is new to it
    app = connect(replica)
    with shop(replica).worker("one", "--queues=default", "--pool=threads", *FLAGS):
        assert app.AsyncResult(waiting).get(timeout=PATIENCE) == 3
        assert app.send_task("shop.add", (3, 4), queue="default").get(timeout=PATIENCE) == 7
        assert "pong" in shop(replica).run("ops", "inspect", "ping").stdout
        with Lock(replica.client("worker"), "unacked_mutex:one@test", timeout=10) as lock:
            assert lock.owned()
    replica.stop()
    replica.start()
    assert libraries(replica) == had
    assert replica.denied() == []


def test_a_replica_loses_the_functions_with_its_master(own: Broker, replica: Broker) -> None:
    """They are loaded into what was promoted, as into any Redis that lacks them."""
    own.client("admin").function_flush()
    wait_until(lambda: not libraries(replica))
    promote(replica)
    client = replica.client("worker")
    with pytest.raises(functions.FunctionMissingError):
        functions.run(client, scripts.ONCE_FINISH, ["fleet:once:key"], ["mine", "", "0"])
    replica.load_functions()
    functions.run(client, scripts.ONCE_FINISH, ["fleet:once:key"], ["mine", "", "0"])


def test_the_old_name_of_the_module_names_the_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Applications outside of the fleet import it."""
    monkeypatch.delitem(sys.modules, "fleet_runtime.functions", raising=False)  # it warns when it is imported
    with pytest.warns(FutureWarning, match="fleet_runtime.broker.functions"):
        old = importlib.import_module("fleet_runtime.functions")
    assert old.adopt is functions.adopt
