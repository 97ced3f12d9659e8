# SPDX-License-Identifier: MIT
"""A command that revokes many tasks does not hold a node up."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery, states
from celery.worker import control, state
from fleet_runtime.worker import revoke_command

from fleet_testing import items
from fleet_testing.commands import FLAGS, PATIENCE, shop, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from fleet_testing.broker import Broker

CONTROL = "/0.celery.pidbox"
COMMANDS, IDS = 20, 3000


@pytest.fixture
def mended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process revoke as a node does, for a test."""
    monkeypatch.setattr(control, "_revoke", control._revoke)
    revoke_command.patch()


def test_a_flood_of_revoked_ids_leaves_time_for_tasks(broker: Broker, web: Any) -> None:
    """With 60,000 ids, each of which Celery looks up in the loop."""
    with shop(broker).worker("revokes", "--queues=default", "--pool=solo", *FLAGS) as node:
        client = broker.client("admin")
        wait_until(lambda: client.publish(CONTROL, b"5"))  # it hears what is sent from now on
        for turn in range(COMMANDS):
            ids = [f"{turn}-{number}" for number in range(IDS)]
            command = {"method": "revoke", "arguments": {"task_id": ids}}
            client.publish(CONTROL, json.dumps(items.message(command)))
        began = time.monotonic()
        assert web.send_task("shop.add", (1, 2), queue="default").get(timeout=PATIENCE) == 3
        assert time.monotonic() - began < PATIENCE / 2
        wait_until(lambda: len(node.lines("Tasks flagged as revoked")) == COMMANDS)
        assert max(map(len, node.lines("Tasks flagged as revoked"))) < 1000
        last = web.AsyncResult("0-1")
        wait_until(lambda: last.state == states.REVOKED)


def test_what_has_a_state_keeps_it(mended: None, broker: Broker, configure_app: Callable[..., Any]) -> None:
    """As with a few: a task that has begun somewhere, or has ended, is not stored as revoked."""
    app = Celery("node", set_as_current=False)
    configure_app(app, "web", broker.url("worker"))
    backend = app.backend
    backend.store_result("ended", 1, states.SUCCESS)
    backend.store_result("begun", {}, states.STARTED)
    backend.store_result("again", ValueError("x"), states.RETRY)
    revoke_command.Marker(app).store(("ended", "begun", "again", "new"))
    found = [backend.get_state(name) for name in ("ended", "begun", "again", "new")]
    assert found == [states.SUCCESS, states.STARTED, states.REVOKED, states.REVOKED]


def test_many_that_run_here_are_terminated(mended: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are here; no other is looked for."""
    ended: list[str] = []
    here = SimpleNamespace(id="7", terminate=lambda pool, signal: ended.append("7"))
    monkeypatch.setattr(state, "requests", {"7": here})
    monkeypatch.setattr(revoke_command, "marker", lambda app: SimpleNamespace(add=lambda ids: None))
    panel = SimpleNamespace(app=None, consumer=SimpleNamespace(pool=None))
    answer = control._revoke(panel, {str(number) for number in range(100)}, terminate=True)
    assert answer == {"ok": "terminate: 1 tasks"}
    assert ended == ["7"]
    state.revoked.clear()
