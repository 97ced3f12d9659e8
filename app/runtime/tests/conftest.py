# SPDX-License-Identifier: MIT
"""Fixtures for the tests of the runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from fleet_runtime.bootstrap import configure
from fleet_runtime.settings import FleetSettings

from fleet_testing.broker import Broker
from fleet_testing.commands import Fleet, shop
from fleet_testing.fixtures import _redis, _scripts_are_functions, broker, redis_server
from fleet_testing.params import URL

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["_redis", "_scripts_are_functions", "broker", "redis_server"]


@pytest.fixture
def configure_app(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return a function that lays the settings on an app and returns its configuration."""

    def configure_app(app: Celery, component: str = "worker", url: str = URL, **variables: str) -> Any:
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
        configure.configure(app, FleetSettings.from_environment())
        return app.conf

    return configure_app


@pytest.fixture(scope="module")
def fleet(redis_server: Broker) -> Fleet:
    """Return an app that names another broker."""
    return shop(redis_server)


@pytest.fixture
def connect(configure_app: Callable[..., Any]) -> Callable[[Broker], Any]:
    """Return a function that gives an app with which to send tasks, as from outside the fleet."""

    def connect(broker: Broker) -> Any:
        app = Celery("web", set_as_current=False)
        configure_app(app, "web", broker.url("web"))
        return app

    return connect


@pytest.fixture
def web(broker: Broker, connect: Callable[[Broker], Any]) -> Any:
    """Return an app with which to send tasks."""
    return connect(broker)
