# SPDX-License-Identifier: MIT
"""The demo app: by itself, and on a broker as the fleet runs it."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from celery import Celery
from celery.exceptions import Retry
from demo import tasks
from demo.app import app

from fleet_testing.broker import QUEUES, Broker
from fleet_testing.commands import Fleet

if TYPE_CHECKING:
    from pathlib import Path


def test_the_tasks_do_what_they_say() -> None:
    """Without a broker."""
    assert tasks.greet("you") == "Hello, you!"
    assert tasks.send_letter("ann@example.com", "News", seconds=0) > len("News, ann@example.com.")
    assert [tasks.count_primes(below) for below in (0, 2, 3, 100)] == [0, 0, 1, 25]
    assert tasks.digest(2) == hashlib.sha256(bytes(2**20) + b"\1" * 2**20).hexdigest()


def test_a_letter_is_retried_while_the_mail_server_is_busy() -> None:
    """As often as it is to be, and no more."""
    with pytest.raises(Retry):
        tasks.send_letter.apply(("ann@example.com", "News", 0, 1), retries=0, throw=True)
    assert tasks.send_letter.apply(("ann@example.com", "News", 0, 1), retries=1).state == "SUCCESS"


def test_it_knows_nothing_of_the_fleet() -> None:
    """Its broker is where a developer has one."""
    assert app.conf.broker_url == "redis://localhost:6379/0"
    assert not app.conf.broker_use_ssl


@pytest.mark.parametrize(
    ("task", "queue"),
    [
        ("greet", "default"),
        ("send_letter", "email"),
        ("count_primes", "heavy"),
        ("digest", "io"),
        ("tick", "default"),
        ("record", "default"),
    ],
)
def test_there_is_a_task_for_each_queue(task: str, queue: str) -> None:
    """As Celery routes them."""
    assert app.amqp.router.route({}, f"demo.tasks.{task}")["queue"].name == queue


def test_it_is_fit_for_the_fleet(redis_server: Broker) -> None:
    """With the queues of the example inventories."""
    result = Fleet(redis_server, "demo.app:app").run("ops", "fleet", "check", "--queues", ",".join(QUEUES))
    assert (result.returncode, result.stdout) == (0, "The app is fit to run at the level full.\n")


def test_the_schedule_fires_once_a_tick(broker: Broker, tmp_path: Path) -> None:
    """From Beat with its schedule in Redis, through a node; each tick is a line in the node's log."""
    fleet = Fleet(broker, "demo.app:app", DEMO_TICK_SECONDS="1", FLEET_BEAT_MAX_INTERVAL="0.2")
    with fleet.worker("one", "--queues=default", "--pool=solo") as node, fleet.beat() as beat:
        lines = node.wait_for(": tick ", count=5)
        assert not beat.lines("ERROR")
        held = fleet.run("ops", "fleet", "beat", "--json")
    assert held.returncode == 0, held.stderr
    assert json.loads(held.stdout)["entry"] == "tick"
    free = fleet.run("ops", "fleet", "beat")
    assert (free.returncode, free.stdout.split(" Next: ")[0]) == (1, "No Beat holds the lock.")
    ticks = [datetime.fromisoformat(line.split()[-1]) for line in lines]
    gaps = [(later - earlier).total_seconds() for earlier, later in pairwise(ticks)]
    assert all(0.5 < gap < 2 for gap in gaps[1:]), gaps
    assert set(broker.client("admin").keys("redbeat:*")) >= {"redbeat::schedule", "redbeat:tick"}


def test_each_run_leaves_a_record(broker: Broker, tmp_path: Path) -> None:
    """A line when it starts and a line when it ends, with what tells one run from another."""
    ledger = tmp_path / "ledger"
    fleet = Fleet(broker, "demo.app:app", DEMO_LEDGER=str(ledger))
    sender = Celery(broker=broker.url("web"))
    with fleet.worker("one", "--queues=default", "--pool=solo") as node:
        for name in ("first", "second"):
            sender.send_task("demo.tasks.record", [name], queue="default", ignore_result=True)
        node.wait_for("Task demo.tasks.record", count=4)  # received and succeeded, each twice
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert [(line["name"], line["event"], line["node"], line["redelivered"]) for line in lines] == [
        (name, event, "one@test", False) for name in ("first", "second") for event in ("start", "end")
    ]
    assert lines[0]["delivery"] == lines[1]["delivery"] != lines[2]["delivery"]
    assert [line["at"] for line in lines] == sorted(line["at"] for line in lines)
