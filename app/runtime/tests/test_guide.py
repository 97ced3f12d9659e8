"""What Celery's user guide has beyond the ordinary, with the access rules of the fleet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from celery import chord
from kombu import Exchange, Queue

from app.runtime.tests.conftest import APPS
from app.tests.broker import Broker
from app.tests.commands import FLAGS, PATIENCE, Fleet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def allowing(tmp_path: Path) -> Iterator[Broker]:
    """Yield a Redis of an inventory that allows an app more."""
    broker = Broker(tmp_path, redis_web_may_control=True, redis_expiring_queues=["email"])
    yield broker
    denied = broker.denied()
    broker.stop()
    assert denied == []


@pytest.fixture
def _node(broker: Broker) -> Iterator[None]:
    """Run a node of the app."""
    fleet = Fleet(broker, "guide:app", PYTHONPATH=APPS)
    with fleet.worker("one", "--queues=default", "--pool=threads", *FLAGS):
        yield


@pytest.mark.usefixtures("_node")
def test_chords(web: Any) -> None:
    """Those whose order does not matter (`result_chord_ordered`), and those that grow (`add_to_chord`)."""

    def task(name: str, *args: Any) -> Any:
        return web.signature(f"guide.{name}", args=args, queue="default")

    web.conf.result_backend_transport_options = {"result_chord_ordered": False}
    unordered = chord([task("add", 1, 1), task("add", 2, 2)])(task("total"))
    assert unordered.get(timeout=PATIENCE) == 6
    grown = chord([task("grow"), task("add", 1, 1)])(task("total"))
    assert grown.get(timeout=PATIENCE) == 13


def test_what_an_inventory_may_allow(allowing: Broker, connect: Callable[[Broker], Any]) -> None:
    """Remote control from an application, with answers, and a queue that expires."""
    app = connect(allowing)
    app.conf.task_queues = [Queue("email", Exchange("email"), "email", expires=3600)]
    fleet = Fleet(allowing, "guide:app", PYTHONPATH=APPS)
    with fleet.worker("one", "--queues=default", "--pool=threads", *FLAGS):
        assert app.control.ping(timeout=5) == [{"one@test": {"ok": "pong"}}]
        app.control.revoke("0123")
        app.send_task("guide.add", args=(1, 1), queue="email")
    assert 0 < allowing.client("admin").pttl("email") <= 3600000
