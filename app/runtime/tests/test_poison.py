# SPDX-License-Identifier: MIT
"""A task that kills its process runs a few times, and no more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from billiard.exceptions import WorkerLostError

from fleet_testing.commands import FLAGS, PATIENCE, Daemon, Fleet, together, wait_until
from fleet_testing.dead_letters import (
    POOLS,
    QUEUES,
    UNCONSUMED,
    caught,
    failing,
    letter_of,
    letters,
    places,
    put,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fleet_testing.broker import Broker


@pytest.fixture(scope="module")
def fleet(redis_server: Broker) -> Fleet:
    """Return the app."""
    return failing(redis_server)


@pytest.fixture(scope="module", autouse=True)
def nodes(fleet: Fleet) -> Iterator[dict[str, Daemon]]:
    """Yield a node for each queue, each with another type of pool."""
    started = {
        queue: fleet.worker(f"poison-{pool}", f"--queues={queue}", f"--pool={pool}", *FLAGS)
        for queue, pool in POOLS.items()
    }
    with together(started) as nodes:
        yield nodes


@pytest.fixture(autouse=True)
def no_letters(redis_server: Broker) -> None:
    """Let a test begin without letters."""
    redis_server.client("admin").delete("fleet:dead", "fleet:dead:letters", UNCONSUMED)


def test_what_kills_its_process_runs_three_times(
    broker: Broker, web: Any, fleet: Fleet, nodes: dict[str, Daemon], tmp_path: Path
) -> None:
    """Then it is a failure as Celery has them, and a letter; put back, it has three times again."""
    runs, reported = tmp_path / "runs", tmp_path / "reported"
    errback = web.signature("failing.report", (str(reported),), queue="default")
    sent = web.send_task("failing.kill", (str(runs),), queue="default", link_error=errback)
    with pytest.raises(WorkerLostError):
        sent.get(PATIENCE)
    letter = letter_of(broker, sent.id)
    assert (letter["reason"], letter["deliveries"], letter["retries"]) == ("poison", 3, 0)
    assert letter["error"].startswith("WorkerLostError: Worker exited prematurely: ")
    assert runs.read_text() == "run\n" * 3
    wait_until(reported.exists)
    assert reported.read_text().startswith(f"{sent.id} WorkerLostError")
    # Its own count only: those of messages that ran again after a loss stay for CRASH_COUNT_TTL_S.
    assert not broker.client("admin").exists(losses_of(letter["record"][0]))
    assert nodes["default"].process.poll() is None
    assert fleet.run("ops", "dead-letter", "requeue", "--reason", "poison").returncode == 0
    wait_until(lambda: runs.read_text() == "run\n" * 6)
    wait_until(lambda: sent.id in letters(broker))  # there was none meanwhile, for a moment
    assert letter_of(broker, sent.id)["deliveries"] == 3


def test_a_task_may_want_no_other_try(broker: Broker, web: Any, tmp_path: Path) -> None:
    """What it says of itself stays."""
    sent = web.send_task("failing.kill_once", (str(tmp_path / "runs"),), queue="default")
    assert letter_of(broker, sent.id)["reason"] == "lost"
    assert (tmp_path / "runs").read_text() == "run\n"


def test_what_was_done_before_its_process_died_is_no_failure(
    broker: Broker, web: Any, tmp_path: Path
) -> None:
    """Its result is there."""
    message = caught(web, broker, "failing.kill_when_done", str(tmp_path / "runs"))
    lose(broker, message, 2)
    sent = put(broker, "default", message)
    assert web.AsyncResult(sent).get(PATIENCE) is None
    wait_until(lambda: not places(broker, sent))
    assert letters(broker) == {}


@QUEUES
@pytest.mark.parametrize("countdown", [0, 2])
def test_what_was_recovered_too_often_does_not_start(
    broker: Broker, web: Any, queue: str, countdown: int, tmp_path: Path
) -> None:
    """Each return from a node that died counts when it is about to run again, with an ETA or without."""
    message = caught(web, broker, "failing.note", str(tmp_path / "runs"), countdown=countdown)
    mark(message, recovered=True)
    lose(broker, message, 2)
    sent = put(broker, queue, message)
    letter = letter_of(broker, sent)
    assert (letter["reason"], letter["deliveries"], letter["started"]) == ("poison", 3, None)
    assert not (tmp_path / "runs").exists()
    with pytest.raises(WorkerLostError):
        web.AsyncResult(sent).get(PATIENCE)
    assert web.send_task("failing.note", (str(tmp_path / "runs"),), queue=queue).get(PATIENCE) == 1


def test_what_was_recovered_too_often_leaves_nothing_behind(broker: Broker, web: Any) -> None:
    """Also one that Celery takes to be acknowledged already."""
    message = caught(web, broker, "failing.fail_early")
    mark(message, recovered=True)
    lose(broker, message, 2)
    assert letter_of(broker, put(broker, "default", message))["reason"] == "poison"


def test_what_the_message_says_does_not_matter(broker: Broker, web: Any, tmp_path: Path) -> None:
    """Whatever JSON its headers hold: kombu reads some of it as objects."""
    message = caught(web, broker, "failing.note", str(tmp_path / "runs"))
    message["headers"]["of-the-app"] = {"__type__": "uuid", "__value__": {"hex": 32 * "0"}}
    mark(message, recovered=True)
    lose(broker, message, 2)
    assert letter_of(broker, put(broker, "default", message))["reason"] == "poison"
    assert not (tmp_path / "runs").exists()


@QUEUES
def test_what_was_recovered_less_often_runs(broker: Broker, web: Any, queue: str, tmp_path: Path) -> None:
    """And what was only handed back is not blamed at all."""
    for recovered, losses, counted in ((True, 1, "2"), (False, 2, "2"), (False, 0, None)):
        message = caught(web, broker, "failing.note", str(tmp_path / f"runs-{recovered}-{losses}"))
        mark(message, recovered=recovered)
        lose(broker, message, losses)
        assert web.AsyncResult(put(broker, queue, message)).get(PATIENCE) == 1
        assert broker.client("admin").get(losses_of(message)) == counted
        broker.client("admin").delete(losses_of(message))
    assert letters(broker) == {}


def test_deaths_of_nodes_and_of_processes_count_together(broker: Broker, web: Any, tmp_path: Path) -> None:
    """And each once: the mark of a recovered message does not come back with it."""
    message = caught(web, broker, "failing.kill", str(tmp_path / "runs"))
    mark(message, recovered=True)
    sent = put(broker, "default", message)
    assert letter_of(broker, sent)["deliveries"] == 3
    assert (tmp_path / "runs").read_text() == "run\n" * 2


def mark(message: dict[str, Any], *, recovered: bool) -> None:
    """Mark a message as one that comes back, from a node that died or otherwise."""
    message["headers"]["redelivered"] = True
    message["properties"]["delivery_info"]["redelivered"] = True
    if recovered:
        message["headers"]["fleet_recovered"] = True


def losses_of(message: dict[str, Any]) -> str:
    """Return the key of a message's count."""
    return f"fleet:losses:{message['properties']['delivery_tag']}"


def lose(broker: Broker, message: dict[str, Any], count: int) -> None:
    """Let who ran a message have died so often."""
    if count:
        broker.client("admin").set(losses_of(message), count)
