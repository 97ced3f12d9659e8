# SPDX-License-Identifier: MIT
"""Sets each setting of Celery's on an app, and writes into docs/your-app.md what becomes of it on the fleet.

`make docs` runs it.
"""

from __future__ import annotations

import inspect
import os
import re
from datetime import timedelta
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from ansible_collections.fleet.celery.plugins.filter import celery_worker
from celery import Celery
from celery.app import autoretry
from celery.app.defaults import DEFAULTS
from celery.app.task import Task, extract_exec_options
from celery.bin.base import CLIContext
from celery.bin.worker import worker
from celery.worker import WorkController
from fleet_runtime.bootstrap import configure, overrides
from fleet_runtime.bootstrap.overrides import (
    ENFORCED,
    ENFORCED_OPTIONS,
    POOL_LAST,
    UNUSED,
    WHERE_SILENT,
    Rule,
)
from fleet_runtime.errors import FleetError
from fleet_runtime.settings import FleetSettings
from kombu.transport.redis import SentinelChannel

from fleet_testing.call_options import call_options

PAGE = Path(__file__).resolve().parents[2] / "docs" / "your-app.md"
URL = "rediss://worker:pw@redis:6379/0?ssl_cert_reqs=required&ssl_ca_certs=/etc/ca.crt"
ENVIRONMENT = {
    "FLEET_APP": "shop:app",
    "FLEET_COMPONENT": "ops",
    "FLEET_TRACK_STARTED": "true",
    "CELERY_BROKER_URL": URL,
    "CELERY_RESULT_BACKEND": URL,
}
# What Celery's Redis backend or RedBeat reads, though it is in no list of Celery's.
UNLISTED = {name: None for name in (*ENFORCED, *WHERE_SILENT) if name not in DEFAULTS}

# Values other than the default, where its type does not tell one; and what an app would really say.
SAMPLES: dict[str, Any] = {
    "accept_content": ["json", "pickle"],
    "result_accept_content": ["json", "pickle"],
    "beat_scheduler": "django_celery_beat.schedulers:DatabaseScheduler",
    "broker_url": "amqp://guest@localhost",
    "result_backend": "django-db",
    "task_serializer": "pickle",
    "result_serializer": "pickle",
    "result_expires": timedelta(days=30),
    "task_time_limit": 30 * 86400,
    "task_track_started": False,
    "timezone": "Europe/Berlin",
    "task_queues": ["one"],
    "broker_connection_retry_on_startup": False,
    "task_reject_on_worker_lost": False,
    "redis_retry_on_timeout": False,
    "redis_socket_keepalive": False,
    "enable_utc": False,
    "result_backend_thread_safe": False,
    # The fleet's own is the default here, so what is dropped is this.
    "control_exchange": "shop",
    "event_exchange": "shop",
    "event_queue_prefix": "shop",
    # What nobody would set is what the fleet sets.
    "task_acks_late": False,
    "task_retry_on_worker_lost": True,
}
OPTION_SAMPLES: dict[str, Any] = {
    "sep": ":",
    "priority_steps": [0, 10],
    "queue_order_strategy": "priority",
    "body_encoding": None,
    "socket_keepalive_options": {},
    "fanout_patterns": False,
    "fanout_prefix": False,
    "ack_emulation": False,
    "socket_keepalive": False,
    "retry_on_timeout": True,
}


class Row(NamedTuple):
    """What becomes of one setting."""

    name: str
    outcome: str
    why: str


def sample(name: str, default: Any) -> Any:
    """Return a value of a setting that is not its default, and not the fleet's."""
    if name in SAMPLES:
        return SAMPLES[name]
    match default:
        case bool():
            return not default
        case int() | float():
            return 77
        case dict():
            return {"shop": 1}
        case tuple() | list():
            return ["shop"]
    return 77 if name.startswith(("redis_socket", "redbeat_lock_timeout", "redis_backend_health")) else "shop"


def laid_on(**own: Any) -> tuple[Any, list[overrides.Override]]:
    """Return an app's configuration after the fleet's is laid on it, and what is said of it.

    Raises:
        FleetError: It is refused.
    """
    os.environ.update({**ENVIRONMENT, "CELERY_BROKER_READ_URL": "", "CELERY_BROKER_WRITE_URL": ""})
    app = Celery("shop", set_as_current=False)
    app.conf.update(own)
    configure.configure(app, FleetSettings.from_environment())
    return app.conf, overrides.find(app, "redbeat")


def observed(name: str, value: Any) -> Row:
    """Return what becomes of a setting with this value, or with the default if that is the fleet's."""
    if laying_for_all(name) == value:
        value = DEFAULTS[name]
    try:
        conf, said = laid_on(**{name: value})
    except FleetError as error:
        return Row(f"`{name}`", f"`{value}` is refused", plain(str(error)))
    mine = [one for one in said if one.name == name]
    if any(one.refuses for one in mine):
        return Row(f"`{name}`", f"`{value}` is refused", plain(mine[0].sentence))
    if variable := overrides.NEEDING.get(name):
        why = f"{mine[0].sentence} See [security.md](security.md#what-an-app-may-do-in-redis)."
        return Row(f"`{name}`", f"the app's, with `{variable}`", why)
    if mine:
        rule = ENFORCED.get(name) or UNUSED.get(name)
        why = rule.why if rule else mine[0].sentence
        return Row(f"`{name}`", over(name, rule or Rule(""), laying_for_all(name)), why)
    if name.endswith("transport_options"):
        assert conf[name].items() >= value.items(), name
        why = WHERE_SILENT.get(name, Rule("See the next table.")).why
        return Row(f"`{name}`", "the app's, with the fleet's besides", why)
    always, sometimes = on_command_line()
    if option := sometimes.get(name):
        why = "The node's command line comes before settings."
        return Row(f"`{name}`", f"the app's, unless a pool says `{option}`", why)
    if name in always:
        why = "A task copies it for itself, and what a task says comes before what its node does."
        return Row(f"`{name}`", f"the app's; `{POOL_LAST[name]}` of the pool if it is silent", why)
    if conf.get(name, value) != value:
        raise AssertionError(f"{name} = {value!r} becomes {conf.get(name)!r}, and nothing is said")
    if rule := WHERE_SILENT.get(name):
        silent = rule.value or f"`{laid_on()[0][name]}`"
        return Row(f"`{name}`", f"the app's; {silent} if it is silent", rule.why)
    return Row(f"`{name}`", "the app's", "")


@cache
def on_command_line() -> tuple[set[str], dict[str, str]]:
    """Return the settings over which each node has an option, and those over which one has that a pool names.

    The latter with that option of the pool.
    """
    optional = {**dict.fromkeys(celery_worker.FLAGS, 1), "disable_prefetch": True}
    always = settled()
    found = {name: option for option, value in optional.items() for name in settled(**{option: value})}
    return always, {name: option for name, option in found.items() if name not in always}


def settled(**options: Any) -> set[str]:
    """Return the settings that the command line of a node decides, of a pool with these options."""
    app, found = Celery("shop", set_as_current=False), set()

    def either(name: str, *values: Any) -> Any:
        """Note a setting of which the command line has a value, as Celery asks for it."""
        given = [value for value in values if value is not None]
        found.update([name] if given else [])
        return next(iter(given), app.conf[name])

    def start(**given: Any) -> Any:
        """Ask what a node asks, and start none."""
        WorkController.setup_defaults(SimpleNamespace(app=SimpleNamespace(either=either)), **given)
        return SimpleNamespace(start=lambda: None, exitcode=0)

    app.Worker = start
    before = {name: app.conf[name] for name in DEFAULTS}
    pool = celery_worker.complete({"default": {"queues": ["default"], **options}})["default"]
    words = celery_worker.arguments(pool, "INFO", task_events=False)
    worker.main(words, "celery", obj=CLIContext(app, no_color=True, workdir=None), standalone_mode=False)
    return found | {name for name, value in before.items() if app.conf[name] != value}


def laying_for_all(name: str) -> Any:
    """Return what some component of the fleet lays; nothing if none does."""
    os.environ.update(ENVIRONMENT)
    return overrides._values({}, FleetSettings.from_environment()).get(name, "")


def over(name: str, rule: Rule, value: Any) -> str:
    """Return what holds over the app's."""
    if name not in ENFORCED:
        return "no effect"
    return f"{rule.value or f'`{value}`'}, over the app's"


def option(name: str) -> Row:
    """Return what becomes of an option of the broker's transport."""
    default = getattr(SentinelChannel, name, None)
    value = OPTION_SAMPLES.get(name, sample(name, default))
    conf, said = laid_on(broker_transport_options={name: value})
    full = f"broker_transport_options.{name}"
    rule = ENFORCED_OPTIONS.get(name)
    if any(one.name == full for one in said):
        assert rule, name
        kept = conf.broker_transport_options.get(name, "none")
        laid = rule.value if rule.refuses else f"{rule.value or f'`{kept}`'}, over the app's"
        return Row(f"… `{name}`", laid, rule.why)
    if conf.broker_transport_options.get(name) == value:
        return Row(f"… `{name}`", "the app's", "")
    raise AssertionError(f"{name} is dropped, and nothing is said")


def task_attribute(name: str) -> Row:
    """Return what becomes of what a task says of itself."""
    value: Any = {
        "serializer": "json",
        "throws": (KeyError,),
        "autoretry_for": (KeyError,),
        "dont_autoretry_for": (KeyError,),
        "retry_kwargs": {"countdown": 1},
        "rate_limit": "5/m",
        "Request": "celery.worker.request:Request",
        "Strategy": "celery.worker.strategy:default",
    }.get(name, 77)
    switches = ("acks", "reject", "retry_on", "track", "store")
    if isinstance(getattr(Task, name, None), bool) or name.startswith(switches):
        value = not bool(DEFAULTS.get(f"task_{name}", False))
    os.environ.update(ENVIRONMENT)
    stock, fleet = (Celery("shop", set_as_current=False) for _ in range(2))
    for app in (stock, fleet):
        app.task(_pay, name="shop.pay", shared=False, **{name: value})
    configure.configure(fleet, FleetSettings.from_environment())
    expected = getattr(stock.tasks["shop.pay"], name)
    assert getattr(fleet.tasks["shop.pay"], name) == expected, name
    return Row(f"`{name}`", "the task's", "")


def _pay() -> None:
    """Do nothing."""


def plain(text: str) -> str:
    """Return what is said in a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def others(name: str) -> str:
    """Return how the settings of a result backend begin that is not the fleet's; nothing for others."""
    return next((start for start in overrides.OTHER_BACKENDS if name.startswith(start)), "")


def settings() -> list[Row]:
    """Return what becomes of each setting, those of one other result backend together."""
    rows: list[Row] = []
    for name, default in sorted({**DEFAULTS, **UNLISTED}.items()):
        row = observed(name, sample(name, default))
        if start := others(name):
            row = Row(f"`{start}*`", "no effect", overrides._OTHER_RESULTS)
        if row not in rows:
            rows.append(row)
    return rows


def task_attributes() -> list[str]:
    """Return what a task may say of itself, by Celery's own lists and what its class has."""
    sent = extract_exec_options(SimpleNamespace()).keys()
    retried = re.findall(r"options\.get\(\s*'(\w+)'", inspect.getsource(autoretry))
    copied = (name for name, _ in Task.from_config)
    # Not `app`: reading the app of the class itself binds it to one.
    stated = [name for name in vars(Task) if name[0] != "_" and name not in NO_ATTRIBUTES]
    own = (name for name in stated if not callable(getattr(Task, name)))
    return sorted({*sent, *retried, *copied, *own})


# Of its class: what it is, and not what it says.
NO_ATTRIBUTES = {"abstract", "app", "from_config", "name", "request", "request_stack"}


def tables() -> dict[str, list[str]]:
    """Return the lines of each table of the page, by its name."""
    found = settings()
    kept = [row for row in found if row.outcome == "the app's"]
    rest = [row for row in found if row.outcome != "the app's"]
    options = [option(name) for name in sorted({*SentinelChannel.from_transport_options})]
    stay = [row.name.removeprefix("… ") for row in options if row.outcome == "the app's"]
    return {
        "settings": [*HEAD, *map(line, rest)],
        "options": [*HEAD, *(line(row) for row in options if row.outcome != "the app's")],
        "kept": wrapped([row.name for row in kept]),
        "kept-options": wrapped(stay),
        "tasks": wrapped([task_attribute(name).name for name in task_attributes()]),
        "calls": wrapped([f"`{name}`" for name in call_options()]),
    }


HEAD = ("| setting | on the fleet | why, and what the check says |", "|---|---|---|")


def line(row: Row) -> str:
    """Return a row as Markdown."""
    return f"| {row.name} | {plain(row.outcome)} | {plain(row.why)} |"


def wrapped(names: list[str]) -> list[str]:
    """Return names in one paragraph."""
    return [", ".join(names) + "."]


def page(text: str) -> str:
    """Return the page with its tables as they should be."""
    for name, lines in tables().items():
        begin, end = f"<!-- BEGIN {name} -->", f"<!-- END {name} -->"
        assert begin in text, name
        assert end in text, name
        before, _, rest = text.partition(begin)
        text = "\n".join([before + begin, *lines, end]) + rest.partition(end)[2]
    return text


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
