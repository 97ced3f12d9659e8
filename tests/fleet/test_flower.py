"""Flower shows the whole fleet, to those who have the password, and to nobody else."""

from __future__ import annotations

import re
import ssl
from typing import TYPE_CHECKING

import flower.urls
import pytest

from tests.fleet.support.hosts import eventually

if TYPE_CHECKING:
    from tests.fleet.support.fleet import Fleet

pytestmark = pytest.mark.group("flower")

# Every path that this version of Flower has, and what else a browser or an intruder might ask for.
PATTERNS = [getattr(rule, "regex", None) or rule[0] for rule in flower.urls.handlers]
PATHS = sorted(
    {re.sub(r"\(.*?\)|\.\*", "x", getattr(pattern, "pattern", pattern)).rstrip("$?") for pattern in PATTERNS}
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
POSTED = [path for path in PATHS if "/api/" in path]
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


@pytest.mark.parametrize("path", PATHS)
def test_refused_without_password(fleet: Fleet, path: str) -> None:
    """Nobody sees anything without a password."""
    assert fleet.flower.ask(path).status == 401


@pytest.mark.parametrize("path", PATHS)
def test_refused_with_wrong_password(fleet: Fleet, path: str) -> None:
    """A wrong password, an empty one and a wrong user open nothing."""
    user, password = fleet.flower.user, fleet.flower.password
    wrong = [(user, "wrong"), (user, ""), ("", ""), ("admin", password), (user, password[:-1])]
    assert [fleet.flower.get_as(*pair, path).status for pair in wrong] == [401] * len(wrong)


@pytest.mark.parametrize("path", POSTED)
def test_refused_post(fleet: Fleet, path: str) -> None:
    """Nothing can be done without a password, either."""
    assert fleet.flower.ask(path, method="POST").status == 401


def test_websocket_is_refused(fleet: Fleet) -> None:
    """An upgrade to a websocket is no way around the password."""
    upgrade = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "eA==",
    }
    for path in ("/", "/update-workers", "/api/task/events/task-succeeded/"):
        assert fleet.flower.ask(path, headers=upgrade).status == 401


@pytest.mark.parametrize("path", SHOWN)
def test_shown_with_password(fleet: Fleet, path: str) -> None:
    """With the password, whatever characters it is made of, the pages are there."""
    assert fleet.flower.get(path).status == 200


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
