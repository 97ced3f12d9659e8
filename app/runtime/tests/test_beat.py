# SPDX-License-Identifier: MIT
"""Beat sends an entry when it is due, and what it missed once."""

from __future__ import annotations

import base64
import json
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from fleet_runtime.beat.lease import LEASE_S, RENEWAL_S, Lease
from fleet_runtime.beat.turns import Turns
from fleet_runtime.broker import keys

from fleet_testing.broker import Broker
from fleet_testing.commands import APPS, Fleet, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ENTRIES = ["hourly", "yearly"]
TICKS = 4  # seconds; Beat looks at its schedule once a second here


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Broker]:
    """Yield a Redis in which there is no schedule yet."""
    broker = Broker(tmp_path)
    yield broker
    broker.stop()


def sent(server: Broker) -> list[str]:
    """Return the entries that were sent, in their order."""
    messages = server.client("admin").lrange("default", 0, -1)
    bodies = [json.loads(message)["body"] for message in reversed(messages)]
    return [json.loads(base64.b64decode(body))[0][0] for body in bodies]


def test_an_entry_is_not_sent_before_it_is_due_and_once_for_all_times_that_it_was_missed(
    server: Broker,
) -> None:
    """An entry that is new, in any time zone, and one that Beat missed for years."""
    admin: Any = server.client("admin")
    fleet = Fleet(
        server, "scheduled:app", PYTHONPATH=APPS, FLEET_BEAT_MAX_INTERVAL="1", FLEET_BEAT_LOCK_TIMEOUT="5"
    )
    with fleet.beat():
        wait_until(lambda: admin.zcard("redbeat::schedule") == len(ENTRIES))
        time.sleep(TICKS)
    assert sent(server) == []
    last = datetime.now(UTC) - timedelta(days=2000)
    fields = ("year", "month", "day", "hour", "minute", "second", "microsecond")
    meta = {"__type__": "datetime", **{name: getattr(last, name) for name in fields}, "timezone": "UTC"}
    for entry in ENTRIES:
        admin.hset(f"redbeat:{entry}", "meta", json.dumps({"last_run_at": meta}))
        admin.zadd("redbeat::schedule", {f"redbeat:{entry}": last.timestamp()})
    with fleet.beat():
        wait_until(lambda: len(sent(server)) >= len(ENTRIES))
        time.sleep(TICKS)
    with fleet.beat():
        time.sleep(TICKS)
    assert sorted(sent(server)) == ENTRIES
    assert not server.denied()


def test_a_beat_whose_schedule_is_in_a_file_has_a_lease_while_it_turns(
    server: Broker, tmp_path: Path
) -> None:
    """So that `fleet status` knows it, as it knows a RedBeat by its lock."""
    admin: Any = server.client("admin")
    admin.set(keys.WANTED_BEAT, json.dumps({"scheduler": "persistent", "since": time.time() - 999}))
    fleet = Fleet(server, "scheduled:app", PYTHONPATH=APPS, FLEET_BEAT_MAX_INTERVAL="1")
    assert "No Beat renews its lease" in fleet.run("ops", "fleet", "status").stdout
    words = [f"--schedule={tmp_path / 'schedule'}", "--scheduler=celery.beat.PersistentScheduler"]
    with fleet.beat(*words):
        wait_until(lambda: admin.pttl(keys.BEAT_LEASE) > 0)
        assert admin.ttl(keys.BEAT_LEASE) <= LEASE_S
        told = fleet.run("ops", "fleet", "status").stdout
    assert "A Beat renews its lease" in told
    assert not server.denied()


def test_a_beat_that_does_not_turn_does_not_renew_its_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its first turn, and while it hangs."""
    scheduler: Any = SimpleNamespace(max_interval=5, tick=lambda: 1.0, apply_async=lambda entry, **_: None)
    no_app: Any = None  # to connect by it fails
    turns = Turns(scheduler)
    assert turns.silence() is None
    assert not Lease(no_app, turns).renew()
    scheduler.tick()
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 5 + RENEWAL_S - 1)
    asked: list[Any] = []
    monkeypatch.setattr(Lease, "_set", lambda _: asked.append(1))
    assert Lease(no_app, turns).renew()
    monkeypatch.setattr(time, "monotonic", lambda: now + 5 + RENEWAL_S + 1)
    assert not Lease(no_app, turns).renew()
    assert len(asked) == 1
