# SPDX-License-Identifier: MIT
"""The role flower's flowerconfig.py, run by Flower's own option parser and in Flower's own thread."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from ssl import CERT_REQUIRED
from typing import Any
from urllib.parse import quote

import pytest
from celery import Celery
from fleet_runtime.compat.surface import may_replace
from fleet_runtime.transport import broadcast
from flower.events import Events
from flower.options import default_options
from flower.utils.broker import RedisBase, RedisSsl
from kombu.transport.redis import Channel

from fleet_testing import items
from fleet_testing.broker import rules_without
from tests.unit.redis_server import PASSWORDS, Server, running
from tests.unit.rendering import PROJECT

CONFIG = PROJECT / "roles/flower/files/flowerconfig.py"


class Loop:
    """Stands in for Tornado's loop, which would run a callback in the main thread."""

    def __init__(self) -> None:
        """Have no callback yet."""
        self.callbacks: list[Callable[[], None]] = []

    def add_callback(self, callback: Callable[[], None]) -> None:
        """Keep a callback."""
        self.callbacks.append(callback)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Events], None]]:
    """Return the loop that the file puts in place of Flower's, with no pauses to speak of."""
    monkeypatch.setattr(Events, "run", Events.run)  # so that it is put back
    monkeypatch.setattr(RedisBase, "queues", RedisBase.queues)
    before = default_options.as_dict()
    default_options.parse_config_file(str(CONFIG), final=False)
    assert default_options.as_dict() == before  # no name in the file is an option's by chance
    replacement: Any = Events.run
    names = replacement.__globals__
    assert names["PAUSE"] <= 10
    assert names["SILENCE"] >= 60  # six heartbeats of a node
    names.update(PAUSE=0.01, SILENCE=1)
    yield replacement


def start(run: Callable[[Events], None], broker_url: str) -> tuple[Events, threading.Thread]:
    """Run Flower's thread of events with the replaced loop."""
    app = Celery("app", broker=broker_url)
    app.conf.broker_connection_timeout = 0.1
    events = Events(app, io_loop=Loop(), enable_events=False, max_tasks_in_memory=10)
    thread = threading.Thread(target=run, args=(events,), daemon=True)
    thread.start()
    return events, thread


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds, a minute at most."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_queues_have_their_consumers_and_what_these_hold(
    run: Callable[[Events], None], tmp_path: Path
) -> None:
    """By what the nodes say, with the rights that Flower has; of a dead node what it holds counts still."""
    with running(tmp_path) as server:
        admin = server.client("admin")
        admin.lpush("default", "1", "2")
        admin.hset("fleet:nodes", "a@h", json.dumps({"queues": ["default", "email"], "held": {"default": 3}}))
        admin.hset("fleet:nodes", "b@h", json.dumps({"queues": ["default"], "held": {"default": 1}}))
        admin.hset("fleet:nodes", "old@h", json.dumps({"queues": ["email"]}))  # an older runtime does not say
        admin.zadd(
            "fleet:leases", {"a@h": time.time() + 30, "b@h": time.time() - 1, "old@h": time.time() + 30}
        )

        assert shown(server) == {"default": (2, 4, 6, 1), "email": (0, 0, 0, 2)}

        rules = rules_without("hgetall", "flower", (server.directory / "users.acl").read_text())
        admin.execute_command("ACL", "SETUSER", "flower", "reset", *rules)
        assert shown(server) == {"default": (None, None, 2, None), "email": (None, None, 0, None)}


def shown(server: Server) -> dict[str, tuple[int | None, ...]]:
    """Return what Flower's page of queues has: ready, unacknowledged, all, and consumers."""
    url = f"rediss://flower:{quote(PASSWORDS['flower'], safe='')}@127.0.0.1:{server.port}/0"
    broker = RedisSsl(url, broker_use_ssl={"ssl_ca_certs": str(server.authority.ca_file)})
    columns = ("messages_ready", "messages_unacknowledged", "messages", "consumers")
    found = asyncio.run(broker.queues(["default", "email"]))
    return {queue["name"]: tuple(map(queue.get, columns)) for queue in found}


def test_the_pause_does_not_grow(run: Callable[[Events], None], caplog: pytest.LogCaptureFixture) -> None:
    """However long the broker is gone, the next attempt is soon."""
    caplog.set_level(logging.ERROR, "flower.events")
    _, thread = start(run, "redis://127.0.0.1:1/0")
    wait_for(lambda: len(caplog.records) >= 2)
    assert thread.is_alive()
    assert {record.getMessage().partition("Trying again")[2] for record in caplog.records} == {
        " in 0 seconds."
    }


def test_events_arrive(run: Callable[[Events], None]) -> None:
    """What the nodes send reaches Flower."""
    events, _ = start(run, "memory://")
    wait_for(lambda: bool(_receivers(events)))
    with events.capp.events.default_dispatcher(hostname="default-1@h") as dispatcher:
        dispatcher.send("worker-heartbeat", freq=10)
    loop: Any = events.io_loop
    wait_for(lambda: bool(loop.callbacks))
    loop.callbacks[0]()
    assert list(events.state.workers) == ["default-1@h"]


def odd_items() -> dict[str, bytes]:
    """Return what is no event, by what is wrong."""
    found = {**items.no_messages(), **items.bad_messages(), **items.bad_events()}
    good = {"type": "task-received", "hostname": "odd@h", "uuid": "4f1d", "timestamp": 1.0, "clock": 5}
    for part in ("type", "uuid", "clock", "timestamp", "utcoffset", "name", "runtime"):
        odd: Any
        for odd in ([], {}, -1e400, 10**400):
            found[f"{part} is {odd!r:.9}"] = json.dumps(event({**good, part: odd})).encode()
    return found


def event(body: Any) -> dict[str, Any]:
    """Return a message with an event as a node publishes it."""
    message = items.message(body)
    message["properties"]["delivery_info"] = {"exchange": "celeryev", "routing_key": "worker.heartbeat"}
    return message


def test_what_is_no_event_deafens_nobody(
    run: Callable[[Events], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower hears the next event at once, and shows the next task."""
    names: Any = run
    names.__globals__.update(PAUSE=3600, SILENCE=600)
    monkeypatch.setattr(Channel, "_receive_one", Channel._receive_one)  # so that it is put back
    broadcast.patch_fanout(may_replace)  # as it is where Flower runs by fleet_runtime.app
    with running(tmp_path) as server:
        admin = server.client("admin")
        password = quote(PASSWORDS["admin"], safe="")
        app = Celery("app", broker=f"rediss://admin:{password}@127.0.0.1:{server.port}/0")
        ca_file = str(server.authority.ca_file)
        app.conf.broker_use_ssl = {"ssl_ca_certs": ca_file, "ssl_cert_reqs": CERT_REQUIRED}
        events = Events(app, io_loop=Loop(), enable_events=False, max_tasks_in_memory=10_000)
        threading.Thread(target=run, args=(events,), daemon=True).start()
        wait_for(lambda: bool(admin.pubsub_numpat() or admin.pubsub_channels()))
        odd = odd_items()
        for number, item in enumerate(odd.values()):
            admin.publish("/0.celeryev/worker.heartbeat", item)
            body = {"type": "task-received", "hostname": "a@h", "uuid": f"task-{number}", "name": "shop.pay"}
            good = {**body, "timestamp": time.time(), "clock": number + 10, "pid": 1, "utcoffset": 0}
            admin.publish("/0.celeryev/task.multi", json.dumps(event([good])))
        loop: Any = events.io_loop
        wait_for(lambda: sum("task-" in str(callback.args) for callback in loop.callbacks) >= len(odd))
        for callback in loop.callbacks:
            with suppress(Exception):  # which Tornado logs
                callback()
        shown = {f"task-{number}" for number in range(len(odd))}
        assert set(events.state.tasks) == shown
        assert {name for name, _ in events.state.tasks_by_timestamp()} == shown
        assert app.clock.value < 2**53  # or nodes would refuse what Flower asks them


def test_silence_ends_a_connection(run: Callable[[Events], None], caplog: pytest.LogCaptureFixture) -> None:
    """A connection over which no node is heard may be dead; the thread makes a new one."""
    caplog.set_level(logging.INFO, "flower.events")
    start(run, "memory://")
    wait_for(lambda: sum("Connecting anew" in record.message for record in caplog.records) >= 2)


def _receivers(events: Events) -> list[str]:
    """Return the queues that are bound to the exchange of events."""
    with events.capp.connection() as connection:
        state = connection.transport.state
        return [queue for queue in state.bindings if "celeryev" in str(queue)]
