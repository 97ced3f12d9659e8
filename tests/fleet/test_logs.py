# SPDX-License-Identifier: MIT
"""What a host keeps of a task: in the journal, and in a file where the inventory asks for one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.fleet.celery.plugins.filter.celery_worker import user

from tests.fleet.support.hosts import eventually

if TYPE_CHECKING:
    from celery.result import AsyncResult

    from tests.fleet.support.clients import Producer
    from tests.fleet.support.fleet import Fleet, Node
    from tests.fleet.support.hosts import Host

pytestmark = pytest.mark.group("workers")

SECRET = "a letter for nobody's eyes"


@pytest.fixture
def queue_of_demo(fleet: Fleet) -> str:
    """A queue whose task is given something that should not be logged."""
    assert "email" in fleet.queues, "these tests are for the inventories here, which run the demo app"
    return "email"


def run(fleet: Fleet, producer: Producer, queue: str) -> tuple[AsyncResult, Node]:
    """Run a task, and return it with the node that ran it."""
    sent = producer.send("demo.tasks.send_letter", SECRET, "Hi", 0, queue=queue)
    producer.result(sent)
    nodes = [node for node in fleet.nodes if queue in node.queues and journal(node.host, sent.id)]
    assert len(nodes) == 1
    return sent, nodes[0]


def journal(host: Host, task_id: str) -> list[dict[str, Any]]:
    """Return what the journal of a host has of a task, as an operator asks for it."""
    lines = host.sh('journalctl --output=json "TASK_ID=$1"', task_id).splitlines()
    return [json.loads(line) for line in lines]


def test_journal_tells_a_tasks_life(fleet: Fleet, producer: Producer, queue_of_demo: str) -> None:
    """From when it was taken to its end, under its id, with its queue and node, but not its arguments."""
    sent, node = run(fleet, producer, queue_of_demo)
    eventually(lambda: len(journal(node.host, sent.id)) >= 2, timeout=10)
    received, *_, succeeded = journal(node.host, sent.id)
    assert "received" in received["MESSAGE"]
    assert "succeeded" in succeeded["MESSAGE"]
    for line in (received, succeeded):
        assert line["TASK_NAME"] == "demo.tasks.send_letter"
        assert line["QUEUE"] == queue_of_demo
        assert line["NODE"] == node.celery_name
        assert line["_SYSTEMD_UNIT"] == node.unit
    assert float(succeeded["RUNTIME"]) >= 0
    assert SECRET not in json.dumps([received, succeeded])


@pytest.mark.setting("celery_worker_json_log_days")
def test_file_has_the_same_after_it_was_rotated(fleet: Fleet, producer: Producer, queue_of_demo: str) -> None:
    """Logrotate renames the file that nodes write to, and they go on in a new one, which is theirs alone."""
    keeping = [node for node in fleet.nodes if node.host.variables["celery_worker_json_log_days"] > 0]
    _, node = run(fleet, producer, queue_of_demo)
    for host in {node.host.name: node.host for node in keeping}.values():
        host.sh("logrotate --force /etc/logrotate.d/celery")
    sent, node = run(fleet, producer, queue_of_demo)
    path = f"/var/log/celery/{node.pool}/{node.name}.jsonl"

    def lines() -> list[dict[str, Any]]:
        """Return what the new file has of the task."""
        written = [json.loads(line) for line in node.host.sh('cat "$1"', path).splitlines()]
        return [line for line in written if line.get("task_id") == sent.id]

    eventually(lambda: "succeeded" in lines()[-1]["message"], timeout=10)
    assert {line["queue"] for line in lines()} == {queue_of_demo}
    assert node.host.sh('stat -c "%a %U" "$1" "$1.1" "${1%/*}"', path).splitlines() == [
        f"640 {user(node.pool)}",
        f"640 {user(node.pool)}",
        f"750 {user(node.pool)}",
    ]
