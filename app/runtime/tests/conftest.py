"""Fixtures for the tests of the runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from fleet_runtime.bootstrap import configure
from fleet_runtime.settings import FleetSettings

from app.tests.broker import Broker
from app.tests.commands import Fleet

if TYPE_CHECKING:
    from collections.abc import Callable

# The kinds of pool, of which only the first is tested each time by what takes long.
FIRST_OF_POOLS = [
    "prefork",
    *(pytest.param(pool, marks=pytest.mark.long) for pool in ("threads", "gevent", "solo")),
]
# FLEET_ATOMIC_FETCH: the runtime's own transport and pool, or kombu's and Celery's.
TRANSPORTS = [pytest.param("true", id="own"), pytest.param("false", id="kombu", marks=pytest.mark.long)]
APPS = str(Path(__file__).parent / "apps")
URL = "rediss://worker:pw@redis:6379/0?ssl_cert_reqs=required&ssl_ca_certs=/etc/ca.crt"


@pytest.fixture
def lay(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return a function that lays the settings on an app and returns its configuration."""

    def lay(app: Celery, component: str = "worker", url: str = URL, **variables: str) -> Any:
        environment = {
            "FLEET_APP": "shop:app",
            "FLEET_COMPONENT": component,
            "CELERY_BROKER_URL": url,
            "CELERY_RESULT_BACKEND": url,
            # the runtime sets these, and the test is to forget them
            "CELERY_BROKER_READ_URL": "",
            "CELERY_BROKER_WRITE_URL": "",
            **variables,
        }
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        configure.lay(app, FleetSettings.from_environment())
        return app.conf

    return lay


@pytest.fixture(scope="module")
def fleet(redis_server: Broker) -> Fleet:
    """Return an app that names another broker."""
    return shop(redis_server)


@pytest.fixture
def connect(lay: Callable[..., Any]) -> Callable[[Broker], Any]:
    """Return a function that gives an app with which to send tasks, as from outside the fleet."""

    def connect(broker: Broker) -> Any:
        app = Celery("web", set_as_current=False)
        lay(app, "web", broker.url("web"))
        return app

    return connect


@pytest.fixture
def web(broker: Broker, connect: Callable[[Broker], Any]) -> Any:
    """Return an app with which to send tasks."""
    return connect(broker)


def shop(broker: Broker) -> Fleet:
    """Return the app of these tests on a broker."""
    return Fleet(broker, "shop:app", PYTHONPATH=APPS, FLEET_RELEASE="3fa9c1d2e4b5")
