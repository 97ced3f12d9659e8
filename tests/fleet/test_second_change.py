# SPDX-License-Identifier: MIT
"""One variable of a running fleet is changed: what it concerns takes it up, and nothing else is restarted.

Each step is a run of the whole site.yml with a variable or two that are otherwise than before. What one step
changes stays changed in those after it, as in an inventory that is edited.
"""

from __future__ import annotations

import copy
import json
import secrets
import shutil
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import redis

from tests.fleet.hostile_secrets import HOSTILE
from tests.fleet.support import canaries
from tests.fleet.support.hosts import eventually
from tests.fleet.support.inventory import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.fleet.support.clients import Producer
    from tests.fleet.support.fleet import Fleet
    from tests.fleet.support.hosts import Host
    from tests.fleet.support.plays import Plays, Run

pytestmark = pytest.mark.second_change

NEW_PASSWORDS = {name: HOSTILE.format(secrets.token_hex(16)) for name in ("flower", "redis_beat")}
CELERY = ["celery-worker@*.service", "celery-beat.service"]


@dataclass
class Changes:
    """The variables that are otherwise than in the inventory, and the plays that bring them to the fleet."""

    fleet: Fleet
    plays: Plays
    variables: dict[str, Any] = field(default_factory=dict)

    def edit(self, change: dict[str, Any]) -> None:
        """Change variables; of one that is a dictionary, only the keys that are named."""
        inventory = self.fleet.group("workers")[0].variables
        for name, value in change.items():
            now = self.variables.get(name) or (inventory[name] if isinstance(value, dict) else None)
            self.variables[name] = merge(copy.deepcopy(now), value)

    def apply(self, *arguments: str) -> Run:
        """Run site.yml with all that was changed so far."""
        return self.plays.run(*arguments, **self.variables).expect_success()


def merge(now: Any, value: Any) -> Any:
    """Return a value with another one laid over it, dictionaries key by key."""
    if isinstance(now, dict) and isinstance(value, dict):
        return {**now, **{key: merge(now.get(key), new) for key, new in value.items()}}
    return value


@pytest.fixture(scope="module")
def changes(fleet: Fleet, plays: Plays) -> Changes:
    """What has been changed so far."""
    return Changes(fleet, plays)


def units(fleet: Fleet, *patterns: str) -> set[tuple[str, str]]:
    """Return the units that match one of the patterns, with their hosts."""
    return {
        (host.name, unit)
        for host in fleet.hosts.values()
        for unit in fleet.units(host)
        if any(fnmatchcase(unit, pattern) for pattern in patterns)
    }


def environment(host: Host, unit: str) -> set[str]:
    """Return the environment of a unit's main process."""
    pid = str(host.unit(unit).main_pid)
    return set(host.sh('tr "\\0" "\\n" <"/proc/$1/environ"', pid).splitlines())


# --- what each change must bring about ---


def redis_has_less_memory(fleet: Fleet, _: Producer) -> bool:
    """Redis has the new limit."""
    return configured(fleet, "maxmemory") == str(200 * 1024**2)


def redis_has_more_databases(fleet: Fleet, _: Producer) -> bool:
    """Redis has what it reads at its start only."""
    return configured(fleet, "databases") == "20"


def configured(fleet: Fleet, directive: str) -> str:
    """Return what the running Redis has for a directive."""
    with fleet.broker.connect("admin") as client:
        return str(client.config_get(directive)[directive])


def flower_has_new_password(fleet: Fleet, _: Producer) -> bool:
    """The old password is refused, the new one opens."""
    old, new = fleet.inventory.secrets["flower"], NEW_PASSWORDS["flower"]
    fleet.flower.password = new
    return [fleet.flower.statuses(["/workers"], "GET", (fleet.flower.user, p)) for p in (old, new)] == [
        {"/workers": 401},
        {"/workers": 200},
    ]


def flower_remembers_less(fleet: Fleet, _: Producer) -> bool:
    """Flower was started with the new limit."""
    return "FLOWER_MAX_TASKS=500" in environment(fleet.group("flower")[0], "flower.service")


def queue_is_served(fleet: Fleet, producer: Producer) -> bool:
    """An application may send to the new queue, and the pool that it was given to consumes it."""
    node = producer.result(producer.probe("bulk"))["node"]
    return node in {node.celery_name for node in fleet.nodes if node.pool == "io"}


def beat_has_new_password(fleet: Fleet, _: Producer) -> bool:
    """The old password of Beat is refused, the new one lets it in."""
    with fleet.broker.connect("beat", password=NEW_PASSWORDS["redis_beat"]) as client:
        assert client.ping()
    with (
        fleet.broker.expected_denials(),
        pytest.raises(redis.AuthenticationError),
        fleet.broker.connect("beat") as client,
    ):
        client.ping()
    return True


@dataclass(frozen=True)
class Change:
    """A change of the inventory, the units that it restarts, and how it is seen in the fleet."""

    edit: dict[str, Any]
    restarts: str | None
    takes_effect: Callable[[Fleet, Producer], bool]


# Each step is one run, so none of its changes may restart what another one does.
STEPS = {
    "live": [
        Change({"redis_maxmemory": "200mb"}, None, redis_has_less_memory),
        Change({"fleet_secrets": {"flower": NEW_PASSWORDS["flower"]}}, None, flower_has_new_password),
    ],
    "restart": [
        Change({"redis_extra_config": {"databases": 20}}, "redis-server.service", redis_has_more_databases),
        Change({"flower_max_tasks": 500}, "flower.service", flower_remembers_less),
    ],
    "live and restart": [
        Change(
            {"celery_worker_pools": {"io": {"queues": ["io", "bulk"]}}},
            "celery-worker@io-*.service",
            queue_is_served,
        ),
        Change(
            {"fleet_secrets": {"redis_beat": NEW_PASSWORDS["redis_beat"]}},
            "celery-beat.service",
            beat_has_new_password,
        ),
    ],
}


@pytest.mark.parametrize("step", STEPS)
def test_change(fleet: Fleet, changes: Changes, producer: Producer, step: str) -> None:
    """What is changed takes effect, by a restart of exactly what needs one."""
    before = fleet.starts()
    for change in STEPS[step]:
        changes.edit(change.edit)
    changes.apply()

    restarts = [change.restarts for change in STEPS[step] if change.restarts]
    assert fleet.restarted(before) == units(fleet, *restarts)
    for change in STEPS[step]:
        eventually(partial(change.takes_effect, fleet, producer), timeout=10)
    eventually(fleet.is_whole, timeout=60)


def test_interrupted_play_is_healed(fleet: Fleet, changes: Changes) -> None:
    """A play that ended between configuration and restart leaves nothing that the next one overlooks."""
    before = fleet.starts()
    pools = {"default": {"concurrency": 3, "nodes": 2}, "passing": {"queues": ["io"], "pool": "solo"}}
    changes.edit({"celery_worker_pools": pools, "celery_beat_max_interval": 4})
    written = changes.apply("--tags", "celery_worker_configure,celery_beat_configure")
    assert written.changes
    assert fleet.restarted(before) == set()

    healed = changes.apply()
    assert not [task for _, task in healed.changes if "Write" in task], str(healed)
    assert fleet.restarted(before) == units(fleet, "celery-worker@default-*.service", "celery-beat.service")
    stats = fleet.operator.ask("stats")
    assert {
        stats[f"default-{number}@{host.name}"]["pool"]["max-concurrency"]
        for host in fleet.group("workers")
        for number in (1, 2)
    } == {3}
    host = fleet.group("beat")[0]
    assert "maxinterval -> 4.00 seconds" in host.journal("celery-beat.service", lines=60)


def test_surplus_nodes_are_drained(fleet: Fleet, changes: Changes, producer: Producer) -> None:
    """A node that the inventory does not have any more finishes what it runs, and leaves nothing behind."""
    before = fleet.starts()
    surplus = [(host, f"default-2@{host.name}") for host in fleet.group("workers")]
    sent = [producer.send("demo.tasks.greet", "all", 12, queue="default") for _ in range(6 * len(surplus))]
    eventually(lambda: all(len(active(fleet)[node]) == 3 for _, node in surplus), timeout=8)
    on_surplus = {task for _, node in surplus for task in active(fleet)[node]}
    users = ("celery-default", "celery-passing")
    there = 'getent passwd "$@" | cut -d: -f1'
    assert {host.sh(there, *users) for host, _ in surplus} == {"celery-default\ncelery-passing\n"}
    changes.edit({"celery_worker_pools": {"default": {"nodes": 1}, "passing": {"nodes": 0}}})
    changes.apply()

    for host, node in surplus:
        name = node.partition("@")[0]
        assert host.unit(f"celery-worker@{name}.service")["ActiveState"] == "inactive"
        assert name not in host.sh("find /etc/systemd/system /etc/celery /run/celery /run/systemd/units")
        assert node not in fleet.operator.ask("ping")
        assert host.sh(there, *users) == "celery-default\n"
        assert host.sh("find /var/log/celery -nouser 2>/dev/null || true") == ""
    assert [producer.result(one, timeout=20) for one in sent] == ["Hello, all!"] * len(sent)
    assert len(on_surplus) == 3 * len(surplus)
    assert fleet.restarted(before) == set()


def active(fleet: Fleet) -> dict[str, list[str]]:
    """Return the tasks that each node runs now."""
    return {node: [task["id"] for task in tasks] for node, tasks in fleet.operator.ask("active").items()}


def test_new_release(fleet: Fleet, changes: Changes, producer: Producer, tmp_path: Path) -> None:
    """When the app's source changes, what runs the app has the new release, and nothing else is restarted."""
    before, old = fleet.starts(), releases(fleet, producer)
    source = shutil.copytree(ROOT / "app" / "demo", tmp_path / "demo")
    edit(source / "src/demo/tasks.py", "Hello, ", "Good morning, ")
    changes.edit({"celery_app_source": str(source)})
    changes.apply()

    assert fleet.restarted(before) == units(fleet, *CELERY)
    assert (
        producer.result(producer.send("demo.tasks.greet", "fleet", queue="default")) == "Good morning, fleet!"
    )
    new = releases(fleet, producer)
    assert len(old) == len(new) == 1
    assert old != new
    for host in fleet.group("workers"):
        app = f"/opt/celery/{host.variables['celery_app_name']}"
        assert json.loads(host.sh('cat "$1/current/release.json"', app))["id"] in new
        assert new | old <= set(host.sh('ls "$1/releases"', app).split())


def releases(fleet: Fleet, producer: Producer) -> set[str]:
    """Return the releases that the nodes run."""
    return {producer.result(producer.probe(queue))["release"] for queue in fleet.queues}


def edit(path: Path, old: str, new: str) -> None:
    """Replace a text in a file that has it."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_broken_release_is_refused(fleet: Fleet, changes: Changes, plays: Plays, tmp_path: Path) -> None:
    """An app that does not load stops the play, which shows why; the running release stays as it is."""
    before = fleet.starts()
    host = fleet.group("workers")[0]
    current = f"/opt/celery/{host.variables['celery_app_name']}/current"
    running = host.sh('readlink "$1"', current)
    source = shutil.copytree(ROOT / "app" / "demo", tmp_path / "demo")
    edit(source / "src/demo/tasks.py", "BLOCK = ", "BLOCK = 1 // 0 + ")
    refused = plays.run(**changes.variables | {"celery_app_source": str(source)})

    assert refused.code != 0
    assert "ZeroDivisionError: integer division or modulo by zero" in refused.output
    assert "demo/tasks.py" in refused.output
    assert host.sh('readlink "$1"', current) == running
    assert fleet.restarted(before) == set()
    assert fleet.is_whole()


def test_broken_beat_beside_nodes(fleet: Fleet, changes: Changes, plays: Plays, tmp_path: Path) -> None:
    """The nodes of its host have the same release, and keep it; the run says so, and a rollback ends it."""
    source = shutil.copytree(ROOT / "app" / "demo", tmp_path / "demo")
    edit(source / "src/demo/tasks.py", "Hello, ", "Good evening, ")
    with (source / "src/demo/app.py").open("a") as file:
        file.write("\n\nimport os\n\nif os.environ.get('FLEET_COMPONENT') == 'beat':\n")
        file.write("    raise RuntimeError('no license for Beat')\n")
    host = fleet.group("beat")[0]
    current = f"/opt/celery/{host.variables['celery_app_name']}/current"
    old, before = host.sh('readlink "$1"', current), fleet.starts()
    variables = changes.variables | {"celery_app_source": str(source)}
    stopped = plays.run(playbook="playbooks/release.yml", **variables)

    assert stopped.code != 0
    assert "no license for Beat" in stopped.output
    new = host.sh('readlink "$1"', current)
    told = " ".join(stopped.output[stopped.output.rindex("fatal: [") :].split())
    assert f"{host.name} keeps release {new.rpartition('/')[2].strip()}, which it shares" in told
    assert f"playbooks/rollback.yml -e fleet_release_id={old.rpartition('/')[2].strip()}" in told
    assert new != old
    assert fleet.restarted(before) >= units(fleet, "celery-worker@*.service")
    assert units(fleet, "flower.service").isdisjoint(fleet.restarted(before))

    plays.run(playbook="playbooks/rollback.yml", **changes.variables).expect_success()
    assert host.sh('readlink "$1"', current) == old
    eventually(fleet.is_whole, timeout=60)
    before = fleet.starts()
    assert {task for _, task in changes.apply().changes} <= {"fleet.celery.celery_app : Remove old releases"}
    assert fleet.restarted(before) == set()


@pytest.mark.parametrize(
    ("tier", "task"),
    [
        ("workers", "Restart the nodes, one after another"),
        ("beat", "Restart Beat"),
        ("flower", "Restart Flower"),
        ("redis", "Restart Redis"),
    ],
)
def test_check_mode_of_a_restart(fleet: Fleet, changes: Changes, tier: str, task: str) -> None:
    """It says what it would restart, and leaves it alone."""
    before = fleet.starts()
    run = changes.plays.run(
        "--check", playbook="playbooks/restart.yml", fleet_restart_tier=tier, **changes.variables
    )
    run.expect_success()
    told = [(host, done.rpartition(" : ")[2]) for host, done in run.changes]
    assert told == [(host.name, task) for host in fleet.group(tier)], str(run)
    assert fleet.restarted(before) == set()


def test_renewed_certificates_are_served(fleet: Fleet, changes: Changes) -> None:
    """Certificates inside the window of renewal are renewed, and served by the same run; no task notices."""
    before, old = fleet.starts(), serials(fleet)
    changes.edit({"pki_days": 398, "pki_renew_days": 397})
    changes.apply()

    assert not set(serials(fleet).values()) & set(old.values())
    assert fleet.restarted(before) == set()
    assert fleet.is_whole()


def serials(fleet: Fleet) -> dict[str, str]:
    """Return the serial numbers of the certificates that Redis and nginx show."""
    return {"redis": fleet.broker.serial(), "flower": fleet.flower.serial()}


def test_another_app_in_its_place(fleet: Fleet, changes: Changes, producer: Producer) -> None:
    """A folder as tutorials have it, with localhost as its broker: three lines of inventory change."""
    source = ROOT / "examples" / "flask"
    changes.edit(
        {"celery_app_name": "flask", "celery_app_source": str(source), "celery_app_import": "app:celery"}
    )
    changes.plays.run(playbook="playbooks/release.yml", **changes.variables).expect_success()

    sent = producer.send("app.send_greeting", "Ada", queue="celery")
    assert producer.result(sent) == "Hello, Ada!"
    for host in fleet.group("workers"):
        shipped = set(host.sh("ls /opt/celery/flask/current/source").split())
        assert {"app.py", "requirements.txt", "templates"} <= shipped


def test_no_play_showed_a_secret(fleet: Fleet, plays: Plays) -> None:
    """Nothing that the plays printed, at -vvv --diff, shows a secret, an old one or a new one."""
    known = {**fleet.inventory.secrets, **{f"new {name}": secret for name, secret in NEW_PASSWORDS.items()}}
    assert len(plays.outputs) > len(STEPS)
    assert [canaries.search(output, known) for output in plays.outputs] == [set()] * len(plays.outputs)
