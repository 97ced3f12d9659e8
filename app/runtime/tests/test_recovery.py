# SPDX-License-Identifier: MIT
"""The messages of a dead node go back to their queues, once, and no sooner than they should."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery, bootsteps
from fleet_runtime.broker import keys
from fleet_runtime.errors import FleetError
from fleet_runtime.recovery import inflight, preconditions, requeue
from fleet_runtime.recovery.lease import LeaseHeartbeat
from fleet_runtime.recovery.requeue import UnackedRestorer
from fleet_runtime.settings import FleetSettings
from fleet_runtime.transport.qos import QoS
from fleet_runtime.worker import bootsteps as recovery
from kombu import Exchange, Queue
from redis.exceptions import ConnectionError as NoConnectionError
from redis.exceptions import ResponseError

from fleet_testing.broker import HOST, Broker, counted
from fleet_testing.commands import FLAGS, PATIENCE, Daemon, Fleet, noted, shop, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.server
POOLS = ["prefork", "gevent", "threads", "solo"]
DEAD = "dead@test"
LEASE = 3


@pytest.fixture
def admin(broker: Broker) -> Iterator[Any]:
    """Yield a client that may do all, on a Redis without any keys."""
    client = broker.client("admin")
    client.flushall()
    yield client
    client.flushall()


@pytest.fixture
def node(admin: Any, broker: Broker, configure_app: Callable[..., Any]) -> Iterator[Celery]:
    """Yield an app as a node has it, which holds what it takes as a node that is dead now."""
    app = Celery("node", set_as_current=False)
    configure_app(app, "worker", broker.url("worker"))
    app.conf.broker_transport_options.update(recovery.own_keys(DEAD))
    app.conf.task_queues = [
        Queue("default", Exchange("default"), routing_key="default"),
        Queue("email", Exchange("topics", type="topic"), routing_key="mail.*"),
    ]
    admin.zadd(keys.LEASES, {DEAD: 1})
    yield app
    app.close()


@pytest.fixture
def channel(node: Celery) -> Iterator[Any]:
    """Yield a channel that knows the app's queues."""
    with node.connection_for_read() as connection:
        opened = connection.default_channel
        for queue in node.amqp.queues.values():
            queue(opened).declare()
        yield opened


@pytest.fixture
def hold(admin: Any) -> Callable[..., None]:
    """Return a function that lets the dead node hold so many messages."""

    def hold(count: int, exchange: str = "", key: str = "default", priority: int = 0) -> None:
        for number in range(count):
            tag = f"tag-{priority}-{exchange}-{number}"
            properties = {
                "delivery_tag": tag,
                "delivery_info": {"exchange": exchange, "routing_key": key},
                "priority": priority,
            }
            message = {"body": "", "headers": {"id": tag}, "properties": properties}
            admin.hset(keys.unacked(DEAD), tag, json.dumps([message, exchange, key]))
            admin.zadd(keys.unacked_index(DEAD), {tag: time.time()})

    return hold


def give_back(channel: Any, step: int = 100, **options: Any) -> int:
    """Requeue what the dead node held."""
    settings = replace(FleetSettings.from_environment(), give_back_step=step)
    return requeue.restore_unacked(channel, DEAD, "finder@test", settings, **options)


def test_two_who_give_back_at_once_move_each_message_once(
    node: Celery, hold: Callable[..., None], admin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have read the same messages before either moves one."""
    hold(200)
    moved: list[int] = []
    move, both = UnackedRestorer._move, threading.Barrier(2)
    begun = threading.local()

    def together(self: UnackedRestorer, messages: Any) -> int:
        if not hasattr(begun, "yes"):
            begun.yes = True
            both.wait(PATIENCE)
        return move(self, messages)

    def run() -> None:
        with node.connection_for_read() as connection:
            moved.append(give_back(connection.default_channel, step=7))

    monkeypatch.setattr(UnackedRestorer, "_move", together)
    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(moved) == 200
    assert len({tag(text) for text in admin.lrange("default", 0, -1)}) == admin.llen("default") == 200
    assert admin.hlen(keys.unacked(DEAD)) == admin.zcard(keys.unacked_index(DEAD)) == 0


def test_an_interruption_between_steps_loses_nothing(
    channel: Any, hold: Callable[..., None], admin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was not moved is held still, and goes back the next time."""
    hold(25)
    move, calls = UnackedRestorer._move, []

    def interrupted(self: UnackedRestorer, messages: Any) -> int:
        calls.append(messages)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return move(self, messages)

    with monkeypatch.context() as patch:
        patch.setattr(UnackedRestorer, "_move", interrupted)
        with pytest.raises(KeyboardInterrupt):
            give_back(channel, step=5)
    assert (admin.llen("default"), admin.hlen(keys.unacked(DEAD))) == (10, 15)
    assert give_back(channel, step=5) == 15
    assert len({tag(text) for text in admin.lrange("default", 0, -1)}) == admin.llen("default") == 25


def test_a_node_that_lives_again_keeps_the_rest(
    channel: Any, hold: Callable[..., None], admin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lease is looked at with each step, by Redis's own clock."""
    hold(10)
    move = UnackedRestorer._move

    def revived(self: UnackedRestorer, messages: Any) -> int:
        moved = move(self, messages)
        admin.zadd(keys.LEASES, {DEAD: admin.time()[0] + 60})
        return moved

    monkeypatch.setattr(UnackedRestorer, "_move", revived)
    assert give_back(channel, step=4) == 4
    assert (admin.llen("default"), admin.hlen(keys.unacked(DEAD))) == (4, 6)


def test_a_message_goes_where_it_came_from(channel: Any, hold: Callable[..., None], admin: Any) -> None:
    """By its priority, through an exchange of any type, and with a mark."""
    hold(1, priority=9)
    hold(1, "topics", "mail.new")
    held = {json.loads(text)[0]["headers"]["id"] for text in admin.hvals(keys.unacked(DEAD))}
    assert give_back(channel) == 2
    found = [json.loads(admin.lindex(queue, 0)) for queue in ("default\x06\x169", "email")]
    assert {message["headers"]["id"] for message in found} == held
    for message in found:
        assert message["headers"]["fleet_recovered"]
        assert message["headers"]["redelivered"] and message["properties"]["delivery_info"]["redelivered"]


def test_what_stays_with_its_node_is_left_alone(channel: Any, hold: Callable[..., None], admin: Any) -> None:
    """No node has died, so no message is marked as recovered."""
    hold(3)
    kept = admin.hkeys(keys.unacked(DEAD))[0]
    assert give_back(channel, keep={kept}, if_dead=False, died=False) == 2
    assert admin.hkeys(keys.unacked(DEAD)) == [kept]
    assert "fleet_recovered" not in json.loads(admin.lindex("default", 0))["headers"]


@pytest.mark.parametrize(
    "record",
    [
        "not JSON",
        "[1, 2]",
        '[{"headers": {}, "properties": {"delivery_info": {}}}, "nowhere", "key"]',
    ],
)
def test_what_cannot_go_back_goes_to_the_dead_letters(channel: Any, admin: Any, record: str) -> None:
    """The other messages go back."""
    admin.hset(keys.unacked(DEAD), "tag", record)
    assert give_back(channel) == 0
    assert not admin.exists(keys.unacked(DEAD))
    (letter,) = map(json.loads, admin.hvals(keys.DEAD_LETTERS))
    assert (letter["raw"], letter["node"]) == (record, "finder@test")


def test_what_redis_refuses_stays(
    channel: Any, hold: Callable[..., None], admin: Any, broker: Broker
) -> None:
    """The others go back."""
    hold(3)
    record = json.loads(admin.hvals(keys.unacked(DEAD))[0])
    record[1:] = ["", "of-another-fleet"]
    admin.hset(keys.unacked(DEAD), "tag", json.dumps(record))
    assert give_back(channel) == 3
    assert admin.hkeys(keys.unacked(DEAD)) == ["tag"]
    assert broker.denied() == ["worker key of-another-fleet"]
    admin.acl_log_reset()


@pytest.mark.parametrize("requeue", [False, True])
def test_what_could_not_be_settled_is_settled_later(
    node: Celery, admin: Any, monkeypatch: pytest.MonkeyPatch, requeue: bool
) -> None:
    """Also by the same channel: a Redis that refuses to write ends no connection."""
    consumer: Any = SimpleNamespace(
        blueprint=SimpleNamespace(state=bootsteps.RUN), hub=None, pool=SimpleNamespace(flush=None)
    )
    held = inflight.InFlight(consumer)
    message = {"headers": {}, "properties": {"delivery_tag": "tag", "delivery_info": {}}}
    admin.hset(keys.unacked(DEAD), "tag", json.dumps([message, "", "default"]))

    def refuse(*_: Any, **__: Any) -> None:
        """Fail as Redis does."""
        raise ResponseError("MISCONF")

    with node.connection_for_read() as connection:
        channel = connection.channel()
        held.adopt(channel)
        channel.qos._quick_append("tag", None)
        with monkeypatch.context() as patch, pytest.raises(NoConnectionError):
            patch.setattr(QoS, "reject", refuse)
            channel.qos.reject("tag", requeue)
        assert admin.hlen(keys.unacked(DEAD)) == 1
        held.settle()
    assert not admin.exists(keys.unacked(DEAD))
    assert admin.llen("default") == int(requeue)


def test_channel_of_the_consumer_gets_the_number_of_nodes() -> None:
    """It backs off by that number; without a connection there is no channel."""
    step: Any = recovery.Recovery.__new__(recovery.Recovery)
    step._heartbeat, channel = SimpleNamespace(nodes=7), SimpleNamespace()
    step._set_node_count(channel)
    assert channel.nodes == 7
    step._set_node_count(None)


def test_many_leases_do_not_slow_a_tick(node: Celery, channel: Any, admin: Any) -> None:
    """It costs the same whatever the size of the fleet, in time and in commands."""
    now = admin.time()[0]
    admin.zadd(keys.LEASES, {f"node-{number}@test": now + 600 for number in range(500)})
    heartbeat = LeaseHeartbeat(node, "one@test", node.fleet_settings, dict, lambda client: None)
    heartbeat.tick(channel)
    assert heartbeat.nodes == admin.zcard(keys.LEASES) > 500
    with counted() as sent:
        heartbeat.tick(channel)
    assert 0 < sent["commands"] / heartbeat._interval_s < 2
    times = []
    for _ in range(20):
        started = time.monotonic()
        heartbeat.tick(channel)
        times.append(time.monotonic() - started)
    assert statistics.median(times) < 0.05
    admin.zadd(keys.LEASES, {f"node-{number}@test": 1 for number in range(8)})  # a host is gone
    heartbeat._grace_until = 0
    heartbeat.tick(channel)
    assert admin.zcard(keys.LEASES) == 1 + 492, "those of the host are not forgotten, or others are"


def test_who_was_cut_off_itself_counts_nobody_as_dead(
    node: Celery, channel: Any, hold: Callable[..., None], admin: Any
) -> None:
    """After Redis was away, all leases have ended. A node that has just started knows no lease yet."""
    hold(1)
    heartbeat = LeaseHeartbeat(node, "one@test", node.fleet_settings, dict, lambda client: lapses.append(1))
    lapses: list[int] = []
    heartbeat.tick(channel)
    heartbeat.tick(channel)
    assert (admin.hlen(keys.unacked(DEAD)), lapses) == (1, []), "it has just started"
    heartbeat._grace_until = 0
    admin.zadd(keys.LEASES, {"one@test": 1})
    heartbeat.tick(channel)
    assert (admin.hlen(keys.unacked(DEAD)), lapses, heartbeat.expirations) == (1, [1], 1)
    heartbeat._grace_until = 0
    heartbeat.tick(channel)
    assert (admin.hlen(keys.unacked(DEAD)), heartbeat.recovered) == (0, 1)
    assert admin.zrange(keys.LEASES, 0, -1) == ["one@test"]
    assert not admin.exists(keys.unacked_index(DEAD))


def test_the_unit_of_a_dead_node_gives_back_what_it_held(
    fleet: Fleet, channel: Any, hold: Callable[..., None], admin: Any
) -> None:
    """At once, though its lease goes on, and without the app; what cannot be read is left to the node."""
    admin.zadd(keys.LEASES, {DEAD: admin.time()[0] + 60})
    steps = list(range(10))  # of the node's app: with kombu's own, 5 would go where it does not look
    facts = {"exchanges": {"topics": "topic"}, "priority_steps": steps}
    admin.hset(keys.NODES, DEAD, json.dumps(facts))
    hold(1, priority=5)
    hold(2, "topics", "mail.new")
    admin.hset(keys.unacked(DEAD), "tag", "not JSON")
    result = end_of_unit(fleet)
    assert result.stdout == f"<4>Requeued what {DEAD} held when it died: 3 messages.\n", result
    assert (admin.llen("default\x06\x165"), admin.llen("email")) == (1, 2)
    assert json.loads(admin.lindex("email", 0))["headers"]["fleet_recovered"]
    assert admin.hkeys(keys.unacked(DEAD)) == ["tag"]
    assert not admin.exists(keys.DEAD_LETTERS)
    for module in ("celery", "fleet_runtime.dead_letters"):
        assert module not in result.stderr, f"it imports {module}, and takes longer than it must"


def test_the_unit_of_a_node_that_was_refused_gives_nothing_back(
    fleet: Fleet, channel: Any, hold: Callable[..., None], admin: Any
) -> None:
    """What it would find is what the other node of its name runs."""
    hold(1)
    admin.hset(keys.NODES, DEAD, json.dumps({"host": "elsewhere"}))
    assert end_of_unit(fleet).stdout == ""
    assert admin.hlen(keys.unacked(DEAD)) == 1


def test_the_unit_of_a_dead_node_waits_for_nobody(fleet: Fleet) -> None:
    """The node is to start, whether Redis answers or not."""
    url, port = fleet.broker.url("worker"), fleet.broker.port
    with socket.create_server((HOST, 0)) as silent:
        began = time.monotonic()
        result = end_of_unit(
            fleet, CELERY_BROKER_URL=url.replace(f":{port}/", f":{silent.getsockname()[1]}/")
        )
        assert time.monotonic() - began < 10
    assert result.stdout.startswith("<4>The messages of this node are requeued when it starts: ")
    assert "Traceback" not in result.stderr
    assert not re.search("p(@|%40)ss", result.stdout + result.stderr), "a password is printed"


@pytest.mark.parametrize("pool", POOLS)
def test_a_killed_node_that_starts_again_runs_at_once_what_it_held(
    fleet: Fleet, web: Celery, admin: Any, tmp_path: Path, pool: str
) -> None:
    """What it had begun, and what it had only reserved."""
    gate, names = tmp_path / "gate", ["0", "1", "2", "3"]
    gate.touch()
    words = ("--queues=default", f"--pool={pool}", "--prefetch-multiplier=2", *FLAGS)
    with fleet.worker("one", *words) as worker:
        for name in names:
            web.send_task("shop.note", (str(tmp_path / "notes"), name, str(gate)), queue="default")
        begun = 1 if pool == "solo" else 2
        # At least: solo and gevent take no more while they wait with a task in their hands.
        held = {"solo": 1, "gevent": 3}.get(pool, 4)
        wait_until(lambda: len(noted(tmp_path, "starts")) == begun)
        # All that it takes: one that dies between a pop and its record loses that message.
        wait_until(lambda: admin.hlen("unacked:one@test") >= held)
        kill(worker)
    gate.unlink()
    with fleet.worker("one", *words):
        ready = time.monotonic()
        wait_until(lambda: len(noted(tmp_path, "ends")) == 4)
        assert time.monotonic() - ready < 5
        wait_until(lambda: not admin.exists("unacked:one@test"))
    assert sorted(noted(tmp_path, "ends")) == names
    assert len(noted(tmp_path, "starts")) == 4 + begun
    assert not admin.keys("fleet:nodes") + admin.keys("fleet:leases") + admin.keys("unacked*")


def test_what_a_killed_node_held_comes_back_by_its_lease(
    fleet: Fleet, web: Celery, admin: Any, tmp_path: Path
) -> None:
    """Another node runs it, and then nothing is left of the first one."""
    gate = tmp_path / "gate"
    gate.touch()
    words = ("--queues=default", "--pool=threads", *FLAGS)
    with (
        fleet.worker("one", *words, FLEET_LEASE=str(LEASE)) as one,
        fleet.worker("two", "--queues=email", *words[1:], FLEET_LEASE=str(LEASE)) as two,
    ):
        assert set(json.loads(admin.hget(keys.NODES, "one@test"))) == {
            "pid", "host", "pool", "concurrency", "running", "queues", "exchanges", "release", "started",
            "lapses", "recovered", "proved", "unproved", "excused", "held", "priority_steps",
            "overdue", "reconnects", "silence", "dropped", "refused", "level",
        }  # fmt: skip
        web.send_task("shop.note", (str(tmp_path / "notes"), "2"), queue="default", countdown=1000)
        wait_until(lambda: json.loads(admin.hget(keys.NODES, "one@test"))["held"] == {"default": 1})
        for name in ("0", "1"):
            web.send_task("shop.note", (str(tmp_path / "notes"), name, str(gate)), queue="default")
        wait_until(lambda: admin.hlen("unacked:one@test") == 3)
        kill(one)
        killed = time.monotonic()
        wait_until(lambda: admin.llen("default") == 3)
        assert time.monotonic() - killed < LEASE + 10
        two.wait_for("one@test is gone: its lease has ended. Messages requeued: 3.")
        wait_until(lambda: json.loads(admin.hget(keys.NODES, "two@test"))["recovered"] == 3)
        assert admin.zrange(keys.LEASES, 0, -1) == admin.hkeys(keys.NODES) == ["two@test"]
        assert not admin.keys("unacked*")


@pytest.mark.long
def test_a_task_with_an_eta_runs_once_through_three_restarts(
    fleet: Fleet, web: Celery, admin: Any, tmp_path: Path
) -> None:
    """However they come about, and though its time is further off than twice the lease."""
    words, countdown = ("--pool=solo", *FLAGS), 30
    with fleet.worker("two", "--queues=email", *words, FLEET_LEASE=str(LEASE)):
        web.send_task("shop.note", (str(tmp_path / "notes"), "0"), queue="default", countdown=countdown)
        due = time.time() + countdown
        for end in (kill, Daemon.__exit__, kill):
            with fleet.worker("one", "--queues=default", *words, FLEET_LEASE=str(LEASE)) as one:
                wait_until(lambda: admin.hlen("unacked:one@test") == 1)
                end(one)
        with fleet.worker("one", "--queues=default", *words, FLEET_LEASE=str(LEASE)):
            wait_until(lambda: admin.hlen("unacked:one@test") == 1)
            assert time.time() < due - 2 * LEASE, "the restarts took too long to prove anything"
            wait_until(lambda: noted(tmp_path, "ends"))
            assert time.time() > due - 1
            time.sleep(LEASE)
    assert noted(tmp_path, "starts") == ["0"]


def test_a_node_that_stood_still_leaves_to_others_what_it_had_not_begun(
    fleet: Fleet, web: Celery, admin: Any, tmp_path: Path
) -> None:
    """It says what runs twice, and counts."""
    gate = tmp_path / "gate"
    gate.touch()
    words = ("--pool=threads", *FLAGS)
    with fleet.worker("one", "--queues=default", *words, FLEET_LEASE=str(LEASE)) as one:
        web.send_task("shop.note", (str(tmp_path / "notes"), "waits"), queue="default", countdown=30)
        web.send_task("shop.note", (str(tmp_path / "notes"), "runs", str(gate)), queue="default")
        wait_until(lambda: admin.hlen("unacked:one@test") == 2)
        with fleet.worker("two", "--queues=default", *words, FLEET_LEASE=str(LEASE)) as two:
            one.process.send_signal(signal.SIGSTOP)
            two.wait_for("one@test is gone")
            one.process.send_signal(signal.SIGCONT)
            (line,) = one.wait_for("The lease had ended")
            assert "were requeued, too: shop.note[" in line
            assert line.endswith("requeued: 1.")
            wait_until(lambda: json.loads(admin.hget(keys.NODES, "one@test"))["lapses"] == 1)
            gate.unlink()
            wait_until(lambda: "waits" in noted(tmp_path, "ends"))
            time.sleep(2)
    assert sorted(noted(tmp_path, "ends")) == ["runs", "runs", "waits"]


def test_a_warm_shutdown_leaves_no_key(fleet: Fleet, web: Celery, admin: Any, tmp_path: Path) -> None:
    """What had not begun is in its queue, and not marked as if its node had died."""
    with ExitStack() as stack:
        for pool in POOLS:
            stack.enter_context(fleet.worker(pool, "--queues=default", f"--pool={pool}", *FLAGS))
        for _ in POOLS:
            web.send_task("shop.note", (str(tmp_path / "notes"), "0"), queue="default", countdown=1000)
        wait_until(lambda: sum(admin.hlen(f"unacked:{pool}@test") for pool in POOLS) == 4)
        assert admin.zcard(keys.LEASES) == 4
    assert admin.keys("unacked*") + admin.keys("fleet:*") == [keys.HISTORY]
    messages = [json.loads(text) for text in admin.lrange("default", 0, -1)]
    assert len(messages) == 4
    assert not any("fleet_recovered" in message["headers"] for message in messages)


def test_a_node_without_a_right_does_not_start(tmp_path: Path) -> None:
    """It says which, and whose, in one sentence."""
    broker = Broker(tmp_path)
    try:
        broker.take_right("worker", "hscan")
        result = shop(broker).run("worker", "worker", "--hostname=one@test", "--pool=solo", *FLAGS)
    finally:
        broker.stop()
    assert result.returncode == 1
    sentence = "celery: Redis does not let its user worker do what a node needs: HSCAN unacked:one@test 0"
    assert result.stderr.splitlines()[-1].startswith(sentence)
    assert "Traceback" not in result.stderr


def test_a_node_with_the_name_of_another_one_does_not_start(fleet: Fleet, admin: Any) -> None:
    """It would requeue what the other one runs."""
    words = ("worker", "--hostname=one@test", "--pool=solo", "--queues=default", *FLAGS)
    admin.hset(keys.NODES, "one@test", json.dumps({"host": "elsewhere"}))
    gone = threading.Event()

    def renew() -> None:
        admin.zadd(keys.LEASES, {"one@test": admin.time()[0] + 5})

    def go_on_renewing() -> None:
        while not gone.wait(0.5):
            renew()

    renew()
    renewing = threading.Thread(target=go_on_renewing)
    renewing.start()
    try:
        result = fleet.run("worker", *words)
    finally:
        gone.set()
        renewing.join()
    assert result.returncode == 1
    sentence = result.stderr.splitlines()[-1]
    assert sentence.startswith("celery: the host elsewhere has a node one@test, too.")
    assert "Traceback" not in result.stderr


def test_a_node_waits_for_the_lease_of_a_host_that_is_gone(fleet: Fleet, admin: Any) -> None:
    """A host that was replaced has left one, which ends."""
    admin.hset(keys.NODES, "one@test", json.dumps({"host": "elsewhere"}))
    admin.zadd(keys.LEASES, {"one@test": admin.time()[0] + PATIENCE})
    with ExitStack() as stack:
        node = fleet.worker("one", "--pool=solo", "--queues=default", *FLAGS)
        stack.callback(node.process.kill)
        node.wait_for("There is a node one@test on the host elsewhere. Waiting for the end of its lease.")
        admin.zadd(keys.LEASES, {"one@test": admin.time()[0] - 1})
        stack.enter_context(node)
        assert json.loads(admin.hget(keys.NODES, "one@test"))["host"] == socket.gethostname()


def test_an_old_redis_is_refused() -> None:
    """It lacks what the scripts need."""

    class Old:
        def execute_command(self, *_: str) -> list[bytes]:
            return [b"server", b"redis", b"version", b"6.0.16"]

    with pytest.raises(FleetError, match=r"this Redis is 6.0.16, and a node needs 7.0 or newer."):
        preconditions._require_version(Old())


def end_of_unit(fleet: Fleet, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run what systemd runs when a node's processes are gone."""
    return subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "fleet_runtime.recovery.requeue"],
        env={**fleet.component("worker"), "FLEET_NODE": DEAD, **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )


def kill(daemon: Daemon) -> None:
    """Kill a node with its children, as systemd kills a control group."""
    pid = daemon.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for each in [pid, *map(int, children)]:
        os.kill(each, signal.SIGKILL)
    daemon.process.wait()


def tag(text: str) -> str:
    """Return the delivery tag of a message."""
    return str(json.loads(text)["properties"]["delivery_tag"])
