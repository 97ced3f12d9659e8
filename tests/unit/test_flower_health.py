# SPDX-License-Identifier: MIT
"""The module flower_health: when Flower is well, and what is said of one that is not."""

from __future__ import annotations

import json
import threading
from base64 import b64encode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.fleet.celery.plugins.modules import flower_health

if TYPE_CHECKING:
    from collections.abc import Iterator

LOGIN = "Basic " + b64encode(b"flower:a:b").decode()


class Flower(ThreadingHTTPServer):
    """A web server that answers as nginx and Flower would."""

    nodes: dict[str, bool] | str
    guarded = True


class Handler(BaseHTTPRequestHandler):
    """Its answers."""

    server: Flower

    def do_GET(self) -> None:
        """Answer."""
        allowed = self.headers.get("Authorization") == LOGIN or (
            self.path == "/metrics" and not self.server.guarded
        )
        self.send_response(200 if allowed else 401)
        self.end_headers()
        nodes = self.server.nodes
        self.wfile.write((nodes if isinstance(nodes, str) else json.dumps(nodes)).encode())

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Flower]:
    """The server."""
    with Flower(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def params(server: Flower, **given: Any) -> dict[str, Any]:
    """Return the module's arguments."""
    fine = {
        "url": f"http://127.0.0.1:{server.server_address[1]}",
        "username": "flower",
        "password": "a:b",
        "previous_password": "",
        "ca_file": None,
        "certificate": "",
        "expected": ["a-1@h", "b-1@h"],
        "any_node": False,
        "timeout": 5,
        "retries": 0,
        "delay": 0,
    }
    return fine | given


def test_a_flower_that_shows_every_node_is_well(server: Flower) -> None:
    server.nodes = {"a-1@h": True, "b-1@h": True, "old@h": False}
    flower_health.wait(params(server))
    flower_health.wait(params(server, expected=[], any_node=True))
    flower_health.refuse_open_door(params(server))


@pytest.mark.parametrize(
    ("nodes", "given", "said"),
    [
        ({"a-1@h": True, "b-1@h": False}, {}, "does not show as online: b-1@h$"),
        ({}, {}, "does not show as online: a-1@h, b-1@h$"),
        ({"a-1@h": False}, {"expected": [], "any_node": True}, "shows no node as online"),
        ({}, {"expected": [], "any_node": True}, "shows no node as online"),
        ("<html>", {}, "is not Flower's"),
        ({}, {"password": "wrong"}, "answers 401"),
        ({}, {"url": "http://127.0.0.1:1"}, "nobody answers there"),
    ],
)
def test_what_is_wrong_is_said(server: Flower, nodes: Any, given: dict[str, Any], said: str) -> None:
    server.nodes = nodes
    with pytest.raises(flower_health.UnhealthyError, match=said):
        flower_health.wait(params(server, **given))


def test_a_node_may_take_its_time(server: Flower) -> None:
    server.nodes = {}
    timer = threading.Timer(0.3, lambda: setattr(server, "nodes", {"a-1@h": True, "b-1@h": True}))
    timer.start()
    flower_health.wait(params(server, retries=50, delay=0.1))
    timer.join()


def test_a_flower_without_password_is_refused(server: Flower) -> None:
    server.nodes, server.guarded = {}, False
    with pytest.raises(flower_health.UnhealthyError, match="without a password"):
        flower_health.refuse_open_door(params(server))


def test_a_flower_that_takes_the_previous_password_is_refused(server: Flower) -> None:
    server.nodes = {}
    flower_health.refuse_open_door(params(server, previous_password="another"))
    with pytest.raises(flower_health.UnhealthyError, match="with the previous password"):
        flower_health.refuse_open_door(params(server, previous_password="a:b"))
