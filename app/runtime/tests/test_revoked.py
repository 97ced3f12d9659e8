# SPDX-License-Identifier: MIT
"""Revoked tasks stay revoked over any restart, within bounds of time and number."""

from __future__ import annotations

import json
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from celery.worker import state
from celery.worker.control import Panel
from fleet_runtime.broker import keys
from fleet_runtime.worker import revoked
from redis.exceptions import NoPermissionError

from fleet_testing.commands import FLAGS, PATIENCE, wait_until
from fleet_testing.dead_letters import places

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from fleet_testing.broker import Broker
    from fleet_testing.commands import Fleet

pytestmark = pytest.mark.server
OFFLINE = ("--queues=email", *FLAGS)


@pytest.fixture(autouse=True)
def no_revocations(redis_server: Broker) -> Iterator[None]:
    """Let a test begin without any, in Redis and in this process."""
    redis_server.client("admin").delete(keys.REVOKED, keys.REVOKED_STAMPS, "email")
    state.revoked.clear()
    state.revoked_stamps.clear()
    yield
    state.revoked.clear()
    state.revoked_stamps.clear()


@pytest.fixture
def worker(broker: Broker) -> Any:
    """Return a client of Redis's with the rights of a node."""
    return broker.client("worker")


class Channel:
    """A channel with a client of its own."""

    def __init__(self, client: Any) -> None:
        """Remember the client."""
        self._client = client

    def conn_or_acquire(self) -> AbstractContextManager[Any]:
        """Return the client."""
        client: AbstractContextManager[Any] = self._client
        return client


def consumer(client: Any) -> Any:
    """Return what a node's consumer has of its connection."""
    connection = SimpleNamespace(default_channel=Channel(client))
    return SimpleNamespace(connection=connection, connection_errors=(OSError,))


def is_revoked(result: Any) -> bool:
    """Return whether a task was dropped as revoked."""
    return bool(result.state == "REVOKED")


@pytest.fixture
def control(broker: Broker, configure_app: Callable[..., Any]) -> Any:
    """Return remote control, as the operator has it."""
    app = Celery("ops", set_as_current=False)
    configure_app(app, "ops", broker.url("ops"))
    return app.control


def test_nodes_that_start_later_know_it(broker: Broker, web: Any, control: Any, fleet: Fleet) -> None:
    """A task with an ETA, one with a stamp, and one that is sent when no node is up."""
    with fleet.worker("first", *OFFLINE):
        waiting = web.send_task("shop.add", (1, 1), queue="email", countdown=10)
        signature = web.signature("shop.add", (1, 1), queue="email", countdown=10)
        signature.stamp(order="47")
        stamped = signature.apply_async()
        wait_until(lambda: broker.client("admin").hlen(keys.unacked("first@test")) == 2)
        assert control.revoke([waiting.id, "later"], reply=True)
        assert control.revoke_by_stamped_headers({"order": "47"}, reply=True)
    later = web.send_task("shop.add", (1, 1), queue="email", task_id="later")
    with fleet.worker("second", *OFFLINE) as node:
        for one in (waiting, stamped, later):
            wait_until(partial(is_revoked, one))
        assert web.send_task("shop.add", (1, 1), queue="email").get(PATIENCE) == 2
        node.wait_for("succeeded in")
        wait_until(lambda: not places(broker, "shop.add"))
        assert len(node.lines("succeeded in")) == 1


def test_it_is_bounded_by_number(worker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest go first."""
    monkeypatch.setattr(revoked, "MAX_ENTRIES", 5)
    monkeypatch.setattr(revoked, "BATCH_SIZE", 3)
    for at in range(4):
        revoked.record(worker, keys.REVOKED, [f"{at}-{number}" for number in range(2)])
    assert set(worker.zrange(keys.REVOKED, 0, -1)) >= {"3-0", "3-1", "2-0", "2-1"}
    assert worker.zcard(keys.REVOKED) == 5
    revoked.record(worker, keys.REVOKED, [f"4-{number:02}" for number in range(20)])
    assert worker.zcard(keys.REVOKED) == 5


def test_it_is_bounded_by_age(worker: Any) -> None:
    """By the clock of Redis."""
    seconds = worker.time()[0]
    worker.zadd(
        keys.REVOKED, {"old": seconds - revoked.MAX_AGE_S - 1, "young": seconds - revoked.MAX_AGE_S + 60}
    )
    revoked.record(worker, keys.REVOKED, ["new"])
    assert worker.zrange(keys.REVOKED, 0, -1) == ["young", "new"]


def test_what_is_known_is_learnt_once(worker: Any) -> None:
    """However often a node reconnects."""
    revoked.record(worker, keys.REVOKED, ["one", "two"])
    revoked.record(worker, keys.REVOKED_STAMPS, [json.dumps(["order", "47"]), json.dumps(["order", "48"])])
    state.revoked_stamps["order"] = ["46"]
    for _ in range(2):
        revoked.read(consumer(worker))
    assert set(state.revoked) == {"one", "two"}
    assert state.revoked_stamps == {"order": ["46", "47", "48"]}


@pytest.fixture
def panel(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the commands of remote control, as a node has them, and forget them after the test."""
    for name in revoked.COMMANDS:
        monkeypatch.setitem(Panel.data, name, getattr(Panel.data[name], "__wrapped__", Panel.data[name]))
        revoked._patch_command(name)
    return Panel.data


def command_state(client: Any) -> Any:
    """Return what a command of remote control is called with."""
    backend = SimpleNamespace(
        get_state=lambda task_id: "PENDING", mark_as_revoked=lambda *args, **options: None
    )
    return SimpleNamespace(consumer=consumer(client), app=SimpleNamespace(backend=backend))


def test_each_command_that_revokes_records_it(worker: Any, panel: Any) -> None:
    """And does what it did."""
    told = command_state(worker)
    assert "ok" in panel["revoke"](told, task_id=["one", "two"])
    assert panel["revoke"](told, task_id="three", terminate=True, signal="TERM")["ok"]
    assert panel["terminate"](told, signal="TERM", task_id="four")["ok"]
    panel["revoke_by_stamped_headers"](told, headers={"order": ["47", 48]})
    panel["revoke_by_stamped_headers"](told, headers=["mail=49"])
    assert set(worker.zrange(keys.REVOKED, 0, -1)) == set(state.revoked) == {"one", "two", "three", "four"}
    assert set(worker.zrange(keys.REVOKED_STAMPS, 0, -1)) == {
        '["order", "47"]', '["order", 48]', '["mail", "49"]',
    }  # fmt: skip
    assert state.revoked_stamps == {"order": ["47", 48], "mail": ["49"]}


def test_what_is_no_id_is_not_recorded(worker: Any, panel: Any) -> None:
    """A client that may use remote control can send any argument."""
    for given in (None, [], [{"a": 1}, 5, "x" * 2000, None]):
        revoked._try_to_record(consumer(worker), revoked.COMMANDS["revoke"], {"task_id": given})
    assert worker.zcard(keys.REVOKED) == 0


class Refusing:
    """A client that may do nothing."""

    def __enter__(self) -> Refusing:
        """Return the client itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close nothing."""

    def time(self, *_: Any) -> None:
        """Refuse."""
        raise NoPermissionError("no permissions")

    zrange = time


def test_who_revokes_is_told_that_it_cannot_be_recorded(panel: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The node has it in memory all the same."""
    told = command_state(Refusing())
    said = panel["revoke"](told, task_id="one")["ok"]
    assert "but only until the nodes that hear this are restarted: no permissions" in said
    assert "one" in state.revoked
    assert "cannot be recorded" in caplog.text
    revoked.read(told.consumer)
    assert "Tasks that were revoked before cannot be read" in caplog.text
