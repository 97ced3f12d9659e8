# SPDX-License-Identifier: MIT
"""Beat sends an entry when it is due, and what it missed once."""

from __future__ import annotations

import base64
import json
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

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
    """Neither as it is new, in whatever time zone, nor as Beat starts again after years."""
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
