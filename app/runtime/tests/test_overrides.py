# SPDX-License-Identifier: MIT
"""Nothing that an app sets is dropped without a word."""

from __future__ import annotations

import base64
import json
from datetime import timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery, Task
from celery.signals import before_task_publish
from click.testing import CliRunner
from fleet_runtime.bootstrap import overrides
from fleet_runtime.bootstrap.configure import KEY_OPTIONS
from fleet_runtime.bootstrap.overrides import ENFORCED, ENFORCED_OPTIONS, WHERE_SILENT
from fleet_runtime.cli.fleet import fleet as commands
from fleet_runtime.inspect.app_check import findings, overridden
from fleet_runtime.messages.sent_at import SENT

from fleet_testing.call_options import CALL_OPTIONS, TO_TOPICS, call_options
from fleet_testing.commands import APPS, FLAGS, PATIENCE, Fleet

if TYPE_CHECKING:
    from collections.abc import Callable

    from fleet_testing.broker import Broker

SECRET = "hunter2hunter2"
SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"


def shop(**settings: Any) -> Celery:
    """Return an app that has these settings."""
    app = Celery("shop", set_as_current=False)
    app.conf.update(settings)
    return app


def work(requests: Any = None) -> None:
    """Do nothing."""


@pytest.fixture
def said(configure_app: Callable[..., Any]) -> Callable[..., list[str]]:
    """Return a function that configures an app, and returns the sentences about its own settings."""

    def said(app: Celery, beat: str = "redbeat", **variables: str) -> list[str]:
        configure_app(app, "ops", **variables)
        return [one.sentence for one in overrides.find(app, beat)]

    return said


def test_each_option_of_celerys_has_a_value_to_try() -> None:
    """By Celery's own lists, so that a new one is not forgotten."""
    assert sorted(CALL_OPTIONS) == call_options()


def test_each_setting_that_is_laid_has_its_reason(configure_app: Callable[..., Any]) -> None:
    """And no other has one."""
    laid, options = set(), set()
    for component in ("worker", "beat"):
        app = Celery("shop", set_as_current=False)
        before = set(app.conf.finalize().changes)
        conf = configure_app(app, component, FLEET_TRACK_STARTED="true")
        laid |= set(conf.changes) - before
        options |= {*conf.broker_transport_options, *conf.result_backend_transport_options}
    elsewhere = {"broker_url", "result_backend", "broker_transport_options"}
    assert laid == {*ENFORCED, *WHERE_SILENT, *elsewhere}
    assert options | KEY_OPTIONS | {"priority_steps"} == {*ENFORCED_OPTIONS, "retry_policy"}
    assert all(rule.why.endswith(".") for rule in (*ENFORCED.values(), *ENFORCED_OPTIONS.values()))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"broker_url": "redis://localhost:6379/0", "result_backend": "redis://localhost:6379/1"},
        {"worker_prefetch_multiplier": 1, "task_acks_late": True, "accept_content": ["json"]},
        {
            "result_expires": timedelta(hours=1),
            "broker_connection_max_retries": None,
            "broker_transport": None,
        },
        {"task_routes": {"a": "b"}, "timezone": "Europe/Berlin", "result_expires": 60, "task_time_limit": 60},
        {"broker_transport_options": {"queue_order_strategy": "priority", "visibility_timeout": 604800}},
        {"beat_scheduler": "redbeat.RedBeatScheduler"},
        {"beat_scheduler": "redbeat.schedulers:RedBeatScheduler"},
    ],
)
def test_what_agrees_is_not_talked_about(said: Callable[..., list[str]], settings: dict[str, Any]) -> None:
    """The URL of another Redis is no override, either."""
    assert said(shop(**settings)) == []


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"task_acks_late": False},
            "The fleet sets task_acks_late to True over the app's False. A message is",
        ),
        (
            {"worker_prefetch_multiplier": 4},
            "The fleet sets worker_prefetch_multiplier to 1 over the app's 4.",
        ),
        ({"CELERY_ACKS_LATE": False}, "The fleet sets task_acks_late to True over the app's False."),
        ({"result_expires": None}, "The fleet sets result_expires to 86400 over the app's None."),
        ({"result_expires": 10**7}, "The fleet sets result_expires to 86400 over the app's 10000000. Redis"),
        (
            {"broker_transport_options": {"sep": ":"}},
            "The app's broker_transport_options.sep = : has no effect on the fleet. Redis's access rules",
        ),
        (
            {"result_backend_transport_options": {"global_keyprefix": "shop:"}},
            "The app's result_backend_transport_options.global_keyprefix has no effect on the fleet.",
        ),
        ({"worker_state_db": "nodes.db"}, "The fleet sets worker_state_db to None over the app's nodes.db."),
        ({"worker_log_color": True}, "The fleet sets worker_log_color to False over the app's True."),
        ({"worker_concurrency": 8}, "The app's worker_concurrency = 8 has no effect on the fleet. Each pool"),
        ({"broker_url": f"amqp://shop:{SECRET}@rabbit"}, "The app's broker_url is for amqp."),
        ({"redis_password": SECRET}, "The app's redis_password has no effect on the fleet."),
        (
            {"redbeat_lock_timeout": 300},
            "The fleet sets redbeat_lock_timeout to 30 over the app's 300. A standby",
        ),
        (
            {"worker_direct": True},
            "The app's worker_direct works only where the inventory has ",
        ),
        ({"database_engine_options": {"echo": SECRET}}, "The app's database_engine_options has no effect"),
    ],
)
def test_what_does_not_hold_is_told(
    said: Callable[..., list[str]], settings: dict[str, Any], expected: str
) -> None:
    """With the reason, however an app sets it, and with no secret."""
    app = shop(**settings)
    [sentence] = said(app)
    assert sentence.startswith(expected), sentence
    assert SECRET not in sentence
    assert findings(app, []) == []
    assert overridden(app, "redbeat") == [sentence]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"result_backend": "django-db"}, "The app's result_backend is django-db, and the fleet stores"),
        ({"result_backend": f"db+postgresql://me:{SECRET}@db/shop"}, "The app's result_backend is db, and"),
        ({"result_backend": "rpc://"}, "The app's result_backend is rpc, and the fleet stores"),
        (
            {"beat_scheduler": SCHEDULER},
            f"The app's beat_scheduler is {SCHEDULER}, and the fleet's Beat runs",
        ),
        ({"worker_enable_remote_control": False}, "The app's worker_enable_remote_control is False."),
    ],
)
def test_what_would_be_waited_for_without_end_is_refused(
    said: Callable[..., list[str]], settings: dict[str, Any], expected: str
) -> None:
    """With the remedy; unless the operator says that none of it is missed."""
    app = shop(**settings)
    [sentence] = said(app)
    assert sentence.startswith(expected), sentence
    [name] = settings
    assert sentence.endswith(f"add {name} to accept_overrides in celery_app_settings.")
    assert SECRET not in sentence
    assert findings(app, [], "redbeat") == [sentence]
    assert overridden(app, "redbeat") == []
    assert said(shop(**settings), FLEET_ACCEPT_OVERRIDES=f"worker_pool,{name}") == []


def test_a_scheduler_matters_only_where_beat_runs(said: Callable[..., list[str]]) -> None:
    """And one that the app and Beat have both is used."""
    assert said(shop(beat_scheduler=SCHEDULER), beat="") == []
    [sentence] = said(shop(beat_scheduler="redbeat.RedBeatScheduler"), beat="persistent")
    assert "runs PersistentScheduler" in sentence


def test_a_namespace_is_seen_through(said: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a Django project."""
    app = Celery("shop", set_as_current=False)
    settings = SimpleNamespace(CELERY_WORKER_PREFETCH_MULTIPLIER=64, CELERY_TASK_ROUTES={}, OTHER=1)
    app.config_from_object(settings, namespace="CELERY")
    assert [sentence.split(".")[0] for sentence in said(app)] == [
        "The fleet sets worker_prefetch_multiplier to 1 over the app's 64"
    ]


def test_a_batch_that_never_fills_is_told(said: Callable[..., list[str]]) -> None:
    """A node reserves fewer messages than a task of celery-batches collects."""
    batches = type("Batches", (Task,), {"__module__": "celery_batches", "flush_interval": 15})
    app = shop()
    app.task(work, name="shop.count", base=batches, flush_every=10, shared=False)
    app.task(work, name="shop.pay", shared=False)
    said(app)
    [sentence] = overridden(app)
    assert sentence.startswith(
        "The task shop.count collects 10 messages, and a node prefetches prefetch_multiplier"
    )
    said(app, FLEET_PREFETCH_MULTIPLIER="10")
    assert overridden(app) == []


def test_the_command_says_it(configure_app: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """In lines by which the module celery_release knows a warning, or as JSON."""
    app = shop(beat_scheduler=SCHEDULER, task_acks_late=False)
    configure_app(app, "ops")
    obj = SimpleNamespace(app=app)
    quiet = CliRunner().invoke(commands, ["check"], obj=obj)
    assert quiet.exit_code == 0
    assert quiet.stdout.startswith("This does not hold: The fleet sets task_acks_late to True over the app's")
    assert quiet.stdout.endswith("\nThe app is fit to run at the level full.\n")
    monkeypatch.setenv("CHECK_BEAT_SCHEDULER", "redbeat")
    refused = CliRunner().invoke(commands, ["check"], obj=obj)
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert refused.stderr.startswith("The app's beat_scheduler is django_celery_beat.schedulers:Database")
    told = CliRunner().invoke(commands, ["check", "--json"], obj=obj)
    assert told.exit_code == 1
    direct = shop(worker_direct=True)
    configure_app(direct, "ops")
    monkeypatch.setenv("CHECK_REDIS", '{"redis_worker_direct": true}')
    assert (
        "worker_direct" not in CliRunner().invoke(commands, ["check"], obj=SimpleNamespace(app=direct)).output
    )
    monkeypatch.setenv("CHECK_REDIS", "{}")
    refused = CliRunner().invoke(commands, ["check"], obj=SimpleNamespace(app=direct))
    assert "Set redis_worker_direct: true in the inventory" in refused.stderr
    said = json.loads(told.stdout)
    assert said.pop("level") == "full"
    assert {name: len(sentences) for name, sentences in said.items()} == {
        "faults": 1, "renamed": 0, "overridden": 1, "costs": 0
    }  # fmt: skip


def test_a_message_is_what_stock_celery_sends(
    broker: Broker, connect: Callable[[Broker], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With any option of sending. The time of publishing is a property, and no header."""
    fleets = {option: caught(connect(broker), broker, option) for option in CALL_OPTIONS}
    # Stock Celery by the rights of `admin`, and with the broker in its own settings.
    before_task_publish.disconnect(dispatch_uid="fleet_runtime.messages.sent_at")
    for name in ("BROKER_URL", "BROKER_READ_URL", "BROKER_WRITE_URL", "RESULT_BACKEND"):
        monkeypatch.delenv(f"CELERY_{name}", raising=False)
    stock = Celery("web", broker=broker.url("admin"), set_as_current=False)
    for option, message in fleets.items():
        assert message["properties"].pop(SENT) > 0
        assert message == caught(stock, broker, option), option


def caught(app: Celery, broker: Broker, option: str) -> dict[str, Any]:
    """Return the message of a task that is sent with an option, without what differs each time."""
    where = TO_TOPICS if option in TO_TOPICS else {"queue": "io"}
    given = {**where, "task_id": "4f1d", "reply_to": "4f21", option: CALL_OPTIONS[option]}
    if option == "stamped_headers":
        given["tenant"] = "eu-3"
    redis = broker.client("admin")
    before = {
        key: redis.llen(key) for key in redis.scan_iter("io*", _type="list")
    }  # which others may have left
    app.send_task("shop.pay", ("7",), {"to": "eu"}, **given)
    [key] = [key for key in redis.scan_iter("io*", _type="list") if redis.llen(key) > before.get(key, 0)]
    message: dict[str, Any] = json.loads(redis.lpop(key))
    message["properties"].pop("delivery_tag")
    message["body"] = "" if option == "compression" else json.loads(base64.b64decode(message["body"]))
    for varies in ("eta", "expires", "origin"):
        message["headers"][varies] = bool(message["headers"].get(varies))
    return {**message, "key": key}


def test_an_apps_own_priorities_are_used(
    broker: Broker, configure_app: Callable[..., Any], said: Any
) -> None:
    """Where Redis's access rules have their lists; others are refused."""
    app = shop(broker_transport_options={"priority_steps": list(range(10))})
    configure_app(app, "web", broker.url("web"))
    fleet = Fleet(broker, "stepped:app", PYTHONPATH=APPS)
    sent = app.send_task("stepped.name", ("five",), queue="default", priority=5)
    assert broker.client("admin").llen("default\x06\x165") == 1
    with fleet.worker("one", "--queues=default", *FLAGS):
        assert sent.get(timeout=PATIENCE) == "five"
    [sentence] = said(shop(broker_transport_options={"priority_steps": [0, 10]}))
    assert sentence.startswith("The app's broker_transport_options.priority_steps = [0, 10] has no effect")
