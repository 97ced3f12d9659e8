# SPDX-License-Identifier: MIT
"""A node listens for control commands whatever its tasks do, and says so if it does not."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from celery.concurrency import solo
from celery.worker.pidbox import gPidbox
from fleet_runtime.broker import keys
from fleet_runtime.recovery import inflight
from fleet_runtime.transport.channel import Channel
from fleet_runtime.worker import mailbox as listening

from fleet_testing.commands import APPS, PATIENCE, Fleet, shop, wait_until

if TYPE_CHECKING:
    from fleet_testing.broker import Broker

TASKS, TIMES, SLOTS = 20, 10, 20


def sockets(pid: int) -> int:
    """Return how many sockets a process has."""
    return sum(str(link.readlink()).startswith("socket:") for link in Path(f"/proc/{pid}/fd").iterdir())


@pytest.mark.server
@pytest.mark.parametrize("pool", ["gevent", pytest.param("threads", marks=pytest.mark.long)])
def test_a_node_whose_tasks_retry_keeps_few_connections_and_hears(
    broker: Broker, web: Any, pool: str
) -> None:
    """No retry leaves a connection or a subscription, and the node answers `inspect` afterwards."""
    admin, fleet = broker.client("admin"), Fleet(broker, "retrying:app", PYTHONPATH=APPS)
    words = (f"--pool={pool}", f"--concurrency={SLOTS}", "--task-events", "--without-gossip")
    with fleet.worker("retrying", *words, FLEET_LEASE="6") as node:
        before = sockets(node.process.pid)
        sent = [web.send_task("retrying.again", (TIMES,), queue="default") for _ in range(TASKS)]
        assert [one.get(timeout=PATIENCE) for one in sent] == [TIMES] * TASKS
        # For each slot one to store results, one to acknowledge and one to publish; a leak is one a retry.
        assert sockets(node.process.pid) - before <= 3 * SLOTS < TASKS * TIMES / 2
        subscribed = [one for one in admin.client_list() if one["user"] == "worker" and int(one["sub"])]
        assert subscribed == []
        pong = fleet.run("ops", "inspect", "ping", "--timeout=10")
        assert "retrying@test: OK" in pong.stdout, pong

        def facts() -> Any:
            return json.loads(admin.hget(keys.NODES, "retrying@test"))

        started = time.time()
        wait_until(lambda: time.time() > started + 3 and facts()["silence"] < 3)


@pytest.mark.server
def test_greenlets_share_the_connections_by_which_results_are_stored(broker: Broker, web: Any) -> None:
    """Celery's backend is one for each greenlet, and so for each task, unless it is said to be shared."""
    admin, tasks = broker.client("admin"), 10 * SLOTS

    def connections() -> int:
        """Return how many connections Redis has accepted so far."""
        return int(admin.info("stats")["total_connections_received"])

    words = ("--queues=default", "--pool=gevent", f"--concurrency={SLOTS}", "--without-gossip")
    with shop(broker).worker("sharing", *words):
        assert web.send_task("shop.add", (1, 2), queue="default").get(timeout=PATIENCE) == 3
        before = connections()
        sent = [web.send_task("shop.add", (1, 2), queue="default") for _ in range(tasks)]
        assert [one.get(timeout=PATIENCE) for one in sent] == [3] * tasks
        # For each slot one to store results, and one to acknowledge; one for each task would be 200.
        assert connections() - before < tasks / 2


def test_a_mailbox_that_fails_is_made_anew(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever ended its greenlet: the node would be deaf, and go on otherwise."""
    begun: list[Any] = []

    def loop(self: Any, c: Any) -> None:
        """Fail twice, and then go on to the end."""
        begun.append(c)
        if len(begun) < 3:
            raise [RuntimeError("of a greenlet"), ConnectionError("of Redis")][len(begun) - 1]

    mend(monkeypatch, loop)
    monkeypatch.setattr(inflight, "MAILBOX_RETRY_S", 0)
    consumer = SimpleNamespace(connection_errors=(ConnectionError,), channel_errors=(), connection=object())
    gPidbox.loop(SimpleNamespace(), consumer)
    assert len(begun) == 3
    assert "The mailbox has failed, and makes a new connection." in caplog.text
    assert "The mailbox has lost its connection, and makes a new one: of Redis" in caplog.text


def test_a_mailbox_that_does_not_end_is_left_behind(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A node that stops or reconnects does not wait for it. If it goes on later, it ends."""
    begun, answers = threading.Event(), threading.Event()

    def loop(self: Any, c: Any) -> None:
        """Wait for an answer, and find the connection lost."""
        assert not begun.is_set(), "it has begun again"
        self._node_shutdown, self._node_stopped = threading.Event(), threading.Event()
        begun.set()
        answers.wait()
        raise ConnectionError("of Redis")

    mend(monkeypatch, loop)
    monkeypatch.setattr(inflight, "MAILBOX_RETRY_S", 0)
    monkeypatch.setattr(inflight, "MAILBOX_STOP_TIMEOUT_S", 0.1)
    pidbox = SimpleNamespace()
    consumer = SimpleNamespace(connection_errors=(ConnectionError,), channel_errors=(), connection=object())
    mailbox = threading.Thread(target=gPidbox.loop, args=(pidbox, consumer), daemon=True)
    mailbox.start()
    begun.wait()
    stop = threading.Thread(target=gPidbox.on_stop, args=(pidbox,), daemon=True)
    stop.start()
    stop.join(PATIENCE)
    assert not stop.is_alive()
    assert "The mailbox does not end within 0.1 s, and is left behind." in caplog.text
    pidbox._node_shutdown = threading.Event()  # the next mailbox has begun
    answers.set()
    mailbox.join(PATIENCE)
    assert not mailbox.is_alive()


def mend(monkeypatch: pytest.MonkeyPatch, loop: Any) -> None:
    """Let the runtime mend a mailbox that does this, until the end of a test."""
    loop.__annotations__ = {}  # as Celery's, which is changed only as it is known
    monkeypatch.setattr(gPidbox, "loop", loop)
    monkeypatch.setattr(gPidbox, "on_stop", gPidbox.on_stop)
    inflight.patch_green_pidbox()


def consumer_of(channel: Any, pool: object = None, **step: Any) -> Any:
    """Return a stand-in for a consumer whose mailbox has a channel."""
    box = SimpleNamespace(node=SimpleNamespace(channel=channel))
    return SimpleNamespace(steps=[SimpleNamespace(), SimpleNamespace(box=box, **step)], pool=pool)


def test_how_long_a_node_has_not_listened_is_known() -> None:
    """Since its mailbox was polled last, or since it began if it never was."""
    now = time.monotonic()
    channel = Channel.__new__(Channel)
    channel.listened_at = now - 50
    assert listening.silence(consumer_of(channel), now - 90) == pytest.approx(50, abs=5)
    channel.listened_at = None
    assert listening.silence(consumer_of(channel), now - 90) == pytest.approx(90, abs=5)
    assert listening.silence(consumer_of(None), now - 90) == pytest.approx(90, abs=5)


def test_a_node_of_which_it_is_not_known_is_not_called_deaf() -> None:
    """Without remote control, with kombu's own transport, and with a pool that runs tasks in the loop."""
    since = time.monotonic() - 90
    assert listening.silence(SimpleNamespace(steps=[SimpleNamespace()], pool=None), since) == 0
    assert listening.silence(consumer_of(object()), since) == 0
    assert listening.silence(consumer_of(None, pool=solo.TaskPool.__new__(solo.TaskPool)), since) == 0
