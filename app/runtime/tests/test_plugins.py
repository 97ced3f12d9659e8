# SPDX-License-Identifier: MIT
"""The runtime's own transport, result backend and pool at the level full; a changed Celery is refused."""

from __future__ import annotations

import inspect

import pytest
from celery import Celery
from celery.concurrency import prefork
from celery.concurrency.asynpool import AsynPool, ResultHandler
from fleet_runtime.bootstrap import plugins
from fleet_runtime.compat import surface
from fleet_runtime.compat.surface import SURFACE, Feature, Name, resolve
from fleet_runtime.errors import FleetError
from fleet_runtime.prefork import pool
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


def test_another_kind_of_broker_is_refused() -> None:
    """The runtime has no other transports."""
    with pytest.raises(FleetError, match=r"begins with memory, .* redis, rediss, sentinel only: .*standard"):
        plugins.select_transport("memory://")


@pytest.mark.parametrize("name", [name for name in SURFACE if name.feature is Feature.TRANSPORT], ids=str)
def test_a_changed_kombu_is_refused(monkeypatch: pytest.MonkeyPatch, name: Name) -> None:
    """Another package may have patched a function on which the transport relies."""
    monkeypatch.setattr(resolve(name.owner), name.attribute, lambda changed: None)
    with pytest.raises(FleetError, match=rf"has replaced {name}, and the level full relies"):
        plugins.select_transport(URL)


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
    """By the scheme of the app's own URL. Only a node may call the function that stores a result."""
    app = Celery("shop", backend=url, set_as_current=False)
    app.conf.result_backend_transport_options = {"master_name": "fleet"}
    plugins.select_backend(app, stores=stores)
    assert type(app.backend) is backend


@pytest.fixture
def _own_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give Celery its own pool, and restore it after the test."""
    monkeypatch.setattr(prefork.TaskPool, "Pool", AsynPool)


@pytest.mark.usefixtures("_own_pool")
def test_processes_are_run_by_a_pool_of_its_own() -> None:
    """If all is as it was tested."""
    plugins.select_pool()
    assert prefork.TaskPool.Pool is pool.FastAsynPool


@pytest.mark.usefixtures("_own_pool")
def test_a_changed_pool_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that has corrected Celery's pool may have changed it; without the fast pool it may stay."""
    monkeypatch.setattr(ResultHandler, "_make_process_result", lambda self, hub, more: None)
    with pytest.raises(
        FleetError, match=r"replaced celery.concurrency.asynpool:ResultHandler._make_process_r"
    ):
        plugins.select_pool()
    assert len([*surface.problems()]) == 1
    assert not [*surface.problems(fast_pool=False)]
    assert prefork.TaskPool.Pool is AsynPool
