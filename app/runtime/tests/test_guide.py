"""What Celery's user guide has beyond the ordinary, with the access rules of the fleet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from celery import chord

from app.runtime.tests.conftest import APPS
from app.tests.commands import FLAGS, PATIENCE, Fleet

if TYPE_CHECKING:
    from collections.abc import Iterator

    from app.tests.broker import Broker


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
