# SPDX-License-Identifier: MIT
"""The cost of a node: bounds that a mistake would exceed by far. `make bench` measures it."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fleet_testing.commands import APPS, FLAGS, PATIENCE, Fleet
from fleet_testing.params import FIRST_OF_POOLS

if TYPE_CHECKING:
    from fleet_testing.broker import Broker

SETTLED, IDLE = 15.0, 20.0  # seconds


@pytest.mark.parametrize("pool", FIRST_OF_POOLS)
def test_an_idle_node_asks_little(fleet: Fleet, broker: Broker, pool: str) -> None:
    """About a command in two seconds, on six connections."""
    broker.client("admin").flushall()  # or it would requeue messages that nodes of other tests have left
    with fleet.worker("idle", "--queues=default,email,heavy", f"--pool={pool}", *FLAGS) as node:
        time.sleep(SETTLED)
        own = ports(node.process.pid)
        clients = broker.client("admin").client_list()
        connections = [one["cmd"] for one in clients if one["addr"].rpartition(":")[2] in own]
        assert 0 < len(connections) <= 6, " ".join(connections)
        sent = []
        with broker.client("admin").monitor() as monitor:
            until = time.monotonic() + IDLE
            while (left := until - time.monotonic()) > 0:
                if monitor.connection.can_read(left):
                    sent.append(monitor.next_command())
    commands = [one["command"][:40] for one in sent if one["client_port"] in own]
    assert len(commands) / IDLE <= 0.5, commands


def ports(pid: int) -> set[str]:
    """Return the ports of a process's connections. Source: proc(5), net/tcp."""
    files = [str(file.readlink()) for file in Path(f"/proc/{pid}/fd").iterdir() if file.is_symlink()]
    rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return {str(int(row[1].partition(":")[2], 16)) for row in rows if f"socket:[{row[9]}]" in files}


@pytest.mark.parametrize("pool", FIRST_OF_POOLS)
def test_events_are_sent_together(fleet: Fleet, broker: Broker, web: Any, pool: str) -> None:
    """All of them, and soon."""
    tasks = 200
    with broker.client("admin").pubsub(ignore_subscribe_messages=True) as listener:
        listener.psubscribe("/0.celeryev/task.*")
        with fleet.worker("one", "--queues=default", f"--pool={pool}", "--task-events", *FLAGS):
            for _ in range(tasks):
                web.send_task("shop.add", (1, 1), queue="default", ignore_result=True)
            events: list[str] = []
            messages, until = 0, time.monotonic() + PATIENCE
            while events.count("task-succeeded") < tasks and time.monotonic() < until:
                if message := listener.get_message(timeout=1):
                    messages += 1
                    events += [event["type"] for event in payload(message["data"])]
    kinds = ("task-received", "task-started", "task-succeeded")
    assert {kind: events.count(kind) for kind in kinds} == dict.fromkeys(kinds, tasks)
    assert messages < tasks / 5


def payload(data: str) -> list[dict[str, Any]]:
    """Return the events in a message."""
    found = json.loads(base64.b64decode(json.loads(data)["body"]))
    return found if isinstance(found, list) else [found]


def test_children_share_what_was_imported(broker: Broker, web: Any) -> None:
    """The garbage collector would give each a copy of its own, as it looks at it."""
    heavy = Fleet(broker, "heavy:app", PYTHONPATH=APPS)
    with heavy.worker("one", "--queues=default", "--pool=prefork", *FLAGS):
        taken = web.send_task("heavy.private", queue="default").get(timeout=PATIENCE)
    assert taken < 20, "without gc.freeze it is 56 MiB"
