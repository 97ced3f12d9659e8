# SPDX-License-Identifier: MIT
"""A node notifies systemd: real nodes, and a socket in place of systemd's."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from celery import bootsteps
from celery.concurrency import prefork, thread
from celery.worker import state
from fleet_runtime.worker.bootsteps import _concurrency
from fleet_runtime.worker.watchdog import LEAK_WATCHDOG_TIMES, STOP_TIMEOUT_S, Watchdog, fetches_nothing
from kombu.asynchronous.timer import Timer

from fleet_testing.broker import Broker
from fleet_testing.commands import APPS, PATIENCE, Daemon, Fleet
from fleet_testing.params import FIRST_OF_POOLS
from fleet_testing.systemd import Systemd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# A node says that it is well every quarter of it, and waits no longer than the other setting for an answer.
SECONDS = 8
LIMITS = {"FLEET_NODE_WATCHDOG": str(SECONDS), "FLEET_SOCKET_TIMEOUT": "5"}
FLAGS = ("--queues=default", "--concurrency=2", "--without-gossip", "--without-mingle", "--time-limit=60")


@pytest.fixture
def systemd(tmp_path: Path) -> Systemd:
    """Return a systemd that waits."""
    return Systemd(tmp_path)


@pytest.fixture
def node(systemd: Systemd, redis_server: Broker) -> Callable[..., Daemon]:
    """Return a function that starts a node as its unit does."""
    return lambda pool, *words, broker=redis_server, **variables: start(
        systemd, broker, pool, *words, **variables
    )


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[Broker]:
    """Yield a broker that a test may stop, or leave tasks on that would come back in another test."""
    (tmp_path / "redis").mkdir()
    broker = Broker(tmp_path / "redis")
    yield broker
    broker.process.send_signal(signal.SIGCONT)
    broker.stop()


def start(systemd: Systemd, broker: Broker, pool: str, *words: str, **variables: str) -> Daemon:
    """Start a node that notifies the fake of systemd."""
    return Fleet(broker, "hanging:app", PYTHONPATH=APPS).worker(
        f"{pool}-1",
        f"--pool={pool}",
        *FLAGS,
        *words,
        NOTIFY_SOCKET=str(systemd.address),
        WATCHDOG_USEC="300000000",
        WATCHDOG_PID="1",
        **{**LIMITS, **variables},
    )


@pytest.mark.parametrize("pool", FIRST_OF_POOLS)
def test_a_node_that_turns_says_so(
    systemd: Systemd, node: Callable[..., Daemon], web: Any, pool: str
) -> None:
    """Often enough, and with the time that systemd is to wait. Tasks cannot speak for it."""
    with node(pool):
        assert systemd.wait_for("consuming") == {
            "WATCHDOG": "1",
            "WATCHDOG_USEC": str(SECONDS * 10**6),
            "STATUS": "consuming; 0 active",
        }
        assert web.send_task("hanging.work", (0,), queue="default").get(timeout=PATIENCE) == []
        assert len(systemd.answers(SECONDS)) >= 3


@pytest.mark.parametrize(
    "pool", ["prefork", *(pytest.param(pool, marks=pytest.mark.long) for pool in ("threads", "solo"))]
)
def test_a_node_whose_loop_hangs_says_nothing(
    systemd: Systemd, node: Callable[..., Daemon], pool: str
) -> None:
    """The broker answers, and no task may hold up the loop. The journal has where it hung."""
    with node(pool) as hanging:
        systemd.wait_for("consuming")
        hanging.process.send_signal(signal.SIGUSR2)
        time.sleep(SECONDS / 4 + 1)
        assert systemd.answers(SECONDS) == []
        hanging.wait_for("This node has fetched no messages for")
        hanging.process.send_signal(signal.SIGABRT)
        assert hanging.process.wait(PATIENCE) == -signal.SIGABRT
        assert any(" in hang" in line for line in hanging.lines("hanging.py"))


def test_a_task_that_blocks_every_greenlet_silences_its_node(
    systemd: Systemd, node: Callable[..., Daemon], own_broker: Broker, connect: Callable[..., Any]
) -> None:
    """No other task of the node goes on meanwhile, neither its loop."""
    with node("gevent", broker=own_broker) as blocked:
        systemd.wait_for("consuming")
        connect(own_broker).send_task("hanging.block", (1000,), queue="default")
        blocked.wait_for("hanging.block")
        time.sleep(SECONDS / 4 + 1)
        assert systemd.answers(SECONDS) == []
        blocked.process.kill()


def test_a_node_that_has_just_started_is_watched_soon(systemd: Systemd, node: Callable[..., Daemon]) -> None:
    """It may have begun to consume before its process was known: the next answer has the time, too."""
    with node("prefork", FLEET_NODE_WATCHDOG="60"):
        systemd.wait_for("consuming")
        assert systemd.answers(3)
        assert systemd.answers(3) == []


def test_a_node_that_is_stopped_says_nothing(systemd: Systemd, node: Callable[..., Daemon]) -> None:
    """As by SIGSTOP."""
    with node("prefork") as stopped:
        systemd.wait_for("consuming")
        stopped.process.send_signal(signal.SIGSTOP)
        try:
            assert systemd.answers(SECONDS) == []
        finally:
            stopped.process.send_signal(signal.SIGCONT)
        systemd.wait_for("consuming")


@pytest.mark.parametrize("pool", FIRST_OF_POOLS)
def test_a_broker_that_is_away_kills_no_node(
    systemd: Systemd, node: Callable[..., Daemon], own_broker: Broker, pool: str
) -> None:
    """It waits, and consumes again; the answers never cease for long."""
    with node(pool, broker=own_broker):
        systemd.wait_for("consuming")
        own_broker.stop()
        time.sleep(1)
        assert systemd.answers(SECONDS)
        assert systemd.answers(SECONDS)
        own_broker.start()
        assert systemd.answers(SECONDS)
        systemd.wait_for("consuming")


def test_who_waits_for_a_broker_lets_greenlets_run() -> None:
    """With gevent, kombu has been left with the `sleep` that blocks them all."""
    program = (
        "import celery; celery.maybe_patch_concurrency()\n"
        "import time; from kombu.utils import functional\n"
        "from fleet_runtime.compat import gevent_sleep; gevent_sleep.let_run()\n"
        "print(functional.sleep is time.sleep, time.sleep.__module__)\n"
    )
    words = [sys.executable, "-c", program, "--pool=gevent"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout == "True gevent.hub\n"


@pytest.mark.long
def test_a_broker_that_is_silent_kills_no_node(
    systemd: Systemd, node: Callable[..., Daemon], own_broker: Broker
) -> None:
    """It takes connections, and answers none."""
    with node("prefork", broker=own_broker):
        systemd.wait_for("consuming")
        own_broker.process.send_signal(signal.SIGSTOP)
        systemd.wait_for("waiting for the broker")
        assert systemd.answers(SECONDS)
        assert systemd.answers(SECONDS)
        own_broker.process.send_signal(signal.SIGCONT)
        systemd.wait_for("consuming")


@pytest.mark.long
def test_a_long_task_of_a_solo_pool_is_waited_for(
    systemd: Systemd, node: Callable[..., Daemon], own_broker: Broker, connect: Callable[..., Any]
) -> None:
    """For as long as its time limit, which such a pool does not enforce: then the node is restarted."""
    with node("solo", broker=own_broker) as busy:
        systemd.wait_for("consuming")
        connect(own_broker).send_task("hanging.work", (1000,), queue="default", time_limit=1.5 * SECONDS)
        systemd.wait_for("busy; 1 active")
        assert len(systemd.answers(SECONDS)) >= 3
        busy.wait_for("This node has fetched no messages for")
        assert systemd.answers(SECONDS) == []
        busy.process.kill()


@pytest.mark.long
@pytest.mark.parametrize("pool", ["threads", "gevent"])
def test_a_node_that_stops_waits_for_its_tasks(
    systemd: Systemd, node: Callable[..., Daemon], web: Any, pool: str
) -> None:
    """Also if an operator stops it, when systemd still expects notifications."""
    with node(pool) as stopping:
        systemd.wait_for("consuming")
        result = web.send_task("hanging.work", (2 * SECONDS,), queue="default")
        systemd.wait_for("consuming; 1 active")
        stopping.process.terminate()
        stopping.wait_for("Warm shutdown")
        assert len(systemd.answers(SECONDS)) >= 3
        assert result.get(timeout=PATIENCE) == []


def test_a_node_that_starts_itself_anew_says_so(systemd: Systemd, node: Callable[..., Daemon]) -> None:
    """SIGHUP makes it a new program in the same process, which finds what was taken from its tasks."""
    with node("prefork") as renewed:
        systemd.wait_for("consuming")
        renewed.process.send_signal(signal.SIGHUP)
        systemd.wait_for("starting")
        systemd.wait_for("consuming")


def test_a_node_that_nobody_watches_is_not_bothered(redis_server: Broker, web: Any) -> None:
    """As one that is started by hand, or whose unit has no watchdog."""
    fleet = Fleet(redis_server, "hanging:app", PYTHONPATH=APPS)
    with fleet.worker("free", "--pool=solo", *FLAGS, FLEET_NODE_WATCHDOG="60") as free:
        assert web.send_task("hanging.work", (0,), queue="default").get(timeout=PATIENCE) == []
        assert free.process.poll() is None


def test_a_time_in_which_a_node_may_rightly_wait_is_refused(
    node: Callable[..., Daemon],
) -> None:
    """Else each half-open connection would kill a node."""
    refused = node("solo", FLEET_SOCKET_TIMEOUT="7")
    assert refused.process.wait(PATIENCE) == 1
    assert refused.lines(
        "celery: celery_worker_watchdog (8) must be at least 4/3 of FLEET_SOCKET_TIMEOUT (7)"
    )


@pytest.mark.parametrize(
    ("sent", "queues", "has_room", "reserved", "expected"),
    [
        (-100, {"default"}, True, [], True),
        (-15, {"default"}, True, [], False),
        (-100, set(), True, [], False),
        (-100, {"default"}, False, ["a request"], False),
        (-100, {"default"}, False, [], True),
        (None, {"default"}, True, [], False),
    ],
)
def test_a_node_that_asks_for_nothing_is_deaf(
    monkeypatch: pytest.MonkeyPatch,
    sent: float | None,
    queues: set[str],
    has_room: bool,
    reserved: list[str],
    expected: bool,
) -> None:
    """Unless it has no queue to ask for, or no room because of what it has taken."""
    monkeypatch.setattr(state, "reserved_requests", reserved)
    channel = SimpleNamespace(
        asked_at=None if sent is None else time.monotonic() + sent,
        active_queues=queues,
        qos=SimpleNamespace(can_consume=lambda: has_room),
    )
    assert fetches_nothing(channel, SECONDS, SimpleNamespace(timer=Timer())) is expected
    assert not fetches_nothing(None, SECONDS, SimpleNamespace(timer=Timer()))


def test_a_node_that_stops_may_give_back_for_minutes() -> None:
    """Without tasks, too: it may hold tens of thousands of messages that wait for their time."""
    watchdog = object.__new__(Watchdog)
    watchdog.worker = SimpleNamespace(blueprint=SimpleNamespace(state=bootsteps.RUN))
    watchdog.stopping_since = None
    assert not watchdog._may_requeue(0.0)
    watchdog.worker.blueprint.state = bootsteps.CLOSE
    assert watchdog._may_requeue(100.0)
    assert watchdog._may_requeue(100.0 + STOP_TIMEOUT_S - 1)
    assert not watchdog._may_requeue(100.0 + STOP_TIMEOUT_S + 1)


def test_a_node_whose_places_have_leaked_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no room, runs nothing, and keeps nothing that waits for its time or its rate."""
    channel = SimpleNamespace(qos=SimpleNamespace(can_consume=lambda: False))
    bucket = SimpleNamespace(contents=[])
    watchdog = object.__new__(Watchdog)
    watchdog.worker = SimpleNamespace(consumer=SimpleNamespace(task_buckets={"shop.add": bucket, "x": None}))
    watchdog.seconds, watchdog.full_since = 60.0, None
    late = LEAK_WATCHDOG_TIMES * 60 + 1
    a_request = type("Request", (), {"_eta_timer_entry": None})()
    assert not watchdog._has_leaked(channel, 0.0)
    assert watchdog._has_leaked(channel, late)
    for name in ("active_requests", "reserved_requests", "scheduled_requests"):
        with monkeypatch.context() as patched:
            patched.setattr(state, name, {a_request})
            assert not watchdog._has_leaked(channel, late), name
        assert not watchdog._has_leaked(channel, late), "its time begins anew"
        watchdog.full_since = 0.0
    bucket.contents.append("limited")
    assert not watchdog._has_leaked(channel, late)
    bucket.contents.clear()
    channel.qos.can_consume = lambda: True
    assert not watchdog._has_leaked(channel, late)


def test_a_pool_that_has_stopped_says_how_many_it_runs() -> None:
    """Celery asks an object that is gone by then."""
    assert _concurrency(prefork.TaskPool(2)) == 0
    assert _concurrency(thread.TaskPool(2)) == 2
