# SPDX-License-Identifier: MIT
"""The runtime's own transport and result backend are chosen where they are known to work, and only there."""

from __future__ import annotations

import inspect
from typing import Any

import billiard
import celery
import kombu
import pytest
from celery import Celery
from celery.backends import redis as stock_results
from celery.concurrency import prefork
from celery.concurrency.asynpool import AsynPool, ResultHandler
from fleet_runtime.bootstrap import plugins
from fleet_runtime.compat.surface import SURFACE, Feature, Name, resolve
from fleet_runtime.prefork import pool
from fleet_runtime.prefork.time_limits import StockAsynPool
from fleet_runtime.transport import channel, poller, qos, transports
from fleet_runtime.worker import results
from fleet_runtime.worker.transports import NodeSentinelTransport, NodeTransport
from kombu import Connection
from kombu.transport import redis as stock

URL = "rediss://worker:pw@redis:6379/0?ssl_cert_reqs=required&ssl_ca_certs=/etc/ca.crt"


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_a_transport_has_a_scheme_of_its_own(scheme: str) -> None:
    """By which kombu finds it, with all that the URL says."""
    plugins.select_transport(URL)
    connection = Connection(URL.replace("rediss", f"fleet-{scheme}"))
    assert type(connection.transport) is NodeTransport
    assert (connection.hostname, connection.userid, connection.port) == ("redis", "worker", 6379)
    assert connection.ssl["ssl_ca_certs"] == "/etc/ca.crt"


def test_a_single_url_stays_what_other_programs_know() -> None:
    """They find it in the environment of the task that starts them."""
    assert plugins.select_transport(URL) == (URL, "fleet_runtime.worker.transports:NodeTransport")


def test_the_next_of_several_urls_has_it_too() -> None:
    """Kombu goes by the scheme as it tries the next one."""
    url, named = plugins.select_transport("sentinel://a:1;sentinel://b:2")
    connection = Connection(url, transport=named)
    assert type(connection.transport) is NodeSentinelTransport
    connection.switch(next(connection.cycle))
    assert connection.hostname == "b"
    assert type(connection.transport) is NodeSentinelTransport


def test_another_kind_of_broker_stays() -> None:
    """The runtime has no other transports."""
    assert plugins.select_transport("memory://") == ("memory://", None)


def test_another_kombu_keeps_its_transport(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And says so, in one line."""
    monkeypatch.setattr(kombu, "__version__", "5.9.0")
    assert plugins.select_transport(URL) == (URL, None)
    (line,) = caplog.messages
    assert line.startswith(plugins.KOMBU_STAYS)
    assert "This is kombu 5.9.0" in line


@pytest.mark.parametrize("name", [name for name in SURFACE if name.feature is Feature.TRANSPORT], ids=str)
def test_a_changed_kombu_keeps_its_transport(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: Name
) -> None:
    """Another package may have patched a function on which the transport relies."""
    monkeypatch.setattr(resolve(name.owner), name.attribute, lambda changed: None)
    assert plugins.select_transport(URL) == (URL, None)
    (line,) = caplog.messages
    assert line.startswith(plugins.KOMBU_STAYS)
    assert str(name) in line


@pytest.mark.parametrize(
    ("own", "base"),
    [
        (channel.Channel, stock.Channel),
        (qos.QoS, stock.QoS),
        (poller.Poller, stock.MultiChannelPoller),
        (transports.Transport, stock.Transport),
        (transports.SentinelChannel, stock.SentinelChannel),
        (transports.SentinelTransport, stock.SentinelTransport),
    ],
)
def test_all_that_is_put_in_place_of_kombus_is_looked_at(own: type, base: type) -> None:
    """So that another kombu, in which it is something else, keeps its transport."""
    names = {name.attribute for name in SURFACE if name.feature is Feature.TRANSPORT}
    replaced = {
        name
        for name, value in vars(own).items()
        if inspect.isroutine(value) and inspect.isroutine(getattr(base, name, None)) and name != "__init__"
    }
    assert not replaced - names


@pytest.mark.parametrize(
    ("url", "stores", "backend"),
    [
        (URL, True, results.StoringRedisBackend),
        (URL, False, results.RedisBackend),
        ("sentinel://a:1", True, results.StoringSentinelBackend),
        ("sentinel://a:1", False, results.SentinelBackend),
    ],
)
def test_results_have_a_backend_of_their_own(url: str, stores: bool, backend: type) -> None:
    """By the scheme of the URL that the app has anyhow; who is no node may load no script."""
    app = Celery("shop", backend=url, set_as_current=False)
    app.conf.result_backend_transport_options = {"master_name": "fleet"}
    plugins.select_backend(app, stores=stores)
    assert type(app.backend) is backend


def test_another_celery_keeps_its_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its insides are not known."""
    app = Celery("shop", backend=URL, set_as_current=False)
    monkeypatch.setattr(celery, "__version__", "5.9.0")
    plugins.select_backend(app, stores=True)
    assert type(app.backend) is stock_results.RedisBackend


@pytest.fixture
def _own_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Celery have its own pool, and forget after the test what it was given."""
    monkeypatch.setattr(prefork.TaskPool, "Pool", AsynPool)


@pytest.mark.usefixtures("_own_pool")
def test_processes_are_run_by_a_pool_of_its_own() -> None:
    """If all is as it was tested."""
    plugins.select_pool()
    assert prefork.TaskPool.Pool is pool.FastAsynPool


@pytest.mark.usefixtures("_own_pool")
def test_celerys_pool_has_its_time_limits_mended() -> None:
    """Where the runtime's own is not wanted."""
    plugins.select_pool(own=False)
    assert prefork.TaskPool.Pool is StockAsynPool


@pytest.mark.usefixtures("_own_pool")
@pytest.mark.parametrize("package", [celery, billiard])
def test_another_celery_or_billiard_keeps_its_pool(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, package: Any
) -> None:
    """And says so, in one line."""
    monkeypatch.setattr(package, "__version__", "5.9.0")
    plugins.select_pool()
    assert prefork.TaskPool.Pool is AsynPool
    (line,) = caplog.messages
    assert line.startswith(plugins.POOL_STAYS)
    assert f"This is {package.__name__} 5.9.0" in line


@pytest.mark.usefixtures("_own_pool")
def test_a_changed_pool_stays(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """As by somebody who has mended something."""
    monkeypatch.setattr(ResultHandler, "_make_process_result", lambda self, hub, more: None)
    plugins.select_pool()
    assert prefork.TaskPool.Pool is AsynPool
    (line,) = caplog.messages
    assert line.startswith(plugins.POOL_STAYS)
    assert "ResultHandler._make_process_result" in line
