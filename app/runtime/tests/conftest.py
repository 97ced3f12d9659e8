"""Fixtures for the tests of the runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from fleet_runtime.laying import lay
from fleet_runtime.settings import FleetSettings

from app.tests.broker import Broker
from app.tests.commands import Fleet

if TYPE_CHECKING:
    from collections.abc import Callable

APPS = str(Path(__file__).parent / "apps")


@pytest.fixture(scope="session")
def fleet(redis_server: Broker) -> Fleet:
    """Return an app that names another broker."""
    return shop(redis_server)


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Callable[[Broker], Any]:
    """Return a function that gives an app with which to send tasks, as from outside the fleet."""

    def connect(broker: Broker) -> Any:
        for name, value in shop(broker).component("web").items():
            monkeypatch.setenv(name, value)
        for name in ("CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL"):
            monkeypatch.setenv(name, "")  # the runtime sets these, and the test is to forget them
        app = Celery("web", set_as_current=False)
        lay(app, FleetSettings.from_environment())
        return app

    return connect


@pytest.fixture
def web(broker: Broker, connect: Callable[[Broker], Any]) -> Any:
    """Return an app with which to send tasks."""
    return connect(broker)


def shop(broker: Broker) -> Fleet:
    """Return the app of these tests on a broker."""
    return Fleet(broker, "shop:app", PYTHONPATH=APPS, FLEET_RELEASE="3fa9c1d2e4b5")
