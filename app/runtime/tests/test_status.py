# SPDX-License-Identifier: MIT
"""`celery -A fleet_runtime.app fleet status` shows the state of a fleet, and its problems."""

from __future__ import annotations

import json
import re
import threading
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from fleet_runtime.broker import keys
from fleet_runtime.broker.keys import REDBEAT_LOCK, REDBEAT_PREFIX
from fleet_runtime.cli import render
from fleet_runtime.inspect import status
from fleet_runtime.inspect.drains import Drained
from fleet_runtime.inspect.schedule import Schedule
from fleet_runtime.inspect.status import Node, QueueState, Server, Status
from fleet_runtime.recovery import history
from redis.exceptions import ResponseError

from fleet_testing import items
from fleet_testing.commands import PATIENCE, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from fleet_testing.broker import Broker
    from fleet_testing.commands import Fleet

SERVER = Server("7.0.15", "master", 100, 1000, persistent=True, loading=False, replicas=0, link_up=True)
NODE = Node("default-1@w", lease=20, reserved=0, running=0, queues=["default"], uptime=600)
WELL = Status(
    server=SERVER,
    nodes=[NODE],
    queues=[QueueState("default", 0, None, 1)],
    dead_letters=0,
    schedule=Schedule(25, "nightly", "2026-01-01T00:00:00+00:00"),
)


EMPTY = Schedule(None, None, None)


def test_a_fleet_that_is_well_has_no_problem() -> None:
    """Dead letters are no problem of the fleet's, and an empty schedule needs no Beat."""
    assert WELL.problems() == []
    assert replace(WELL, dead_letters=7, schedule=Schedule(None, None, None)).problems() == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"server": replace(SERVER, loading=True)}, "loading"),
        ({"server": replace(SERVER, persistent=False)}, "append-only file refuses"),
        ({"server": replace(SERVER, memory=950)}, "95% of its memory"),
        ({"server": replace(SERVER, role="slave", link_up=False)}, "primary is away"),
        ({"nodes": [*WELL.nodes, Node("a-1@h", lease=-5, reserved=3)]}, "a-1@h .* holds 3 messages"),
        ({"nodes": []}, "No node is alive"),
        ({"queues": [QueueState("lost", 4, 60, 0)]}, "queue lost, where 4 messages wait"),
        ({"schedule": Schedule(None, "nightly", None)}, "no Beat holds its lock"),
        (
            {"schedule": EMPTY, "beat": "redbeat", "beat_wanted": 300},
            "inventory wants a Beat, and none holds",
        ),
        ({"schedule": EMPTY, "beat": "persistent", "beat_wanted": 300}, "a Beat, and none renews its lease"),
        ({"schedule": Schedule(25, "nightly", "2026", late=61, entries=1)}, "nightly was due 61 s ago"),
        ({"dead_lately": 100}, "100 tasks failed for good in the last 10 minutes"),
        ({"wanted": {"default-1@w": 0, "io-1@w": 301}}, "io-1@w is missing.* 5 minutes. On w: journalctl"),
        ({"falls": {"default-1@w": 3}}, "default-1@w ended and was restarted 3 times"),
        ({"falls": {"io-1@w": 5}, "wanted": {"io-1@w": 20}}, "io-1@w ended and was restarted 5 times"),
        (
            {"nodes": [replace(NODE, overdue=2, concurrency=2)]},
            "2 of 2 slots taken .* restart celery-worker@def",
        ),
        ({"nodes": [replace(NODE, silence=120)]}, "default-1@w has not listened for .* for 120 s"),
        ({"nodes": [replace(NODE, reconnects=5)]}, "lost its connection to Redis 5 times"),
        ({"queues": [QueueState("default", 3, 61, 1)]}, "default-1@w takes nothing .* though it has room"),
        # sent by a plain Celery
        (
            {"queues": [QueueState("default", 3, None, 1, untaken=5)]},
            "takes nothing .* for 5 s or more, though",
        ),
    ],
)
def test_what_is_wrong_is_said(change: dict[str, Any], said: str) -> None:
    """Each thing that is wrong is one sentence."""
    (problem,) = replace(WELL, **change).problems()
    assert re.search(said, problem)


@pytest.mark.parametrize(
    "change",
    [
        # a release restarts a node, and it imports a large app
        {"nodes": [NODE, replace(NODE, name="io-1@w")], "wanted": {"default-1@w": 9, "email-1@w": 299}},
        {"falls": {"default-1@w": 2}},
        # a host that was drained
        {"wanted": {"default-1@v": 9999}, "drained": [Drained("v", 9999, "a new disk")]},
        # a pool with `nodes: 0`
        {"queues": [*WELL.queues, QueueState("rare", 0, None, 0)], "idle_queues": ["rare"]},
        # Redis was away for longer than a lease
        {
            "server": replace(SERVER, uptime=20),
            "nodes": [replace(NODE, lease=-40)],
            "queues": [QueueState("default", 3, 90, 0)],
            "wanted": {"io-1@w": 999},
        },
        # nodes are busy, wait for an ETA, or have just come
        {"nodes": [replace(NODE, running=1)], "queues": [QueueState("default", 3, 90, 1)]},
        {"nodes": [replace(NODE, reserved=4)], "queues": [QueueState("default", 3, 90, 1)]},
        {"nodes": [replace(NODE, uptime=20)], "queues": [QueueState("default", 3, 90, 1)]},
        {"queues": [QueueState("default", 3, None, 1)]},
        {"schedule": Schedule(25, "nightly", "2026", late=4, entries=1)},
        # a Beat is being installed, has nothing to send yet, or keeps its schedule elsewhere
        {"schedule": EMPTY, "beat": "redbeat", "beat_wanted": 299},
        {"schedule": Schedule(25, None, None), "beat": "redbeat", "beat_wanted": 999},
        {"schedule": EMPTY, "beat": "persistent", "beat_wanted": 299},
        {
            "schedule": Schedule(None, "nightly", "2026", late=999),
            "beat": "persistent",
            "beat_wanted": 999,
            "beat_lease": 60,
        },
        {"nodes": [replace(NODE, silence=60)]},
        {"dead_lately": 99},
    ],
)
def test_what_passes_by_itself_or_was_meant_is_no_problem(change: dict[str, Any]) -> None:
    """No false alarm."""
    assert replace(WELL, **change).problems() == []


ODD = {
    **items.no_messages(),
    **items.bad_messages(),
    **{
        f"sent at {value}": json.dumps({"properties": {"fleet_sent": "HERE"}})
        .replace('"HERE"', value)
        .encode()
        for value in ("NaN", "1e400", "-1e400", f"1{400 * '0'}", f"1{5000 * '0'}", "[]", "null")
    },
}


@pytest.mark.parametrize("item", ODD.values(), ids=ODD)
def test_what_is_no_message_has_no_age(item: bytes) -> None:
    """Any item may be at the head of any queue, since a sender may put it there."""
    assert status._age(item) is None


def test_a_queue_with_an_odd_item_at_its_head_is_told_of(fleet: Fleet, broker: Broker) -> None:
    """With its depth, and "-" for its age."""
    admin = broker.client("admin")
    for item in (b"5", b"[]", items.nested(100_000).encode()):
        admin.delete("default")
        admin.rpush("default", item)
        told = fleet.run("ops", "fleet", "status")
        assert re.search(r"(?m)^default +1 +- ", told.stdout), told
        assert "Traceback" not in told.stderr


@pytest.mark.parametrize(
    ("scheduler", "line"),
    [
        ("redbeat", "No Beat holds the lock. The schedule is empty"),
        ("persistent", "No Beat renews its lease. Its schedule is in a file"),
    ],
)
def test_a_beat_that_is_wanted_is_known(fleet: Fleet, broker: Broker, scheduler: str, line: str) -> None:
    """From the record of the inventory in Redis."""
    admin, told = broker.client("admin"), json.dumps({"scheduler": scheduler, "since": time.time() - 999})
    admin.delete(keys.WANTED, REDBEAT_LOCK, f"{REDBEAT_PREFIX}:schedule")
    admin.set(keys.WANTED_BEAT, told)
    shown = fleet.run("ops", "fleet", "status")
    assert f"Beat          {line}" in shown.stdout, shown
    found = json.loads(fleet.run("ops", "fleet", "status", "--json").stdout)
    assert (found["beat"], found["wanted"], found["beat_lease"]) == (scheduler, {}, None)
    assert found["beat_wanted"] >= 999
    admin.delete(keys.WANTED_BEAT)


def test_a_schedule_with_nothing_to_send_says_so() -> None:
    """Also where Celery's own entry is all that there is."""
    assert "nothing to send" in str(Schedule(25, None, None))
    assert "the app has none" in str(Schedule(25, "celery.backend_cleanup", "2026", entries=1))
    assert "the app has none" not in str(Schedule(25, "celery.backend_cleanup", "2026", entries=2))


def test_a_node_falls_that_dies_or_ends_soon(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that stops after a while was stopped by an operator."""
    client = broker.client("worker")
    clock = iter([1000.0, 1200.0, 1210.0, 1400.0, 1500.0, 1510.0])
    monkeypatch.setattr("fleet_runtime.recovery.history.time.time", lambda: next(clock))
    for step, falls in (
        (history.record_start, 0),  # at 1000
        (history.record_stop, 0),  # a release
        (history.record_start, 0),  # at 1210
        (history.record_start, 1),  # at 1400: it was killed
        (history.record_stop, 1),
        (history.record_start, 1),  # at 1510
    ):
        step(client, "a@w")
        assert len(json.loads(client.hget(keys.HISTORY, "a@w"))["falls"]) == falls
    monkeypatch.setattr("fleet_runtime.recovery.history.time.time", lambda: 1520.0)
    for number in range(2, 15):
        history.record_stop(client, "a@w")
        history.record_start(client, "a@w")
        assert len(json.loads(client.hget(keys.HISTORY, "a@w"))["falls"]) == min(number, history.CRASHES_KEPT)


def test_a_node_that_is_wanted_and_went(fleet: Fleet, broker: Broker) -> None:
    """From the record of the inventory in Redis, and the last start and stop of the node."""
    admin, now = broker.client("admin"), time.time()
    admin.delete(keys.DEAD)  # those of other tests
    for name, since in (("here-1@w", now - 999), ("gone-1@w", now - 999), ("never-1@w", now - 700)):
        admin.hset(keys.WANTED, name, json.dumps({"queues": ["io"], "since": since}))
    admin.hset(keys.WANTED, keys.IDLE_QUEUES, json.dumps(["rare"]))
    admin.hset(
        keys.NODES, "here-1@w", json.dumps({"queues": ["io"], "held": {"io": 2}, "started": now - 900})
    )
    admin.zadd(keys.LEASES, {"here-1@w": now + 60})
    admin.hset(
        keys.HISTORY,
        "gone-1@w",
        json.dumps({"started": now - 30, "left": now - 20, "falls": [now - 700, now - 40]}),
    )
    admin.zadd(f"{REDBEAT_PREFIX}:schedule", {"redbeat:ended": -1, "redbeat:tick": now - 100})
    admin.set(REDBEAT_LOCK, "x", ex=20)
    admin.zadd(keys.DEAD, {"old": now - 700, **{str(number): now for number in range(100)}})

    found = json.loads(fleet.run("ops", "fleet", "status", "--json").stdout)
    assert found["wanted"]["never-1@w"] == pytest.approx(705, abs=15)
    assert found["wanted"]["gone-1@w"] == pytest.approx(25, abs=15)
    assert found["falls"]["gone-1@w"] == 1
    assert found["idle_queues"] == ["rare"]
    assert (found["dead_letters"], found["dead_lately"]) == (101, 100)
    (io,) = [queue for queue in found["queues"] if queue["name"] == "io"]
    assert (io["unacked"], io["consumers"]) == (2, 1)
    assert (found["schedule"]["entry"], found["schedule"]["entries"]) == ("tick", 2)
    assert found["schedule"]["late"] == pytest.approx(105, abs=15)
    problems = " ".join(found["problems"])
    assert "was due" in problems
    assert "100 tasks failed for good" in problems


def test_a_node_and_a_queue_that_waits(fleet: Fleet, broker: Broker, web: Any) -> None:
    """What waits is counted in every priority, with the age of the oldest."""
    for priority in (0, 9):
        web.send_task("fleet.probe", queue="heavy", priority=priority)
    admin = broker.client("admin")
    admin.lpush("io", b"no message at all")
    facts = {
        "pool": "solo",
        "concurrency": 1,
        "queues": ["heavy"],
        "release": "r",
        "started": time.time() - 60,
    }
    admin.hset(keys.NODES, "heavy-1@test", json.dumps(facts))
    admin.zadd(keys.LEASES, {"heavy-1@test": time.time() + 25, "gone-1@test": time.time() - 5})
    admin.hset(keys.unacked("gone-1@test"), "tag", "[]")
    admin.delete(keys.DEAD)  # those of other tests
    admin.zadd(keys.DEAD, {str(number): time.time() for number in range(100)})
    time.sleep(1)

    done = fleet.run("ops", "fleet", "status", "--json")
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    nodes = {node["name"]: node for node in found["nodes"]}
    assert nodes["heavy-1@test"]["lease"] == pytest.approx(20, abs=10)
    assert nodes["heavy-1@test"]["uptime"] == pytest.approx(65, abs=10)
    assert nodes["gone-1@test"]["lease"] < 0
    assert nodes["gone-1@test"]["reserved"] == 1
    queues = {queue["name"]: queue for queue in found["queues"]}
    assert (queues["heavy"]["depth"], queues["heavy"]["consumers"]) == (2, 1)
    assert 1 <= queues["heavy"]["oldest"] < 30
    assert any("100 tasks failed" in problem for problem in found["problems"])

    shown = fleet.run("ops", "fleet", "status").stdout
    version = broker.client("admin").info()["redis_version"]
    for text in ("heavy-1@test", "solo x1", "gone-1@test", "ended", f"Redis         {version}", "! "):
        assert text in shown, shown


def test_a_message_of_a_plain_celery_that_nobody_takes(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It does not say since when it waits, so it is looked at twice; what is taken meanwhile is no fault."""
    monkeypatch.setattr(status, "SECOND_READ_S", 1)
    admin = broker.client("admin")
    facts = {"queues": ["io"], "started": time.time() - 600, "dropped": {"control commands": 3}}
    admin.hset(keys.NODES, "plain-1@test", json.dumps(facts))
    admin.zadd(keys.LEASES, {"plain-1@test": time.time() + 60})
    app = Celery("ops", broker=broker.url("ops"), set_as_current=False)
    admin.delete("io")
    admin.lpush("io", json.dumps({"properties": {"delivery_tag": "one"}}))

    def problems() -> list[str]:
        found = status.read(app)
        found = replace(found, server=replace(found.server, uptime=600))
        return [said for said in found.problems() if "plain-1@test takes nothing" in said]

    assert len(problems()) == 1

    def take(_: float) -> None:
        """Let a node take it, and another one come."""
        admin.delete("io")
        admin.lpush("io", json.dumps({"properties": {"delivery_tag": "two"}}))

    monkeypatch.setattr(time, "sleep", take)
    assert problems() == []
    found = status.read(app)
    render.show(found, [])
    assert "Dropped       plain-1@test: 3 of control commands, which were invalid" in capsys.readouterr().out


def test_it_answers_soon_when_redis_is_away(fleet: Fleet, tmp_path: Path) -> None:
    """An operator gets the reason, and does not wait."""
    del tmp_path
    nowhere: Any = _Nowhere(fleet.broker)
    fleet_without = type(fleet)(nowhere, fleet.environment["FLEET_APP"], **_rest(fleet))
    began = time.monotonic()
    done = fleet_without.run("ops", "fleet", "status")
    assert done.returncode != 0
    assert "Redis cannot be asked" in done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - began < 20  # most of it is Python's start


def test_a_script_that_does_not_end_is_told_of(fleet: Fleet, broker: Broker) -> None:
    """With what ends it: until then Redis does nothing else, and no task runs."""
    admin, runs = broker.client("admin"), threading.Event()
    admin.config_set("busy-reply-threshold", 100)

    def run_for_ever() -> None:
        runs.set()
        with suppress(ResponseError):  # it is killed
            broker.client("admin").eval("while true do end", 0)

    script = threading.Thread(target=run_for_ever)
    script.start()
    try:
        runs.wait(PATIENCE)
        wait_until(lambda: is_busy(admin))
        done = fleet.run("ops", "fleet", "status")
    finally:
        wait_until(lambda: killed(admin))
        script.join()
        admin.config_set("busy-reply-threshold", 5000)
    assert done.returncode == 1
    assert "A script or a function does not end" in done.stderr
    assert "SCRIPT KILL" in done.stderr


def is_busy(admin: Any) -> bool:
    """Return whether Redis does nothing but run a script."""
    try:
        admin.get("any")
    except ResponseError as error:
        return str(error).startswith("BUSY")
    return False


def killed(admin: Any) -> bool:
    """Return whether no script runs any more, after ending one."""
    with suppress(ResponseError):
        admin.script_kill()
    return not is_busy(admin)


class _Nowhere:
    """A broker that is away."""

    def __init__(self, broker: Broker) -> None:
        """Take the real one's URL."""
        self._broker = broker

    def url(self, user: str) -> str:
        """Return a URL with a port on which no process listens."""
        return str(self._broker.url(user)).replace(f":{self._broker.port}/", ":1/")


def _rest(fleet: Fleet) -> dict[str, str]:
    """Return the other variables of a fleet."""
    return {name: value for name, value in fleet.environment.items() if name not in ("FLEET_APP", "PATH")}
