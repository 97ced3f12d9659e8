# SPDX-License-Identifier: MIT
"""Shared parts of the tests of dead letters and of poison messages."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from fleet_testing.commands import APPS, Fleet, wait_until

if TYPE_CHECKING:
    from fleet_testing.broker import Broker

# A queue for each type of pool that is looked at, and one that nobody consumes.
POOLS = {"default": "prefork", "io": "threads"}
UNCONSUMED = "heavy"
QUEUES = pytest.mark.parametrize("queue", POOLS)


def failing(broker: Broker, **environment: str) -> Fleet:
    """Return an app whose tasks fail, on a broker."""
    return Fleet(broker, "failing:app", PYTHONPATH=APPS, **environment)


def letters(broker: Broker) -> dict[str, Any]:
    """Return all letters by their ids."""
    client = broker.client("admin")
    with client.pipeline(transaction=True) as both:
        texts, ids = both.hgetall("fleet:dead:letters").zrange("fleet:dead", 0, -1).execute()
    found = {name: json.loads(text) for name, text in texts.items()}
    assert set(ids) == set(found)
    return found


def letter_of(broker: Broker, task_id: str) -> Any:
    """Wait for a task's letter, and for its message to be nowhere else; return the letter, the only one."""
    wait_until(lambda: task_id in letters(broker))
    wait_until(lambda: not places(broker, task_id))
    found = letters(broker)
    assert list(found) == [task_id]
    return found[task_id]


def places(broker: Broker, text: str) -> list[str]:
    """Return the queues and the hashes of held messages that have something with a text in it."""
    client = broker.client("admin")
    found = []
    for key in client.scan_iter():
        kind = client.type(key)
        if kind == "list" and any(text in item for item in client.lrange(key, 0, -1)):
            found.append(key)
        if kind == "hash" and key.startswith("unacked") and text in str(client.hgetall(key)):
            found.append(key)
    return found


def caught(web: Any, broker: Broker, name: str, *args: Any, **options: Any) -> dict[str, Any]:
    """Return a message as it is in a queue, from which it is taken."""
    web.send_task(name, args, queue=UNCONSUMED, **options)
    message: dict[str, Any] = json.loads(broker.client("admin").rpop(UNCONSUMED))
    return message


def put(broker: Broker, queue: str, message: dict[str, Any]) -> str:
    """Put a message into a queue; return its task's id."""
    delivery = message["properties"]["delivery_info"]
    delivery["exchange"], delivery["routing_key"] = "", queue
    broker.client("admin").lpush(queue, json.dumps(message))
    return str(message["headers"]["id"])
