# SPDX-License-Identifier: MIT
"""Nodes of the fleet beside Celery without it, on the same queues, and one after the other."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery, chain, chord, group

from fleet_testing.broker import Broker
from fleet_testing.commands import FLAGS, PATIENCE, Daemon, Fleet, together, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

QUEUES = "--queues=default"
STANDARD = {"FLEET_LEVEL": "standard"}


def stock(fleet: Fleet, name: str, *words: str) -> Daemon:
    """Start a node of Celery that knows nothing of the fleet; the access rules would refuse kombu's keys."""
    url = fleet.broker.url("admin")
    environment = {**fleet.environment, "CELERY_BROKER_URL": url, "CELERY_RESULT_BACKEND": url}
    return Daemon(
        ["--app=shop", "worker", f"--hostname={name}@test", "--loglevel=INFO", *words],
        environment,
        ready=f"{name}@test ready.",
    )


@pytest.fixture(scope="class")
def both(fleet: Fleet) -> Iterator[dict[str, Daemon]]:
    """A node of each kind on one queue."""
    nodes = {
        "own": fleet.worker("own", QUEUES, *FLAGS),
        "stock": stock(fleet, "stock", QUEUES, *FLAGS),
    }
    with together(nodes) as running:
        yield running


@pytest.mark.usefixtures("both")
class TestBeside:
    """A node of each kind on one queue."""

    def test_both_run_what_is_sent(self, web: Any, both: dict[str, Daemon]) -> None:
        """Each takes some of it, and nothing is run twice."""
        results = [web.send_task("shop.add", (number, 1), queue="default") for number in range(200)]
        assert [result.get(timeout=PATIENCE) for result in results] == list(range(1, 201))
        counts = {name: len(node.lines("Task shop.add")) for name, node in both.items()}
        assert all(counts.values()), counts

    def test_canvas(self, web: Any) -> None:
        """Whichever of them runs a part."""
        add = web.signature("shop.add", queue="default")
        sums = group(add.clone((number, 1)) for number in range(20))
        assert sums.apply_async().get(timeout=PATIENCE) == list(range(1, 21))
        assert (
            chain(add.clone((1, 1)), add.clone((2,)), add.clone((3,))).apply_async().get(timeout=PATIENCE)
            == 7
        )

    def test_a_chord_is_counted_by_both(self, web: Any) -> None:
        """Its parts run on either, and the callback once."""
        add = web.signature("shop.add", queue="default")
        total = web.signature("shop.total", queue="default")
        result = chord([add.clone((number, number)) for number in range(6)])(total)
        assert result.get(timeout=PATIENCE) == 2 * sum(range(6))

    def test_an_eta_is_kept(self, web: Any) -> None:
        """And the task runs once."""
        start = time.monotonic()
        results = [web.send_task("shop.add", (1, 1), queue="default", countdown=2) for _ in range(10)]
        assert [result.get(timeout=PATIENCE) for result in results] == [2] * 10
        assert time.monotonic() - start >= 2

    def test_what_is_revoked_does_not_run(
        self, web: Any, redis_server: Broker, configure_app: Callable[..., Any]
    ) -> None:
        """On any node. No command is started for it: that can take longer than the task waits."""
        ops = Celery("ops", set_as_current=False)
        configure_app(ops, "ops", redis_server.url("ops"))
        result = web.send_task("shop.add", (1, 1), queue="default", countdown=4)
        time.sleep(1)
        ops.control.revoke(result.id)
        wait_until(lambda: result.state == "REVOKED")

    def test_both_answer(self, fleet: Fleet) -> None:
        """As one fleet."""
        said = fleet.run("ops", "inspect", "ping", "--timeout=5").stdout
        assert "own@test" in said
        assert "stock@test" in said

    def test_a_rate_limit_holds(self, web: Any, fleet: Fleet) -> None:
        """For each node."""
        assert fleet.run("ops", "control", "rate_limit", "shop.add", "120/m").returncode == 0
        start = time.monotonic()
        results = [web.send_task("shop.add", (1, 1), queue="default") for _ in range(12)]
        for result in results:
            assert result.get(timeout=PATIENCE) == 2
        assert time.monotonic() - start > 2
        assert fleet.run("ops", "control", "rate_limit", "shop.add", "0").returncode == 0


def test_a_purge_empties_a_queue(fleet: Fleet, web: Any, broker: Broker) -> None:
    """Of messages with any priority."""
    for priority in (0, 9):
        web.send_task("shop.add", (1, 1), queue="heavy", priority=priority)
    assert fleet.run("ops", "purge", "--force", "--queues=heavy").returncode == 0
    assert not broker.client("admin").keys("heavy*")


def test_what_is_urgent_runs_first(fleet: Fleet, web: Any, tmp_path: Path) -> None:
    """As with kombu: 0 before 9."""
    notes = tmp_path / "notes"
    for priority in (9, 6, 3, 0):
        web.send_task("shop.note", (str(notes), str(priority)), queue="default", priority=priority)
    with fleet.worker("one", QUEUES, "--pool=solo", *FLAGS):
        wait_until(lambda: notes.exists() and notes.read_text().count("ends") == 4)
    assert notes.read_text().split()[::2] == ["0", "0", "3", "3", "6", "6", "9", "9"]


@pytest.mark.parametrize(("before", "after"), [({}, STANDARD), (STANDARD, {})])
def test_a_node_changes_its_level_with_messages_in_flight(
    fleet: Fleet, web: Any, tmp_path: Path, before: dict[str, str], after: dict[str, str]
) -> None:
    """It is killed, and what it held with the one runs with the other."""
    notes, gate = tmp_path / "notes", tmp_path / "gate"
    gate.touch()
    words = (QUEUES, "--pool=threads", *FLAGS)
    with fleet.worker("one", *words, **before) as node:
        for number in range(4):
            web.send_task("shop.note", (str(notes), str(number), str(gate)), queue="default")
        wait_until(lambda: notes.exists() and notes.read_text().count("starts") == 2)
        node.process.kill()
        node.process.wait()
    gate.unlink()
    with fleet.worker("one", *words, **after):
        wait_until(lambda: notes.read_text().count("ends") == 4)
    assert sorted(line for line in notes.read_text().splitlines() if line.endswith("ends")) == [
        f"{number} ends" for number in range(4)
    ]


@pytest.mark.parametrize(("before", "after"), [({}, STANDARD), (STANDARD, {})])
def test_a_fleet_changes_its_level_node_by_node(
    fleet: Fleet, web: Any, tmp_path: Path, before: dict[str, str], after: dict[str, str]
) -> None:
    """While tasks are sent, as by a release: each runs, also one that waits for its time meanwhile.

    And once, but that at the level standard a node has Celery's pool, which forgets as it stops what it has
    just handed to a process.
    """
    notes, sent = tmp_path / "notes", list[str]()

    def send(count: int, **options: Any) -> None:
        for _ in range(count):
            sent.append(str(len(sent)))
            web.send_task("shop.note", (str(notes), sent[-1]), queue="default", **options)

    with ExitStack() as one, ExitStack() as two:
        nodes = {"one": one, "two": two}
        for name, stack in nodes.items():
            stack.enter_context(fleet.worker(name, QUEUES, *FLAGS, **before))
        send(1, countdown=10)
        for name, stack in nodes.items():
            send(40)
            stack.close()
            send(40)
            stack.enter_context(fleet.worker(name, QUEUES, *FLAGS, **after))
        wait_until(lambda: len(set(ends(notes))) >= len(sent))
        assert set(ends(notes)) == set(sent)
        assert len(ends(notes)) == len(sent) or before == STANDARD


def ends(notes: Path) -> list[str]:
    """Return which tasks have ended, each as often as it has."""
    lines = notes.read_text().splitlines() if notes.exists() else []
    return [line.removesuffix(" ends") for line in lines if line.endswith(" ends")]
