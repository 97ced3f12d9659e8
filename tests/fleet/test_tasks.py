# SPDX-License-Identifier: MIT
"""Tasks that an application sends are run, where the inventory says."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.fleet.support.clients import Producer
    from tests.fleet.support.fleet import Fleet

pytestmark = pytest.mark.group("workers")

# A task of the demo app for each of its queues, and what it returns.
DEMO: dict[str, tuple[str, list[Any], Any]] = {
    "default": ("demo.tasks.greet", ["fleet"], "Hello, fleet!"),
    "email": ("demo.tasks.send_letter", ["you@example.com", "Hi", 0], 169),
    "heavy": ("demo.tasks.count_primes", [10_000], 1229),
    "io": ("demo.tasks.digest", [1], "30e14955ebf1352266dc2ff8067e68104607e750abb9d3b36582b8af909fcb58"),
}


def test_queue_is_served(fleet: Fleet, producer: Producer, queue: str) -> None:
    """A task sent to a queue, over TLS and as the user `web`, runs on a node of a pool that consumes it."""
    answer = producer.result(producer.probe(queue))
    assert answer["queue"] == queue
    assert answer["node"] in {node.celery_name for node in fleet.nodes if queue in node.queues}


@pytest.mark.parametrize("queue_of_demo", DEMO)
def test_app_does_its_work(producer: Producer, queue_of_demo: str) -> None:
    """The tasks of the demo app run in the sandbox of their node, and return what they should."""
    task, arguments, expected = DEMO[queue_of_demo]
    assert producer.result(producer.send(task, *arguments, queue=queue_of_demo)) == expected


def test_nodes_are_those_of_the_inventory(fleet: Fleet) -> None:
    """Each node answers, consumes the queues of its pool and no other, and no other node answers."""
    shown = fleet.operator.ask("active_queues")
    consumed = {node: {queue["name"] for queue in queues} for node, queues in shown.items()}
    assert consumed == {node.celery_name: set(node.queues) for node in fleet.nodes}


def test_nodes_have_their_concurrency(fleet: Fleet) -> None:
    """Each node runs as many tasks at once as its pool says, in the kind of pool that it says."""
    kinds = {"prefork": "prefork", "gevent": "gevent", "threads": "thread", "solo": "solo"}
    shown = fleet.operator.ask("stats", fleet.celery_names)
    for node in fleet.nodes:
        pool = shown[node.celery_name]["pool"]
        assert kinds[node.options["pool"]] in pool["implementation"], node.celery_name
        if "concurrency" in node.options:
            assert pool["max-concurrency"] == node.options["concurrency"], node.celery_name


def test_operators_probe_every_queue(fleet: Fleet) -> None:
    """`fleet-celery fleet probe` finds a node for every queue by itself, from a host of the fleet."""
    answers = json.loads(fleet.group("workers")[0].sh("fleet-celery fleet probe --json"))
    assert set(answers) == set(fleet.queues) - {"celery"}  # of an app that names no queue
    assert all(answer["node"] for answer in answers.values())


def test_operators_cannot_run_tasks(fleet: Fleet) -> None:
    """The operators' access starts no worker: what it took would be lost with it."""
    host = fleet.group("workers")[0]
    refused = host.infra.run("timeout 30 fleet-celery worker --pool=solo")
    assert refused.rc not in (0, 124)
    assert "FLEET_COMPONENT" in refused.stdout + refused.stderr


def test_result_is_gone_when_forgotten(producer: Producer, fleet: Fleet) -> None:
    """An application may forget a result, which leaves nothing of it behind."""
    sent = producer.probe(fleet.queues[0])
    producer.result(sent)
    sent.forget()
    with fleet.broker.connect("admin") as client:
        assert not client.exists(f"celery-task-meta-{sent.id}")
