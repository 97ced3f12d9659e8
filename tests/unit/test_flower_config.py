"""The role flower's flowerconfig.py, run by Flower's own option parser and in Flower's own thread."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from celery import Celery
from flower.events import Events
from flower.options import default_options
from flower.utils.broker import RedisBase, RedisSsl

from tests.unit.redis_server import PASSWORDS, Server, running
from tests.unit.rendering import PROJECT, rules_without

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
    """Wait until a condition holds, ten seconds at most."""
    end = time.monotonic() + 10
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
