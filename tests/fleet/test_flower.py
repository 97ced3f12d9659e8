# SPDX-License-Identifier: MIT
"""Flower shows the whole fleet with the password, and nothing without it."""

from __future__ import annotations

import re
import ssl
from typing import TYPE_CHECKING, Any

import flower.urls
import pytest

from tests.fleet.support.hosts import eventually

if TYPE_CHECKING:
    from tests.fleet.support.clients import Producer
    from tests.fleet.support.fleet import Fleet

pytestmark = pytest.mark.group("flower")

# Every path that this version of Flower has, and what else a browser or an intruder might ask for.
PATTERNS = [rule.regex.pattern if hasattr(rule, "regex") else rule[0] for rule in flower.urls.handlers]
PATHS = sorted(
    {re.sub(r"\(.*?\)|^\.\*", "/x", pattern).replace("//", "/").rstrip("$?") for pattern in PATTERNS}
    | {
        "/",
        "/update-workers",
        "/api/events/task/x",
        "//api/workers",
        "/./metrics",
        "/static/../api/workers",
        "/x",
    }
)
SHOWN = [
    "/",
    "/workers",
    "/tasks",
    "/broker",
    "/metrics",
    "/healthcheck",
    "/api/workers",
    "/api/queues/length",
]


def test_paths_are_known() -> None:
    """The list of paths is Flower's own, and has those that matter."""
    assert {"/workers", "/metrics", "/healthcheck", "/api/workers", "/api/task/async-apply/x"} <= set(PATHS)


def test_refused_without_password(fleet: Fleet) -> None:
    """Nobody sees anything, and nobody does anything, without a password."""
    assert unguarded(fleet, "GET", None, PATHS) == {}
    assert unguarded(fleet, "POST", None, PATHS) == {}


def test_refused_with_wrong_password(fleet: Fleet) -> None:
    """A wrong password, an empty one, a part of the right one and a wrong user open nothing."""
    user, password = fleet.flower.user, fleet.flower.password
    for wrong in [(user, "wrong"), (user, ""), ("", ""), ("admin", password), (user, password[:-1])]:
        assert unguarded(fleet, "GET", wrong, PATHS) == {}


def test_websocket_is_refused(fleet: Fleet) -> None:
    """An upgrade to a websocket is no way around the password."""
    upgrade = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
    for path in ("/", "/update-workers", "/api/task/events/task-succeeded/"):
        assert fleet.flower.ask(path, headers={**upgrade, "Sec-WebSocket-Key": "eA=="}).status == 401


def unguarded(fleet: Fleet, method: str, login: tuple[str, str] | None, paths: list[str]) -> dict[str, int]:
    """Return the status of each path that does not ask for the password."""
    statuses = fleet.flower.statuses(paths, method, login)
    assert statuses.keys() == set(paths)
    return {path: status for path, status in statuses.items() if status != 401}


def test_asked_by_another_name_it_answers_nothing(fleet: Fleet) -> None:
    """A browser that was led here by another name takes this for that name's pages."""
    for name in ("evil.example", f"{fleet.group('flower')[0].name}.evil.example"):
        assert fleet.flower.ask("/", headers={"Host": name}).status == 421
    for name in (fleet.group("flower")[0].name, "localhost", "[::1]:5555"):
        assert fleet.flower.ask("/", headers={"Host": name}).status == 401


def test_shown_with_password(fleet: Fleet) -> None:
    """With the password, whatever characters it is made of, the pages are there."""
    login = (fleet.flower.user, fleet.flower.password)
    assert fleet.flower.statuses(SHOWN, "GET", login) == dict.fromkeys(SHOWN, 200)


def test_plaintext_is_refused(fleet: Fleet) -> None:
    """Without TLS there is no site, not even a place to send a password to."""
    assert fleet.flower.ask_plainly("/").status == 400


def test_other_authority_is_refused(fleet: Fleet) -> None:
    """A browser that does not know the fleet's authority does not take the site for Flower."""
    with pytest.raises(ssl.SSLCertVerificationError):
        fleet.flower.ask("/", trust=ssl.create_default_context())


def test_shows_every_node(fleet: Fleet) -> None:
    """Flower shows each node of the fleet as online, and no other."""
    expected = {node.celery_name: True for node in fleet.nodes}

    def shows_all() -> bool:
        shown = fleet.flower.get("/api/workers?status=true").json
        assert shown == expected
        return True

    eventually(shows_all, timeout=30)


def test_knows_what_nodes_do(fleet: Fleet) -> None:
    """Flower can ask the nodes, so remote control works with its rights: it knows the queues of each."""
    shown = fleet.flower.get("/api/workers?refresh=true").json
    queues = {name: {queue["name"] for queue in details["active_queues"]} for name, details in shown.items()}
    assert queues == {node.celery_name: set(node.queues) for node in fleet.nodes}


def test_counts_messages(fleet: Fleet) -> None:
    """Flower may count what waits in each queue."""
    shown = {queue["name"] for queue in fleet.flower.get("/api/queues/length").json["active_queues"]}
    assert shown == set(fleet.queues)


def test_shows_what_runs(fleet: Fleet, producer: Producer) -> None:
    """As installed: each task with state and time; what failed and why; what was retried or revoked."""
    late = producer.send("demo.tasks.greet", "too late", queue="default", countdown=5)
    fleet.operator.revoke(late.id)
    greetings = [producer.send("demo.tasks.greet", f"visitor {n}", 0.1, queue="default") for n in range(10)]
    broken = producer.send("demo.tasks.greet", "nobody", -1, queue="default")
    letter = producer.send("demo.tasks.send_letter", "ann@example.com", "News", 0, 1, queue="email")
    expected = {
        **{one.id: "SUCCESS" for one in (*greetings, letter)},
        broken.id: "FAILURE",
        late.id: "REVOKED",
    }
    shown: dict[str, dict[str, Any]] = {}

    def shows_all() -> bool:
        shown.update(fleet.flower.get("/api/tasks?limit=1000").json)
        assert {task: shown.get(task, {}).get("state") for task in expected} == expected
        return True

    eventually(shows_all, timeout=60)
    assert all(0.1 <= shown[one.id]["runtime"] < 10 for one in greetings)
    assert "ValueError" in shown[broken.id]["exception"]
    assert "greet" in fleet.flower.get(f"/api/task/info/{broken.id}").json["traceback"]
    assert shown[letter.id]["retries"] == 1
    assert shown[letter.id]["retried"]
    assert shown[late.id]["revoked"]
    assert shown[letter.id]["worker"] in {node.celery_name for node in fleet.nodes if "email" in node.queues}
    fleet.group("workers")[0].sh('fleet-celery dead-letter purge --yes --id "$1"', broken.id)


def test_counts_what_nodes_did(fleet: Fleet, producer: Producer) -> None:
    """The page of nodes counts tasks by how they ended."""

    def processed() -> int:
        rows = fleet.flower.get("/workers?json=1").json["data"]
        return sum(row.get("task-succeeded") or 0 for row in rows)

    before = processed()
    for queue in fleet.queues:
        producer.result(producer.probe(queue))
    eventually(lambda: processed() >= before + len(fleet.queues), timeout=30)


def test_knows_consumers_and_what_they_hold(fleet: Fleet, producer: Producer) -> None:
    """The page of queues has for each how many nodes consume it, and how many messages they hold."""
    sent = [producer.send("demo.tasks.greet", "you", queue="default", countdown=45) for _ in range(3)]

    def shows() -> bool:
        found = {
            queue["name"]: queue for queue in fleet.flower.get("/api/queues/length").json["active_queues"]
        }
        consumers = {queue: sum(queue in node.queues for node in fleet.nodes) for queue in fleet.queues}
        assert {name: queue["consumers"] for name, queue in found.items()} == consumers
        assert found["default"]["messages_unacknowledged"] >= len(sent)
        return True

    eventually(shows, timeout=30)
    for one in sent:
        fleet.operator.revoke(one.id)
