# SPDX-License-Identifier: MIT
"""The settings that the fleet applies to an app, and those that stay the app's own."""

from __future__ import annotations

import os
import ssl
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from celery.app.defaults import _OLD_DEFAULTS, _TO_OLD_KEY, DEFAULTS, SETTING_KEYS
from celery.backends.redis import RedisBackend
from fleet_runtime.bootstrap import configure
from fleet_runtime.errors import FleetError
from kombu.transport.redis import Channel, Transport

from fleet_testing.params import URL

if TYPE_CHECKING:
    from collections.abc import Callable

TLS = {"ssl_cert_reqs": "required", "ssl_ca_certs": "/etc/ca.crt"}
# Settings that Celery's Redis backend reads, though they are in no list of Celery's.
UNLISTED = {"redis_backend_health_check_interval", "result_backend_thread_safe"}
# RedBeat takes any; these are what RedBeatConfig in its schedulers.py reads.
REDBEAT = {
    f"redbeat_{name}"
    for name in ("key_prefix", "lock_key", "lock_timeout", "redis_options", "redis_url", "redis_use_ssl")
}


def work() -> None:
    """Do nothing."""


@pytest.fixture
def settings_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of a module of settings such as a Django project has."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "project_settings.py").write_text(
        "TIME_ZONE = 'Europe/Berlin'\n"
        "CELERY_BROKER_URL = 'redis://localhost'\n"
        "CELERY_TASK_ACKS_LATE = False\n"
        "CELERY_TASK_ROUTES = {'a': 'b'}\n"
    )
    return "project_settings"


@pytest.mark.parametrize("component", ["worker", "beat", "flower", "web", "ops"])
def test_every_name_exists(configure_app: Callable[..., Any], component: str) -> None:
    """A setting or a transport option that Celery, kombu or RedBeat does not know would do nothing."""
    app = Celery("shop", set_as_current=False)
    before = set(app.conf.finalize().changes)
    conf = configure_app(app, component)
    laid = set(conf.changes) - before
    redbeat = {name for name in laid if name.startswith("redbeat_")}
    assert laid - redbeat <= SETTING_KEYS | UNLISTED
    assert redbeat <= REDBEAT
    assert set(conf.broker_transport_options) <= set(Channel.from_transport_options)
    assert bool(redbeat) == (component == "beat")


def test_what_the_fleet_owns_prevails(configure_app: Callable[..., Any]) -> None:
    """Whatever the app says, and however it says it."""
    app = Celery("shop", broker="amqp://elsewhere", set_as_current=False)
    app.conf.update(
        accept_content=["json", "pickle"],
        task_acks_late=False,
        task_reject_on_worker_lost=False,
        worker_prefetch_multiplier=64,
        worker_send_task_events=True,
        broker_transport="amqp",
        broker_connection_max_retries=3,
        broker_use_ssl={"ssl_cert_reqs": ssl.CERT_NONE},
        control_exchange="shop",
        broker_transport_options={
            "visibility_timeout": 5,
            "global_keyprefix": "shop:",
            "client_name": "shop",
        },
    )
    conf = configure_app(app)
    assert conf.accept_content == ["json"]
    assert conf.task_acks_late
    assert not conf.get("task_retry_on_worker_lost")  # new in Celery 5.7
    assert conf.task_reject_on_worker_lost
    assert conf.worker_prefetch_multiplier == 1
    assert not conf.worker_send_task_events
    assert conf.broker_connection_max_retries is None
    assert conf.broker_use_ssl == conf.redis_backend_use_ssl == TLS
    assert conf.control_exchange == "celery"
    assert conf.broker_transport_options == {
        "visibility_timeout": 604800,
        "ack_emulation": True,
        "max_connections": 1000,
        "socket_timeout": 30,
        "socket_connect_timeout": 5,
        "socket_keepalive": True,
        "health_check_interval": 25,
        "client_name": "shop",
    }
    connection = app.connection_for_read()
    assert (connection.hostname, connection.userid) == ("redis", "worker")
    assert connection.transport_cls == "fleet_runtime.worker.transports:NodeTransport"


def test_the_level_standard_has_kombus_transport_and_celerys_backend(
    configure_app: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By FLEET_LEVEL."""
    monkeypatch.setenv("FLEET_LEVEL", "standard")
    app = Celery("shop", set_as_current=False)
    configure_app(app)
    assert type(app.connection_for_read().transport) is Transport
    assert type(app.backend) is RedisBackend


def test_a_namespace_is_no_way_around(configure_app: Callable[..., Any], settings_module: str) -> None:
    """Celery looks for the name with the namespace first."""
    app = Celery("shop", set_as_current=False)
    app.config_from_object(settings_module, namespace="CELERY")
    app.conf.update(CELERY_WORKER_PREFETCH_MULTIPLIER=64)
    conf = configure_app(app)
    assert conf.task_acks_late
    assert conf.worker_prefetch_multiplier == 1
    assert conf.task_routes == {"a": "b"}
    assert conf.timezone == "Europe/Berlin"
    assert app.connection_for_write().hostname == "redis"


def test_nobody_is_shown_a_password(configure_app: Callable[..., Any], settings_module: str) -> None:
    """By `inspect conf` and on Flower's pages, which show the broker that is used."""
    app = Celery("shop", set_as_current=False)
    app.config_from_object(settings_module, namespace="CELERY")
    shown = configure_app(app).humanize()
    assert "rediss://worker:********@redis:6379/0" in shown
    assert ":pw@" not in shown


def test_another_broker_is_out_of_reach(configure_app: Callable[..., Any]) -> None:
    """Even for an app that names one after it was loaded."""
    app = Celery("shop", set_as_current=False)
    conf = configure_app(app)
    for name in ("broker_url", "broker_read_url", "broker_write_url", "result_backend"):
        setattr(conf, name, "redis://elsewhere")
    assert app.connection_for_read().hostname == "redis"
    assert app.connection_for_write().hostname == "redis"
    assert app.backend.connparams["host"] == "redis"
    assert os.environ["CELERY_BROKER_READ_URL"] == os.environ["CELERY_BROKER_WRITE_URL"] == URL


def test_what_the_app_says_on_purpose_stays(configure_app: Callable[..., Any]) -> None:
    """The fleet has its own word only where the app has none."""
    app = Celery("shop", set_as_current=False)
    own = {
        "task_time_limit": 100,
        "timezone": "Europe/Berlin",
        "task_publish_retry_policy": {"max_retries": 7},
        "task_track_started": True,
        "result_expires": timedelta(minutes=10),
        "task_default_queue": "shop",
        "result_backend_thread_safe": False,
    }
    app.conf.update(own)
    conf = configure_app(app)
    assert {name: conf[name] for name in own} == {**own, "result_expires": 600}


def test_an_app_that_says_nothing_gets_the_fleets_word(configure_app: Callable[..., Any]) -> None:
    """All of it, where a task's life depends on it."""
    conf = configure_app(Celery("shop", set_as_current=False))
    assert conf.task_time_limit is None, "it would come before that of a pool"
    assert (conf.timezone, conf.enable_utc, conf.result_expires) == ("UTC", True, 86400)
    assert conf.task_publish_retry_policy["max_retries"] == 60
    assert conf.result_backend_thread_safe is True
    assert conf.result_backend_transport_options["retry_policy"]["max_retries"] == 60


def test_a_task_that_the_app_uses_early_is_no_exception(
    configure_app: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has copied the settings before they are applied. A task with options of its own keeps them."""
    for name in configure.TASK_DEFAULTS.keys() & DEFAULTS.keys():
        monkeypatch.setitem(DEFAULTS, name, DEFAULTS[name])
        monkeypatch.setitem(_OLD_DEFAULTS, _TO_OLD_KEY[name], DEFAULTS[name])
    configure.override_task_defaults()
    app = Celery("shop", set_as_current=False)
    early, own = app.task(work, name="early"), app.task(work, name="own", acks_late=False)
    assert (early.s().task, own.s().task) == ("early", "own")
    configure_app(app)
    assert (early.acks_late, early.reject_on_worker_lost) == (True, True)
    assert not getattr(early, "retry_on_worker_lost", False)  # new in Celery 5.7
    assert own.acks_late is False


def test_a_celery_that_knows_less_is_laid_what_it_knows(
    configure_app: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Celery 5.6 has no task_retry_on_worker_lost, which was a KeyError before the app was even imported."""
    for name in configure.TASK_DEFAULTS.keys() & DEFAULTS.keys():
        monkeypatch.setitem(DEFAULTS, name, DEFAULTS[name])
        monkeypatch.setitem(_OLD_DEFAULTS, _TO_OLD_KEY[name], DEFAULTS[name])
    monkeypatch.delitem(DEFAULTS, "task_retry_on_worker_lost", raising=False)
    configure.override_task_defaults()
    assert DEFAULTS["task_acks_late"] is True
    assert configure_app(Celery("shop", set_as_current=False)).task_acks_late is True


def test_a_web_application_is_not_made_to_wait(configure_app: Callable[..., Any]) -> None:
    """Its users would."""
    conf = configure_app(Celery("shop", set_as_current=False), "web")
    assert conf.task_publish_retry_policy["max_retries"] == 3
    assert conf.result_backend_transport_options["retry_policy"]["max_retries"] == 3


def test_results_that_would_stay_for_ever_do_not(configure_app: Callable[..., Any]) -> None:
    """Redis evicts nothing."""
    app = Celery("shop", set_as_current=False)
    app.conf.result_expires = None
    assert configure_app(app, FLEET_RESULT_EXPIRES="60").result_expires == 60


@pytest.mark.parametrize("component", ["beat", "flower", "web", "ops"])
def test_only_a_worker_holds_messages(configure_app: Callable[..., Any], component: str) -> None:
    """Any other would restore messages by a timeout of its own, and hand out tasks that run."""
    conf = configure_app(Celery("shop", set_as_current=False), component)
    assert conf.broker_transport_options["ack_emulation"] is False


@pytest.mark.parametrize(
    ("own", "variables", "message"),
    [
        (
            {"task_serializer": "pickle"},
            {},
            "The app's task_serializer is pickle, and the fleet accepts json.",
        ),
        ({"result_serializer": "yaml"}, {}, "The app's result_serializer is yaml"),
        (
            {},
            {"FLEET_ACCEPT_CONTENT": "json,jsson"},
            "FLEET_ACCEPT_CONTENT: No encoder/decoder installed for",
        ),
        (
            {"task_time_limit": 604800},
            {},
            "The app's task_time_limit (604800) must be less than FLEET_VISIBILITY",
        ),
    ],
)
def test_what_cannot_be_reconciled_is_refused(
    configure_app: Callable[..., Any], own: dict[str, Any], variables: dict[str, str], message: str
) -> None:
    """Before a message is sent that no node would take."""
    app = Celery("shop", set_as_current=False)
    app.conf.update(own)
    with pytest.raises(FleetError) as refused:
        configure_app(app, **variables)
    assert message in str(refused.value)
