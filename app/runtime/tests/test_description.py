# SPDX-License-Identifier: MIT
"""An app that is made from the description of another one sends, and shows, what that one does."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pytest
from celery import Celery
from fleet_runtime.errors import FleetError
from fleet_runtime.inspect.description import describe, load
from fleet_runtime.inspect.queues import broadcast, configured, routed
from kombu import Exchange, Queue, binding
from kombu.common import Broadcast

from fleet_testing.commands import APPS, run
from fleet_testing.params import URL

if TYPE_CHECKING:
    from collections.abc import Callable

    from fleet_testing.commands import Fleet

# Celery 6 will have no queue for a task of itself; apps of today have.
pytestmark = pytest.mark.filterwarnings("ignore::celery.exceptions.CDeprecationWarning")

SECRET = "s3cret-of-the-app"
EXCHANGE = Exchange("billing", type="topic")


def by_function(name: str, *_: Any, **__: Any) -> dict[str, Any] | None:
    """Route one task by its name."""
    return {"queue": "computed", "priority": 4} if name == "shop.pay" else None


def work(account: str = "") -> None:
    """Do nothing."""


def shop() -> Celery:
    """Return an app with each way of naming a queue that Celery has."""
    app = Celery("shop", set_as_current=False, broker=f"redis://:{SECRET}@localhost/0")
    app.conf.update(
        timezone=ZoneInfo("Europe/Vienna"),
        result_expires=timedelta(hours=2),
        task_default_queue="default",
        task_queues=[
            Queue("default"),
            Queue("bills", EXCHANGE, routing_key="bill.#"),
            Broadcast("to_all"),
            Queue("both", bindings=[binding(EXCHANGE, "both.*"), binding(Exchange("both"), "both")]),
        ],
        task_routes=(
            {"other.*": {"queue": "theirs", "priority": 7}, re.compile(r"old\..*"): "attic"},
            by_function,
        ),
        beat_schedule={"nightly": {"task": "far.away", "schedule": 60, "options": {"queue": "night"}}},
        redbeat_redis_url=f"redis://:{SECRET}@elsewhere/0",
    )
    for name, options in {
        "shop.pay": {},
        "shop.mail": {"queue": "mail", "priority": 2, "serializer": "pickle", "time_limit": 30},
        "shop.bill": {"exchange": EXCHANGE, "routing_key": "bill.new", "ignore_result": True},
    }.items():
        app.task(work, name=name, shared=False, **options)
    app.finalize()
    for name in [name for name in app.tasks if not name.startswith(("celery.", "shop."))]:
        app.tasks.unregister(name)  # shared by an app of other tests
    return app


@pytest.fixture
def pair(configure_app: Callable[..., Any], tmp_path: Path) -> tuple[Celery, Celery]:
    """Return an app, and the app that its description makes, both configured by the fleet."""
    app = shop()
    configure_app(app, "ops")
    file = tmp_path / "app.json"
    file.write_text(json.dumps(describe(app)))
    made = load(str(file))
    configure_app(made, "ops", FLEET_APP="", FLEET_APP_FILE=str(file))
    return app, made


def sent(app: Celery, name: str, monkeypatch: pytest.MonkeyPatch, *, task: bool) -> dict[str, Any]:
    """Return where and how an app sends a task, which it may know."""
    found: dict[str, Any] = {}

    def note(_producer: Any, _name: str, message: Any, **options: Any) -> None:
        queue, exchange = options.get("queue"), options.get("exchange")
        found.update(
            queue=getattr(queue, "name", queue),
            exchange=getattr(queue.exchange if queue is not None else exchange, "name", exchange),
            key=options.get("routing_key") or getattr(queue, "routing_key", None),
            **{name: options.get(name) for name in ("priority", "serializer", "compression", "expires")},
            timelimit=message.headers["timelimit"],
            ignore_result=message.headers["ignore_result"],
        )

    monkeypatch.setattr(app.amqp, "send_task_message", note)
    monkeypatch.setattr(app.backend, "on_task_call", lambda *_: None)  # which would subscribe to the result
    if task:
        app.tasks[name].apply_async(("a",))
    else:
        app.send_task(name, ("a",))
    return found


@pytest.mark.parametrize("name", ["shop.pay", "shop.mail", "shop.bill"])
def test_a_task_is_sent_as_the_app_sends_it(
    pair: tuple[Celery, Celery], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """To the same queue, with the same options, both as a task and by its name alone."""
    app, made = pair
    for task in (True, False):
        assert sent(made, name, monkeypatch, task=task) == sent(app, name, monkeypatch, task=task)


@pytest.mark.parametrize(("name", "queue"), [("other.thing", "theirs"), ("old.thing", "attic")])
def test_a_task_of_another_program_is_routed_as_well(
    pair: tuple[Celery, Celery], monkeypatch: pytest.MonkeyPatch, name: str, queue: str
) -> None:
    """By the patterns of task_routes, which may be regular expressions."""
    app, made = pair
    assert sent(made, name, monkeypatch, task=False) == sent(app, name, monkeypatch, task=False)
    assert sent(made, name, monkeypatch, task=False)["queue"] == queue


def test_queues_and_settings_are_those_of_the_app(pair: tuple[Celery, Celery]) -> None:
    """So `fleet status` shows the same queues, `purge` empties the same, and Flower has the same clock."""
    app, made = pair
    assert routed(made).keys() == routed(app).keys()
    assert {"night", "computed", "mail", "attic", "theirs"} <= set(routed(made))
    assert configured(made) == configured(shop()) == ["attic", "bills", "both", "default", "theirs", "to_all"]
    assert {queue.name for queue in made.conf.task_queues if not isinstance(queue, Broadcast)} == {
        "default",
        "bills",
        "both",
    }
    assert broadcast(made).keys() == broadcast(app).keys() == {"to_all"}
    assert broadcast(made)["to_all"].exchange == broadcast(app)["to_all"].exchange
    assert made.conf.timezone == "Europe/Vienna"
    assert made.conf.result_expires == app.conf.result_expires == 7200
    with pytest.raises(FleetError, match="Only a node runs tasks"):
        made.tasks["shop.pay"]()


def test_a_description_has_no_secret(configure_app: Callable[..., Any]) -> None:
    """Everyone on the host may read it."""
    app = shop()
    configure_app(app, "ops")
    text = json.dumps(describe(app))
    assert SECRET not in text
    assert "secret" not in text
    assert "rediss://" not in text


def test_what_cannot_be_read_is_refused(tmp_path: Path, configure_app: Callable[..., Any]) -> None:
    """With the file, the reason and the remedy."""
    file = tmp_path / "app.json"
    with pytest.raises(FleetError, match=r"FLEET_APP_FILE.*app\.json.*Run site\.yml or release\.yml"):
        load(str(file))
    file.write_text("[]")
    with pytest.raises(FleetError, match="cannot be read"):
        load(str(file))
    app = shop()
    configure_app(app, "ops")
    file.write_text(json.dumps({**describe(app), "format": 2}))
    with pytest.raises(FleetError, match="has the format 2, and this version of the runtime reads 1"):
        load(str(file))


def test_a_check_writes_what_other_commands_load(tmp_path: Path) -> None:
    """`fleet check --json` imports the app; what runs with its description need not find it."""
    variables = {
        "PATH": "/usr/bin:/bin",
        "FLEET_COMPONENT": "ops",
        "CELERY_BROKER_URL": URL,
        "CELERY_RESULT_BACKEND": URL,
    }
    checked = run(
        "fleet", "check", "--json", environment={**variables, "PYTHONPATH": APPS, "FLEET_APP": "shop:app"}
    )
    file = tmp_path / "app.json"
    file.write_text(json.dumps(json.loads(checked.stdout)["app"]))
    described = {**variables, "FLEET_APP_FILE": str(file)}
    report = run("report", environment=described)
    assert "task_default_queue: 'default'" in report.stdout
    refused = run("fleet", "check", environment=described)
    assert "`fleet check` checks the app itself" in refused.stderr
    refused = run("worker", environment={**described, "FLEET_COMPONENT": "worker"})
    assert "FLEET_APP_FILE is for Flower and the operator's commands" in refused.stderr


def test_operators_reach_a_node_without_its_app(fleet: Fleet, tmp_path: Path) -> None:
    """The probe finds the queues in the description, and `call` sends a task that only the node has."""
    checked = fleet.run("ops", "fleet", "check", "--json")
    file = tmp_path / "app.json"
    file.write_text(json.dumps(json.loads(checked.stdout)["app"]))
    without = {**fleet.component("ops"), "FLEET_APP": "", "FLEET_APP_FILE": str(file), "PYTHONPATH": ""}
    with fleet.worker("n1", "--queues=default", "--concurrency=1"):
        answers = json.loads(run("fleet", "probe", "--json", environment=without).stdout)
        assert answers["default"]["node"] == "n1@test"
        called = run("call", "shop.add", "--args=[1, 2]", environment=without).stdout.strip()
        result = run("result", called, environment=without)
    assert result.stdout.strip() == "3"
