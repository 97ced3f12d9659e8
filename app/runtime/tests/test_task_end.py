# SPDX-License-Identifier: MIT
"""However a task ends, it ends once, leaves one dead letter, and its place in the pool is free again."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from kombu.utils.uuid import uuid

from ends import FAILS, LOST
from fleet_testing import items
from fleet_testing.commands import APPS, FLAGS, PATIENCE, Daemon, Fleet, together, wait_until
from fleet_testing.dead_letters import UNCONSUMED, letter_of, letters, places
from fleet_testing.params import FAST_POOLS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fleet_testing.broker import Broker

# A queue for each type of pool.
POOLS = {"default": "prefork", "email": "gevent", "heavy": "solo", "io": "threads"}
HERE = "here"
EACH_POOL = pytest.mark.parametrize("queue", POOLS, ids=POOLS.values())


@pytest.fixture(scope="module", params=FAST_POOLS)
def nodes(request: pytest.FixtureRequest, redis_server: Broker) -> Iterator[dict[str, Daemon]]:
    """Yield a node for each queue, each with another type of pool."""
    fleet = Fleet(redis_server, "ends:app", PYTHONPATH=APPS, FLEET_FAST_POOL=request.param)
    started = {
        queue: fleet.worker(f"ends-{pool}", f"--queues={queue}", f"--pool={pool}", *FLAGS)
        for queue, pool in POOLS.items()
    }
    with together(started) as nodes:
        yield nodes


@pytest.fixture(autouse=True)
def no_letters(redis_server: Broker) -> None:
    """Let a test begin without letters."""
    redis_server.client("admin").delete("fleet:dead", "fleet:dead:letters", UNCONSUMED)


@EACH_POOL
def test_what_fails_fails_once(
    broker: Broker, web: Any, nodes: dict[str, Daemon], queue: str, tmp_path: Path
) -> None:
    """All of it at once, and then again: a node of two places has room for none that is not free again."""
    sent = {}
    for turn in range(2):
        for how in FAILS:
            runs = tmp_path / f"{how}-{turn}"
            sent[how, turn] = (web.send_task("ends.end", (how, str(runs)), queue=queue), runs)
    wait_until(lambda: {one.id for one, _ in sent.values()} == set(letters(broker)))
    for (how, _), (one, runs) in sent.items():
        assert runs.read_text() == "run\n", how
        reason = "rejected" if how == "late reject" else "failed"
        assert letters(broker)[one.id]["reason"] == reason, how
        assert state_of(broker, one.id) == "FAILURE", how
    wait_until(lambda: not any(places(broker, one.id) for one, _ in sent.values()))
    goes_on(web, nodes[queue], queue)


@EACH_POOL
@pytest.mark.parametrize("how", LOST)
def test_what_would_end_the_node_runs_three_times(
    broker: Broker, web: Any, nodes: dict[str, Daemon], queue: str, how: str, tmp_path: Path
) -> None:
    """As Celery has it for what ends a process; then it is poison, whatever the pool."""
    sent = web.send_task("ends.end", (how, str(tmp_path / "runs")), queue=queue)
    letter = letter_of(broker, sent.id)
    assert letter["reason"] == "poison"
    assert (tmp_path / "runs").read_text() == "run\n" * 3
    assert state_of(broker, sent.id) == "FAILURE"
    goes_on(web, nodes[queue], queue)


@EACH_POOL
def test_what_is_nested_too_deep_to_be_sent_to_a_process_fails(
    broker: Broker, web: Any, nodes: dict[str, Daemon], queue: str
) -> None:
    """As an argument, and as a header; what is not too deep for a pool runs."""
    for depth in (400, 900, 980):
        deep = items.nested(depth)
        arrives(broker, queue, items.message(f"[[{deep}], {{}}, {{}}]", headers=headers_of(web)), deep)
        arrives(broker, queue, items.message([[1], {}, {}], headers=headers_of(web, x=HERE)), deep)
    goes_on(web, nodes[queue], queue)


def headers_of(web: Any, **more: Any) -> dict[str, Any]:
    """Return the headers of a message for the task that takes an argument."""
    return {**web.amqp.as_task_v2(uuid(), "ends.take").headers, **more}


def arrives(broker: Broker, queue: str, message: dict[str, Any], deep: str) -> None:
    """Put a message into a queue, with something deep in its place, and see that it runs or is a letter."""
    name = message["headers"]["id"]
    message["properties"] |= {
        "delivery_tag": name,
        "delivery_info": {"exchange": "", "routing_key": queue},
        "correlation_id": name,
    }
    known = len(letters(broker))
    broker.client("admin").lpush(queue, json.dumps(message).replace(json.dumps(HERE), deep))
    # What the node cannot read at all has no id that it could know.
    wait_until(lambda: state_of(broker, name) == "SUCCESS" or len(letters(broker)) > known)
    wait_until(lambda: not places(broker, name))


def state_of(broker: Broker, name: str) -> str | None:
    """Return the state of a task, from what is stored."""
    stored = broker.client("admin").get(f"celery-task-meta-{name}")
    return json.loads(stored)["status"] if stored else None


def goes_on(web: Any, node: Daemon, queue: str) -> None:
    """See that a node runs what comes next, on the connection that it has."""
    results = [web.send_task("ends.add", (1, number), queue=queue) for number in range(8)]
    assert [one.get(timeout=PATIENCE) for one in results] == list(range(1, 9))
    assert node.process.poll() is None
    for words in ("Connection to broker lost", "Unrecoverable error"):
        assert not node.lines(words), node.lines("")[-30:]
