# SPDX-License-Identifier: MIT
"""No log of a host has the arguments of a message that no task gets: Celery itself would print them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from fleet_runtime.broker import keys
from kombu.utils.uuid import uuid

from fleet_testing import items
from tests.fleet.support.hosts import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.fleet.support.clients import Producer
    from tests.fleet.support.fleet import Fleet

pytestmark = pytest.mark.group("workers")

CANARY = "CANARY-5b1e79"
# Counts the lines of the journal that have one of the texts on standard input, and names the files that have.
# sudo logs the words of a command, so the texts are none of them.
FIND = """
    texts=$(cat)
    journalctl --quiet --output=cat --since=-10min | grep -cF -e "$texts" | sed 's/^/journal: /'
    grep -rlF -e "$texts" /var/log || true
"""


@pytest.fixture
def letters(fleet: Fleet) -> Iterator[set[str]]:
    """The ids of dead letters, which are removed at the end, and those that name the canary."""
    ids: set[str] = set()
    yield ids
    with fleet.broker.connect("admin") as client:
        ids |= {name for name, letter in client.hgetall(keys.DEAD_LETTERS).items() if CANARY in letter}
        client.hdel(keys.DEAD_LETTERS, *ids)
        client.zrem(keys.DEAD, *ids)


def test_what_no_task_gets_is_not_logged(fleet: Fleet, producer: Producer, letters: set[str]) -> None:
    """In each queue: text, bodies that cannot be decoded, and a task that is not registered."""
    with fleet.broker.connect("web") as client:
        for queue in fleet.queues:
            client.lpush(queue, CANARY)
            for body, kind in ((f'["{CANARY}", ', "application/json"), (CANARY, "application/x-none")):
                headers = {"id": uuid(), "task": "demo.tasks.greet", "argsrepr": CANARY}
                letters.add(headers["id"])
                message = items.message(body, headers=headers, **{"content-type": kind})
                client.lpush(queue, json.dumps(message))
            unknown = producer.send("demo.no_such_task", CANARY, kwargs={"key": CANARY}, queue=queue)
            letters.add(unknown.id)

    def are_dead() -> bool:
        with fleet.broker.connect("admin") as client:
            return letters <= set(client.hkeys(keys.DEAD_LETTERS))

    eventually(are_dead, timeout=60)
    for host in fleet.group("workers"):
        found = host.sh(FIND, text=f"{CANARY}\n{items.message(CANARY)['body']}")
        assert found.split() == ["journal:", "0"]
