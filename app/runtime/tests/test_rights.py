# SPDX-License-Identifier: MIT
"""Rights that an app needs in Redis, and that the inventory does not allow, are found before a release."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from click.testing import CliRunner
from fleet_runtime.cli.fleet import fleet
from fleet_runtime.inspect import rights
from fleet_runtime.inspect.app_check import findings, overridden
from kombu import Exchange, Queue, binding
from kombu.common import Broadcast

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CONSUMED = ("default", "mail")
# Celery 6 will have no queue for a task of itself; apps of today have.
pytestmark = pytest.mark.filterwarnings("ignore::celery.exceptions.CDeprecationWarning")


def work() -> None:
    """Do nothing."""


work.__module__ = "bookshop.tasks"  # whose package is looked through


def shop(**settings: Any) -> Celery:
    """Return an app with a task."""
    app = Celery("shop", set_as_current=False)
    app.conf.update({"task_default_queue": "default", **settings})
    app.conf.broker_transport_options = {"visibility_timeout": 604800}
    app.task(work, name="shop.pay", shared=False)
    app.finalize()
    for name in [name for name in app.tasks if not name.startswith(("celery.", "shop."))]:
        app.tasks.unregister(name)  # shared by an app of other tests
    return app


EXCHANGE = (
    "Redis's access rules do not name the exchange news, which {} uses. Add it to redis_exchanges in the "
    "inventory."
)
EXPIRES = (
    "The queue mail has expires, which Redis refuses to senders. Add it to redis_expiring_queues in the "
    "inventory."
)


@pytest.mark.parametrize(
    ("settings", "said", "allowed"),
    [
        (
            {"task_queues": [Queue("default"), Queue("mail", Exchange("news"), "mail")]},
            EXCHANGE.format("the queue mail"),
            {"redis_exchanges": ["news"]},
        ),
        (
            {"task_queues": [Queue("default"), Queue("mail", Exchange("news", "topic"), "mail.#")]},
            EXCHANGE.format("the queue mail"),
            {"redis_exchanges": ["news"]},
        ),
        (
            {"task_queues": [Queue("default"), Queue("mail", [binding(Exchange("news"), "mail")])]},
            EXCHANGE.format("the queue mail"),
            {"redis_exchanges": ["news"]},
        ),
        (
            {"task_queues": [Queue("default")], "task_default_exchange": "news"},
            EXCHANGE.format("the queue default"),
            {"redis_exchanges": ["news"]},
        ),
        (
            {"task_routes": {"shop.pay": {"exchange": "news", "routing_key": "mail"}}},
            EXCHANGE.format("task_routes for shop.pay"),
            {"redis_exchanges": ["news"]},
        ),
        (
            {"task_routes": {"blog.post": {"exchange": "news", "routing_key": "mail"}}},
            EXCHANGE.format("task_routes for blog.post"),
            {"redis_exchanges": ["news"]},
        ),
        (
            {"task_routes": {"shop.pay": {"queue": Queue("mail", Exchange("news"), "mail")}}},
            EXCHANGE.format("the queue mail"),
            {"redis_exchanges": ["news"]},
        ),
        (
            {
                "beat_schedule": {
                    "daily": {
                        "task": "blog.post",
                        "schedule": 60,
                        "options": {"exchange": "news", "routing_key": "mail"},
                    }
                }
            },
            EXCHANGE.format("the schedule's entry daily"),
            {"redis_exchanges": ["news"]},
        ),
        (
            {"task_queues": [Queue("default"), Queue("mail", Exchange("mail"), "mail", expires=60)]},
            EXPIRES,
            {"redis_expiring_queues": ["mail"]},
        ),
        (
            {
                "task_queues": [
                    Queue("default"),
                    Queue("mail", Exchange("mail"), "mail", queue_arguments={"x-expires": 60000}),
                ]
            },
            EXPIRES,
            {"redis_expiring_queues": ["mail"]},
        ),
        (
            {"task_queues": [Queue("default"), Broadcast("mail")]},
            'The Broadcast queue mail needs redis_broadcasts in the inventory to have mail: "default".',
            {"redis_broadcasts": {"mail": "default"}},
        ),
    ],
)
def test_what_redis_would_refuse_is_refused_by_name(
    settings: dict[str, Any], said: str, allowed: dict[str, Any]
) -> None:
    """With the variable; and nothing is said once it is allowed, or if nothing is known."""
    app = shop(**settings)
    assert findings(app, CONSUMED, "", {}) == [said]
    assert findings(app, CONSUMED, "", allowed) == []
    assert findings(app, CONSUMED) == []


def test_a_broadcast_whose_routing_key_is_another_is_refused() -> None:
    """Its channel has both in its name."""
    app = shop(task_queues=[Queue("default"), Broadcast("mail")], task_default_routing_key="all")
    [said] = findings(app, CONSUMED, "", {"redis_broadcasts": {"mail": "default"}})
    assert said.endswith('to have mail: "all".')


def test_queues_of_celerys_own_making_need_nothing() -> None:
    """The default queue, and those of routes: exchange and queue have one name."""
    assert findings(shop(task_routes={"shop.pay": "mail"}), CONSUMED, "", {}) == []
    assert findings(shop(task_queues=[Queue("default"), Queue("mail")]), CONSUMED, "", {}) == []


@pytest.mark.parametrize(
    ("exchange", "allowed"),
    [
        (Exchange("news", "fanout"), {"redis_broadcasts": {"news": "default"}}),
        ("C.dq2", {"redis_worker_direct": True}),
    ],
)
def test_an_exchange_that_another_variable_allows_is_not_refused(
    exchange: Any, allowed: dict[str, Any]
) -> None:
    """Who listens may be another app's node, or each node by its own queue."""
    app = shop(task_routes={"shop.pay": {"exchange": exchange, "routing_key": "default"}})
    assert len(findings(app, CONSUMED, "", {})) == 1
    assert findings(app, CONSUMED, "", allowed) == []


def test_a_queue_that_nobody_consumes_is_said_once() -> None:
    """Its exchange goes with it."""
    [said] = findings(shop(task_routes={"shop.pay": "mail"}), ["default"], "", {})
    assert said.startswith("No node consumes the queue mail")


def test_all_that_redis_would_refuse_is_said_at_once() -> None:
    """And not one thing after the other, a release each."""
    mail, news = Queue("mail", Exchange("shop.orders"), "mail", expires=60), Broadcast("news")
    app = shop(task_queues=[Queue("default"), mail, news], worker_direct=True)
    variables = ["redis_exchanges", "redis_expiring_queues", "redis_broadcasts", "redis_worker_direct"]
    found = findings(app, [*CONSUMED, "news"], "", {})
    assert [name for one, name in zip(found, variables, strict=True) if name in one] == variables


def test_a_queue_of_each_node_is_refused_though_no_other_queue_is_known() -> None:
    """With `worker_direct`, no node would pass its proof."""
    app = shop(worker_direct=True)
    [said] = findings(app, [], "", {})
    assert said.endswith("Set redis_worker_direct: true in the inventory.")
    assert findings(app, [], "", {"redis_worker_direct": True}) == findings(app, []) == []


def test_a_queue_that_cannot_be_made_is_no_crash() -> None:
    """The app declares its queues, and its default queue is not among them."""
    app = shop(
        task_queues=[Queue("mail")], task_create_missing_queues=False, task_routes={"shop.pay": "mail"}
    )
    assert findings(app, CONSUMED, "", {}) == []


SETTINGS = {
    "worker_direct": "redis_worker_direct",
    "beat_enable_remote_control": "redis_beat_remote_control",
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("allowed", [None, False, True])
def test_a_setting_is_told_of_once_and_only_if_it_is_not_allowed(
    configure_app: Callable[..., Any], setting: str, *, allowed: bool | None
) -> None:
    """The sentence has the variable. A setting with which no node becomes ready is refused, if known."""
    variable = SETTINGS[setting]
    app = shop(**{setting: True})
    configure_app(app, "ops")
    environment = {} if allowed is None else {"CHECK_REDIS": json.dumps({variable: allowed})}
    obj = SimpleNamespace(app=app)
    checked = CliRunner().invoke(fleet, ["check", "--json"], obj=obj, env=environment)
    said = {
        kind: [one for one in all_of if setting in one]
        for kind, all_of in json.loads(checked.stdout).items()
        if kind not in {"level", "app"}
    }
    refuses = allowed is False and setting == "worker_direct"
    assert checked.exit_code == int(refuses)
    assert {kind: len(sentences) for kind, sentences in said.items()} == {
        "faults": int(refuses), "renamed": 0, "overridden": int(not allowed and not refuses), "costs": 0
    }  # fmt: skip
    assert all(variable in one for sentences in said.values() for one in sentences)


SOURCES = {
    "redbeat": ("from redbeat import RedBeatSchedulerEntry\n", "redis_web_may_schedule"),
    "redbeat by its module": ("import redbeat\nredbeat.RedBeatSchedulerEntry()\n", "redis_web_may_schedule"),
    "control": ("def stop(app, id):\n    app.control.revoke(id)\n", "redis_web_may_control"),
    "inspect": ("from shop import app\napp.control.inspect().active()\n", "redis_web_may_control"),
    "a result": ("AsyncResult('1').revoke()\n", "redis_web_may_control"),
}


@pytest.mark.parametrize("source", SOURCES)
def test_code_that_redis_may_refuse_is_told_of(
    configure_app: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    """Wherever in the app's packages it is; nothing of it is run."""
    text, variable = SOURCES[source]
    package = tmp_path / "bookshop" / "views"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package.parent / "broken.py").write_text("def", encoding="utf-8")
    (package.parent / "test_stop.py").write_text(text, encoding="utf-8")
    (package / "stop.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    app = shop()
    configure_app(app, "ops", FLEET_APP="bookshop.celery:app")
    [said] = overridden(app, "", {})
    assert said.startswith(f"bookshop/views/stop.py, line {text.count(chr(10))}, ")
    assert variable in said
    assert overridden(app, "", {variable: True}) == []
    assert overridden(app, "") == [], "what the inventory allows is not known"
    configure_app(app, "ops", FLEET_APP="bookshop.celery:app", FLEET_ACCEPT_OVERRIDES=variable)
    assert overridden(app, "", {}) == []


def test_the_code_of_an_app_that_needs_nothing_is_not_told_of() -> None:
    """A module that is no file is skipped, too."""
    assert all(
        rights.warned(shop(), module, {}) == {}
        for module in ("__main__", "sys", "no_such_module", "json", "")
    )
