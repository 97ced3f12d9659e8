# SPDX-License-Identifier: MIT
"""`fleet check` finds faults and costs, and the queues of an app."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.schedules import crontab
from click.testing import CliRunner
from fleet_runtime.cli.fleet import fleet
from fleet_runtime.errors import FleetError
from fleet_runtime.inspect.app_check import costs, findings
from fleet_runtime.inspect.queues import routed
from kombu import Exchange, Queue
from kombu.common import Broadcast

# Celery 6 will have no queue for a task of itself; apps of today have.
pytestmark = pytest.mark.filterwarnings("ignore::celery.exceptions.CDeprecationWarning")


def shop(**settings: Any) -> Celery:
    """Return an app with three tasks."""
    app = Celery("shop", set_as_current=False)
    app.conf.update({"task_default_queue": "default", **settings})
    app.conf.broker_transport_options = {"visibility_timeout": 43200}
    for name, options in {"pay": {}, "mail": {}, "report": {"queue": "heavy"}}.items():
        app.task(_work, name=f"shop.{name}", shared=False, **options)
    app.finalize()
    for name in [name for name in app.tasks if not name.startswith(("celery.", "shop."))]:
        app.tasks.unregister(name)  # shared by an app of other tests
    return app


def _work(account: str = "") -> None:
    """Do nothing."""


def by_function(name: str, args: Any, kwargs: Any, options: Any, task: Any = None, **_: Any) -> Any:
    """Route one task by its name."""
    return {"queue": "computed"} if name == "shop.pay" else None


def by_arguments(name: str, args: Any, kwargs: Any, options: Any, task: Any = None, **_: Any) -> Any:
    """Route one task by its first argument."""
    return f"eu-{args[0]}" if name == "shop.pay" else None


class OldRouter:
    """A router as Celery had them before 4.0."""

    def route_for_task(self, task: str, args: Any = None, kwargs: Any = None) -> Any:
        """Route one task by its name."""
        return {"queue": "computed"} if task == "shop.mail" else None


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"default", "heavy"}),
        ({"task_routes": {"shop.mail": {"queue": "email"}}}, {"default", "heavy", "email"}),
        ({"task_routes": {"shop.mail": "email"}}, {"default", "heavy", "email"}),
        ({"task_routes": {"shop.mail": {"queue": Queue("email")}}}, {"default", "heavy", "email"}),
        ({"task_routes": {"other.app.*": "elsewhere"}}, {"default", "heavy", "elsewhere"}),
        ({"task_routes": ([(re.compile(r"shop\.m.*"), {"queue": "email"})],)}, {"default", "heavy", "email"}),
        ({"task_routes": [{"shop.mail": "email"}, by_function]}, {"default", "heavy", "email", "computed"}),
        ({"task_routes": by_function}, {"default", "heavy", "computed"}),
        ({"task_routes": f"{__name__}.by_function"}, {"default", "heavy", "computed"}),
        ({"task_routes": (OldRouter(),)}, {"default", "heavy", "computed"}),
        ({"task_routes": by_arguments}, {"default", "heavy"}),
        ({"task_routes": {"shop.mail": {"exchange": "news", "routing_key": "x"}}}, {"default", "heavy"}),
        (
            {"task_queues": [Queue("default"), Queue("heavy"), Queue("fast", Exchange("fast"), "fast")]},
            {"default", "heavy", "fast"},
        ),
        (
            {
                "beat_schedule": {
                    "nightly": {"task": "shop.mail", "schedule": crontab(), "options": {"queue": "night"}}
                }
            },
            {"default", "heavy", "night"},
        ),
        (
            {
                "task_routes": by_arguments,
                "beat_schedule": {"pay": {"task": "shop.pay", "schedule": 1, "args": ("3",)}},
            },
            {"default", "heavy", "eu-3"},
        ),
    ],
)
def test_queues_are_found_wherever_they_are(settings: dict[str, Any], expected: set[str]) -> None:
    """In each form that Celery knows for a route."""
    assert set(routed(shop(**settings))) == expected


def test_a_queue_that_nobody_consumes_is_a_finding() -> None:
    """With what sends tasks there."""
    app = shop(task_routes={"shop.mail": "email"})
    assert findings(app, ["default", "heavy", "email", "spare"]) == []
    assert findings(app, ["default", "heavy"]) == [
        "No node consumes the queue email, which has tasks by task_routes for shop.mail, the task shop.mail."
    ]
    assert findings(app, []) == [], "that is not known"


def test_a_broadcast_queue_has_the_name_that_the_app_gives_it() -> None:
    """Not the one that it has in this process alone."""
    app = shop(task_queues=[Queue("default"), Queue("heavy"), Broadcast("news")])
    assert set(routed(app)) == {"default", "heavy", "news"}
    assert findings(app, ["default", "heavy", "news"]) == []
    assert findings(app, ["default", "heavy"]) == [
        "No node consumes the Broadcast queue news, which has tasks by task_queues."
    ]


def test_a_task_whose_messages_no_node_reads_is_a_finding() -> None:
    """By its name, with the serializer that it has for itself."""
    app = shop(accept_content=["json"])
    app.tasks["shop.pay"].serializer = "pickle"
    app.tasks["shop.mail"].serializer = "application/json"
    (finding,) = findings(app, [])
    assert finding.startswith("The task shop.pay has the serializer pickle, and the fleet accepts json: ")
    app.conf.accept_content = ["json", "pickle"]
    assert findings(app, []) == []


def test_a_queue_that_cannot_be_made_is_refused() -> None:
    """Sending the task would fail."""
    app = shop(task_queues=[Queue("default")], task_create_missing_queues=False)
    with pytest.raises(
        FleetError, match=r"shop\.report cannot be sent: Queue 'heavy' missing from task_queues"
    ):
        routed(app)


def test_a_task_that_may_run_twice_is_a_finding() -> None:
    """It may take longer than its message stays hidden."""
    app = shop()
    app.tasks["shop.pay"].time_limit = 50000
    assert findings(app, []) == [
        "The task shop.pay may take 50000 s. FLEET_VISIBILITY_TIMEOUT (43200) must be more."
    ]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, []),
        ({"broker_pool_limit": 1, "worker_max_tasks_per_child": 1000}, []),
        ({"broker_pool_limit": 0}, ["With broker_pool_limit 0 the app opens a connection for each message"]),
        ({"broker_pool_limit": None}, ["With broker_pool_limit None the app opens"]),
        (
            {"task_track_started": True},
            ["track_started, which shop.mail, shop.pay, shop.report set, is a second write to Redis for"],
        ),
        (
            {"worker_max_tasks_per_child": 100},
            ["With worker_max_tasks_per_child 100 each child is replaced after so many; at 100 that costs"],
        ),
    ],
)
def test_what_costs_much_is_no_finding(settings: dict[str, Any], expected: list[str]) -> None:
    """It is reported as a cost."""
    app = shop(**settings)
    assert findings(app, []) == []
    told = costs(app)
    assert len(told) == len(expected)
    assert all(sentence.startswith(start) for sentence, start in zip(told, expected, strict=True)), told


def test_a_task_that_says_by_itself_what_costs_much_is_told() -> None:
    """Not every setting is the app's."""
    app = shop()
    app.tasks["shop.pay"].track_started = True
    assert costs(app)[0].startswith("track_started, which shop.pay sets, is ")


def test_the_command_tells_what_costs_much_and_is_content() -> None:
    """In words by which the module celery_release knows a warning."""
    app = shop(broker_pool_limit=0)
    app.fleet_settings = SimpleNamespace(app_file="", level="full", is_full=True, fast_pool=True)
    told = CliRunner().invoke(fleet, ["check"], obj=SimpleNamespace(app=app))
    assert told.exit_code == 0
    first, last = told.stdout.splitlines()
    assert first.startswith("This costs much: With broker_pool_limit 0 the app opens a connection")
    assert last == "The app is fit to run at the level full."


def test_a_misspelt_variable_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a process that starts would just not see it."""
    monkeypatch.setenv("FLEET_LEASES", "1")
    assert findings(shop(), []) == ["FLEET_LEASES is not a setting of this runtime. Is it FLEET_LEASE?"]
