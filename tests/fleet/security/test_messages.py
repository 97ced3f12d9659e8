# SPDX-License-Identifier: MIT
"""What a client that may publish can do to nodes by what it publishes: nothing.

Each item is sent where every node listens, as the user of a component that may do so. What is in queues is
tried by the runtime's own tests, with the same access rules.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from fleet_testing import items
from tests.fleet.support.hosts import eventually

if TYPE_CHECKING:
    from tests.fleet.support.clients import Producer
    from tests.fleet.support.fleet import Fleet

pytestmark = pytest.mark.group("workers")

CONTROL, EVENTS = "/{db}.celery.pidbox", "/{db}.celeryev/worker.heartbeat"
# Revoked ids in one command, and commands.
IDS, COMMANDS = 10_000, 20


@pytest.mark.parametrize(
    ("channel", "published"),
    [
        pytest.param(CONTROL, {**items.no_messages(), **items.bad_messages()}, id="control"),
        pytest.param(CONTROL, items.bad_commands(), id="commands"),
        pytest.param(EVENTS, {**items.no_messages(), **items.bad_messages()}, id="events"),
        pytest.param(EVENTS, {}, id="events-that-are-none"),
    ],
)
def test_what_is_no_message_ends_no_node(
    fleet: Fleet, producer: Producer, channel: str, published: dict[str, bytes]
) -> None:
    """No node is started anew, each answers, and each queue is served."""
    before = fleet.starts()
    published = published or items.bad_events(min(fleet.celery_names))
    with fleet.broker.expected_denials(), fleet.broker.connect("worker") as client:
        database = client.connection_pool.connection_kwargs.get("db", 0)
        for item in published.values():
            client.publish(channel.format(db=database), item)
        goes_on(fleet, producer, before)


def test_a_flood_of_revoked_ids_ends_no_node(fleet: Fleet, producer: Producer) -> None:
    """Each id would be looked up in the loop of each node, until its watchdog ends it."""
    before = fleet.starts()
    with fleet.broker.connect("worker") as client:
        database = client.connection_pool.connection_kwargs.get("db", 0)
        for turn in range(COMMANDS):
            ids = [f"flood-{turn}-{number}" for number in range(IDS)]
            command = {"method": "revoke", "arguments": {"task_id": ids}}
            client.publish(CONTROL.format(db=database), json.dumps(items.message(command)))
    goes_on(fleet, producer, before)


def goes_on(fleet: Fleet, producer: Producer, before: dict[tuple[str, str], str]) -> None:
    """See that every node is the one that it was, answers, and serves its queues; and that Flower hears."""
    sent = {queue: producer.probe(queue) for queue in fleet.queues}
    for queue, task in sent.items():
        assert producer.result(task)["queue"] == queue
    eventually(lambda: set(fleet.operator.ask("ping", fleet.celery_names)) == fleet.celery_names, 60)
    if fleet.group("flower"):
        new = {task.id for task in sent.values()}
        eventually(lambda: new <= fleet.flower.get("/api/tasks?limit=1000").json.keys(), 60)
    assert not fleet.restarted(before)
