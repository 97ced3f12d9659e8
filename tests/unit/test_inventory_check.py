# SPDX-License-Identifier: MIT
"""What preflight finds, and that the shipped inventories have nothing to find."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from ansible_collections.fleet.celery.plugins.module_utils import inventory_check as preflight
from ansible_collections.fleet.celery.plugins.module_utils.runtime_figures import CHILD_COST
from fleet_runtime.inspect import app_check

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ROOT = Path(__file__).parents[2]
ROLES = yaml.safe_load((ROOT / "playbooks" / "vars" / "preflight.yml").read_text())["preflight_roles"]
SECRETS = yaml.safe_load((ROOT / "roles" / "preflight" / "meta" / "argument_specs.yml").read_text())[
    "argument_specs"
]["main"]["options"]["fleet_secrets"]["options"]
HOSTS = ("redis1", "worker1", "worker2", "beat1", "flower1")
REACHED_AT = dict(zip(HOSTS, (f"192.0.2.{last}" for last in (11, 20, 21, 31, 41)), strict=True))


def options(role: str) -> dict[str, Any]:
    """The options of a role's main entry point."""
    specs = yaml.safe_load((ROOT / "roles" / role / "meta" / "argument_specs.yml").read_text())
    found: dict[str, Any] = specs["argument_specs"]["main"]["options"]
    return found


SPECS = {role: options(role) for role in ROLES}
GIVEN = {
    role: list(yaml.safe_load(path.read_text()))
    for role in ROLES
    if (path := ROOT / "playbooks" / "vars" / f"{role}.yml").exists()
}


def a_fleet() -> tuple[dict[str, dict[str, Any]], dict[str, list[str]]]:
    """The variables and groups of a fleet that works."""
    common = {
        "fleet_name": "demo",
        "fleet_redis_host": "192.0.2.11",
        "fleet_redis_port": 6379,
        "fleet_redis_db": 0,
        "fleet_tls_dir": "/etc/fleet/tls",
        "fleet_local_dir": "/srv/fleet",
        "fleet_secrets": {name: f"{name}-{number}-qW3rTzUiOpAsDf" for number, name in enumerate(SECRETS)},
        "celery_app_name": "demo",
        "celery_app_source": "/srv/demo",
        "celery_app_import": "demo.app:app",
        "celery_app_queues": ["default", "email"],
    }
    pools = {"default": {"queues": ["default"], "nodes": 2}, "mail": {"queues": ["email"], "time_limit": 60}}
    hosts: dict[str, dict[str, Any]] = {host: copy.deepcopy(common) for host in HOSTS}
    hosts["redis1"]["redis_bind"] = ["127.0.0.1", "192.0.2.11"]
    for host in ("worker1", "worker2"):
        hosts[host]["celery_worker_pools"] = copy.deepcopy(pools)
    groups = {
        "all": list(HOSTS),
        "redis": ["redis1"],
        "workers": ["worker1", "worker2"],
        "beat": ["beat1"],
        "flower": ["flower1"],
    }
    return hosts, groups


def look(
    hosts: dict[str, dict[str, Any]], groups: dict[str, list[str]], extra: Sequence[str] = ()
) -> dict[str, list[str]]:
    """The findings: variable and reason in one text, with the hosts."""
    inventory = preflight.Inventory(
        hosts=hosts,
        groups=groups,
        specs=SPECS,
        roles=ROLES,
        given=GIVEN,
        pool_problems=lambda _pools, _host: [],
        reached_at=REACHED_AT,
        extra=extra,
    )
    return {f"{finding.variable}: {finding.reason}": where for finding, where in preflight.check(inventory)}


def test_a_fleet_that_works_has_no_finding() -> None:
    assert look(*a_fleet()) == {}


def set_all(**values: Any) -> Callable[[Any, Any], None]:
    """Set variables on every host."""

    def change(hosts: Any, _groups: Any) -> None:
        for variables in hosts.values():
            variables.update(copy.deepcopy(values))

    return change


def set_on(host: str, **values: Any) -> Callable[[Any, Any], None]:
    """Set variables on one host."""
    return lambda hosts, _groups: hosts[host].update(values)


def set_secret(name: str, value: Any) -> Callable[[Any, Any], None]:
    """Set, or with None remove, one password."""

    def change(hosts: Any, _groups: Any) -> None:
        for variables in hosts.values():
            variables["fleet_secrets"].pop(name, None)
            if value is not None:
                variables["fleet_secrets"][name] = value

    return change


def set_group(name: str, *members: str) -> Callable[[Any, Any], None]:
    """Set the hosts of a group."""
    return lambda _hosts, groups: groups.update({name: list(members)})


def both(*changes: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    """Make several changes."""

    def change(hosts: Any, groups: Any) -> None:
        for one in changes:
            one(hosts, groups)

    return change


BROKEN: dict[str, tuple[Callable[[Any, Any], None], str]] = {
    "misspelt": (set_all(redis_maxmemroy="1gb"), "redis_maxmemroy: No role has a variable of this name"),
    "removed": (set_all(flower_task_events=True), "flower_task_events: There is no such variable any more."),
    "overridden": (set_all(redis_port=6380), "redis_port: The inventory sets it, but the playbooks do, too"),
    "missing": (
        lambda hosts, _: hosts["worker1"].pop("celery_worker_pools"),
        "celery_worker_pools: It is not set",
    ),
    "empty": (set_all(fleet_name=""), "fleet_name: It is empty"),
    "wrong type": (set_on("beat1", celery_beat_max_interval="soon"), "celery_beat_max_interval: argument"),
    "no host of the package index": (
        set_on("worker1", celery_app_index_hosts=["cdn.example.com", "https://me:CANARY@cdn.example.com"]),
        "celery_app_index_hosts[1]: It is no host",
    ),
    "no variable of an environment": (
        set_on("worker1", celery_app_environment={"MY-KEY": "x"}),
        "celery_app_environment.MY-KEY: 'MY-KEY' is not the name",
    ),
    "what no environment carries": (
        set_on("worker1", celery_app_environment={"SHOP_KEY": "CANARY\0"}),
        "celery_app_environment.SHOP_KEY: The value of SHOP_KEY has the character NUL",
    ),
    "wrong choice": (set_on("beat1", celery_beat_scheduler="cron"), "celery_beat_scheduler: value of"),
    "unreadable": (
        set_all(flower_port=preflight.Broken("'x' is undefined")),
        "flower_port: It cannot be read",
    ),
    "no secret": (set_secret("redis_ops", None), "fleet_secrets.redis_ops: There is no such password"),
    "short secret": (set_secret("flower", "aB3$xY7"), "fleet_secrets.flower: It is too weak: 7 characters"),
    "placeholder": (set_secret("flower", "changeme-changeme-1"), "fleet_secrets.flower: It is too weak"),
    "one character": (set_secret("flower", "a" * 40), "fleet_secrets.flower: It is too weak"),
    "line break": (set_secret("flower", "qW3rTzUiOp\nAsDfGhJk"), "fleet_secrets.flower: It has a line break"),
    "number": (set_secret("flower", 12345678901234567890), "fleet_secrets.flower: It is no text"),
    "unknown secret": (
        set_secret("redis_opps", "qW3rTzUiOpAsDfGhJk"),
        "fleet_secrets.redis_opps: Nothing uses",
    ),
    "same secret": (
        both(set_secret("flower", "qW3rTzUiOpAsDfGhJk"), set_secret("pki_ca", "qW3rTzUiOpAsDfGhJk")),
        "fleet_secrets.flower: It is the same as pki_ca",
    ),
    "unknown previous secret": (
        set_all(fleet_secrets_previous={"redis_opps": "qW3rTzUiOpAsDfGhJk"}),
        "fleet_secrets_previous.redis_opps: Nothing uses",
    ),
    "a secret that is its previous one": (
        both(
            set_secret("redis_web", "qW3rTzUiOpAsDfGhJk"),
            set_all(fleet_secrets_previous={"redis_web": "qW3rTzUiOpAsDfGhJk"}),
        ),
        "fleet_secrets_previous.redis_web: It is the same as fleet_secrets.redis_web",
    ),
    "no broker": (set_group("redis"), "group redis: It has 0 hosts"),
    "two brokers": (set_group("redis", "redis1", "beat1"), "group redis: It has 2 hosts: redis1, beat1"),
    "no worker": (set_group("workers"), "group workers: It has no host"),
    "two Beats that cannot lock": (
        both(set_group("beat", "beat1", "flower1"), set_on("flower1", celery_beat_scheduler="persistent")),
        "group beat: beat1, flower1 would each send every task",
    ),
    "nobody consumes": (
        set_all(celery_app_queues=["default", "emial"]),
        "celery_app_queues: The app sends tasks",
    ),
    "same port": (
        both(set_group("flower", "redis1"), set_on("redis1", flower_port=6379)),
        "flower_port: 6379 is fleet_redis_port, too",
    ),
    "no port": (set_on("flower1", flower_port=70000), "flower_port: 70000 is no port"),
    "loopback": (
        set_all(fleet_redis_host="127.0.0.1"),
        "fleet_redis_host: It is 127.0.0.1, which on worker1",
    ),
    "bound to loopback": (
        set_on("redis1", redis_bind=["127.0.0.1"]),
        "redis_bind: Redis listens on 127.0.0.1 only",
    ),
    "no size of memory": (
        set_on("worker1", celery_worker_memory_max="6 GB"),
        "celery_worker_memory_max: '6 GB' is no size of memory",
    ),
    "no size of swap": (
        set_on("worker1", celery_worker_swap_max="none"),
        "celery_worker_swap_max: 'none' is no size of memory",
    ),
    "no size of Beat's memory": (
        set_on("beat1", celery_beat_memory_max="half"),
        "celery_beat_memory_max: 'half' is no size of memory",
    ),
    "no number of tasks": (
        set_on("worker1", celery_worker_tasks_max="many"),
        "celery_worker_tasks_max: 'many' is no number of processes and threads",
    ),
    "tasks that reach a name": (
        set_on("worker1", celery_worker_ip_allow=["192.0.2.0/24", "db.example"]),
        "celery_worker_ip_allow: 'db.example' is no address and no network",
    ),
    "tasks that do not reach the broker": (
        set_on("worker1", celery_worker_ip_allow=["198.51.100.0/24"]),
        "celery_worker_ip_allow: The broker, 192.0.2.11, is not among them",
    ),
    "a Beat that does not reach the broker": (
        set_on("beat1", celery_worker_ip_allow=["198.51.100.0/24"]),
        "celery_worker_ip_allow: The broker, 192.0.2.11, is not among them",
    ),
    "a part of a certificate": (
        set_all(pki_provided_ca_file=__file__),
        "pki_provided_cert_file: It is empty",
    ),
    "no such certificate": (
        set_all(pki_provided_ca_file="/no/ca", pki_provided_cert_file="/no/c", pki_provided_key_file="/no/k"),
        "pki_provided_ca_file: There is no file /no/ca",
    ),
    "the address of another": (
        set_on("worker1", pki_addresses=["192.0.2.21"]),
        "pki_addresses: 192.0.2.21 is worker2's, so a certificate of worker1 would be one for worker2",
    ),
    "the name of another": (
        set_on("worker1", pki_names=["Redis1."]),
        "pki_names: redis1 is redis1's, so a certificate of worker1",
    ),
    "a service of another": (
        both(set_all(fleet_redis_host="broker.example.com"), set_all(pki_names=["broker.example.com"])),
        "pki_names: broker.example.com is redis1's, so a certificate of worker1",
    ),
    "a wildcard": (
        set_on("flower1", pki_names=["*.example.com"]),
        "pki_names: *.example.com cannot be in a certificate: a wildcard",
    ),
    "a name that is none": (
        set_on("flower1", flower_server_name="flower one"),
        "flower_server_name: flower one cannot be in a certificate: it is no DNS name",
    ),
    "a network that is none": (
        set_all(pki_permitted_addresses=["10.20.0.1/16"]),
        "pki_permitted_addresses: 10.20.0.1/16 has host bits set",
    ),
    "a domain that is none": (
        set_all(pki_permitted_names=["*"]),
        "pki_permitted_names: '*': a wildcard",
    ),
    "retired": (set_all(pki_host_addresses=False), "pki_host_addresses: There is no such variable any more"),
    "no such database": (set_all(fleet_redis_db=16), "fleet_redis_db: 16 is no database"),
    "renewed before it begins": (set_all(pki_days=20), "pki_renew_days: 30 days before the end"),
    "visible too soon": (
        set_all(celery_app_settings={"visibility_timeout": 60}),
        "celery_app_settings.visibility_timeout: It is 60 s",
    ),
    "a message may be lost at the level full": (
        set_all(celery_app_settings={"atomic_fetch": False}),
        "celery_app_settings.atomic_fetch: It is false, and at the level full no message is lost",
    ),
    "the same, as text": (
        set_on("worker1", celery_app_settings={"atomic_fetch": "no"}, celery_app_level="full"),
        "celery_app_settings.atomic_fetch: It is false, and at the level full no message is lost",
    ),
    "no message is lost at the level standard": (
        set_all(celery_app_settings={"atomic_fetch": True}, celery_app_level="standard"),
        "celery_app_settings.atomic_fetch: It is true, and the level standard has Celery's own transport",
    ),
    "the runtime's pool at the level standard": (
        set_all(celery_app_settings={"fast_pool": "true"}, celery_app_level="standard"),
        "celery_app_settings.fast_pool: It is true, and the level standard has Celery's own transport",
    ),
    "the level as a setting": (
        set_all(celery_app_settings={"level": "standard"}),
        "celery_app_settings.level: The level has a variable of its own",
    ),
    "no such level": (
        set_all(celery_app_level="fast"),
        "celery_app_level: value of celery_app_level must be",
    ),
}


@pytest.mark.parametrize(
    ("level", "settings"),
    [
        ("full", {"atomic_fetch": True, "fast_pool": False}),
        ("standard", {"atomic_fetch": False, "fast_pool": "false"}),
        ("standard", {"lease": 60}),
    ],
)
def test_settings_that_fit_the_level_are_accepted(level: str, settings: dict[str, Any]) -> None:
    hosts, groups = a_fleet()
    set_all(celery_app_level=level, celery_app_settings=settings)(hosts, groups)
    assert look(hosts, groups) == {}


@pytest.mark.parametrize(("change", "expected"), BROKEN.values(), ids=BROKEN.keys())
def test_finds(change: Callable[[Any, Any], None], expected: str) -> None:
    hosts, groups = a_fleet()
    change(hosts, groups)
    assert any(found.startswith(expected) for found in look(hosts, groups)), look(hosts, groups)


def test_hosts_may_share_the_name_of_a_service() -> None:
    hosts, groups = a_fleet()
    set_group("flower", "flower1", "beat1")(hosts, groups)
    set_on("flower1", pki_names=["flower.example.com"])(hosts, groups)
    set_on("beat1", pki_names=["flower.example.com"], flower_server_name="flower.example.com")(hosts, groups)
    set_on("flower1", flower_server_name="flower.example.com")(hosts, groups)
    assert look(hosts, groups) == {}


def test_two_hosts_at_one_address_are_refused() -> None:
    hosts, groups = a_fleet()
    reached_at = {**REACHED_AT, "worker2": "192.0.2.11"}
    inventory = preflight.Inventory(hosts, groups, SPECS, ROLES, GIVEN, lambda _pools, _host: [], reached_at)
    text = preflight.report(preflight.check(inventory))
    assert "192.0.2.11 is redis1's, so a certificate of worker2 would be one for redis1" in text


def test_a_host_that_could_overrule_the_inventory_by_a_fact_is_refused() -> None:
    hosts, groups = a_fleet()
    inventory = preflight.Inventory(
        hosts, groups, SPECS, ROLES, GIVEN, lambda _pools, _host: [], REACHED_AT, facts_are_variables=True
    )
    text = preflight.report(preflight.check(inventory))
    assert "inject_facts_as_vars  [the whole fleet]" in text


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("celery_beat_scheduler", "django", "Set redbeat or persistent: "),
        ("celery_beat_max_interval", "soon", "Set a whole number: "),
        ("celery_app_environment", ["A=1"], "Set a mapping: "),
    ],
)
def test_what_to_write_in_place_of_a_wrong_value(name: str, value: Any, remedy: str) -> None:
    hosts, groups = a_fleet()
    hosts["beat1"][name] = value
    inventory = preflight.Inventory(hosts, groups, SPECS, ROLES, GIVEN, lambda _pools, _host: [], REACHED_AT)
    (finding,) = [finding for finding, _ in preflight.check(inventory) if finding.variable == name]
    assert finding.remedy.startswith(remedy)


def warnings(change: Callable[[Any, Any], None]) -> list[str]:
    """What preflight warns of in a fleet that was changed, and refuses nothing of."""
    hosts, groups = a_fleet()
    change(hosts, groups)
    inventory = preflight.Inventory(hosts, groups, SPECS, ROLES, GIVEN, lambda _pools, _host: [])
    assert preflight.check(inventory) == []
    return [preflight.warning(*cost) for cost in preflight.costs(inventory)]


def pool(**options: Any) -> Callable[[Any, Any], None]:
    """Set options of the pool default on one host."""
    return lambda hosts, _groups: hosts["worker2"]["celery_worker_pools"]["default"].update(options)


COSTLY: dict[str, tuple[Callable[[Any, Any], None], str]] = {
    "track_started": (
        set_all(celery_app_settings={"track_started": True}),
        "worker1, worker2: celery_app_settings.track_started is true: a second write to Redis for each "
        "task, three requests instead of two (measured on 2 cores, Celery 5.7); leave it out, unless ",
    ),
    "as text": (
        set_all(celery_app_settings={"track_started": "yes"}),
        "worker1, worker2: celery_app_settings.track_started is true: ",
    ),
    "events of the runtime": (
        set_on("worker1", celery_app_settings={"task_events": True}),
        f"worker1: celery_app_settings.task_events is true: {preflight.EVENTS_COST}; leave it out, unless ",
    ),
    "a secret that is being replaced": (
        set_all(fleet_secrets_previous={"redis_web": "qW3rTzUiOpAsDfGhJk"}),
        "the whole fleet: fleet_secrets_previous is not empty: redis_web is being replaced",
    ),
    "children that are replaced": (
        pool(max_tasks_per_child=999),
        "worker2: celery_worker_pools.default.max_tasks_per_child is 999: each child is replaced after so "
        f"many tasks; {CHILD_COST}; set 1000 or more, or max_memory_per_child if ",
    ),
}


@pytest.mark.parametrize(("change", "expected"), COSTLY.values(), ids=COSTLY.keys())
def test_warns_of_what_costs_much(change: Callable[[Any, Any], None], expected: str) -> None:
    found = warnings(change)
    assert len(found) == 1
    assert found[0].startswith(expected), found


@pytest.mark.parametrize(
    "change",
    [
        set_all(),
        set_all(celery_app_settings={"track_started": False, "task_events": "no"}),
        set_all(celery_worker_task_events=True),
        set_on("beat1", celery_app_settings={"track_started": True}),
        pool(max_tasks_per_child=1000),
        set_all(fleet_secrets_previous={}),
    ],
)
def test_warns_of_nothing_else(change: Callable[[Any, Any], None]) -> None:
    assert warnings(change) == []


def test_two_beats_that_lock_are_a_beat_and_a_standby() -> None:
    hosts, groups = a_fleet()
    set_group("beat", "beat1", "flower1")(hosts, groups)
    assert look(hosts, groups) == {}


def test_extra_variables_of_playbooks_are_none_of_the_inventory() -> None:
    hosts, groups = a_fleet()
    hosts["redis1"]["fleet_batches"] = 2
    assert any(text.startswith("fleet_batches: It is an extra variable") for text in look(hosts, groups))
    assert look(hosts, groups, extra=["fleet_batches"]) == {}
    assert list(look(hosts, groups, extra=["fleet_batches", "tier"]).values()) == [[preflight.WHOLE_FLEET]]


def test_names_the_nearest_right_name() -> None:
    hosts, groups = a_fleet()
    set_all(redis_maxmemroy="1gb")(hosts, groups)
    inventory = preflight.Inventory(hosts, groups, SPECS, ROLES, GIVEN, lambda _pools, _host: [])
    assert "Is it redis_maxmemory?" in preflight.report(preflight.check(inventory))


def test_the_same_finding_on_many_hosts_is_one() -> None:
    hosts, groups = a_fleet()
    set_all(redis_maxmemroy="1gb")(hosts, groups)
    inventory = preflight.Inventory(hosts, groups, SPECS, ROLES, GIVEN, lambda _pools, _host: [])
    text = preflight.report(preflight.check(inventory))
    assert "1 finding." in text
    assert "[redis1, worker1, worker2 and 2 more]" in text


@pytest.mark.parametrize("value", ["sh0rt-s3cret", "changeme-Xq93kd02ks", "two\nlines-of-s3cret"])
def test_shows_no_secret(value: str) -> None:
    hosts, groups = a_fleet()
    set_secret("flower", value)(hosts, groups)
    set_all(flower_password=value, celery_beat_broker_url=["not", value])(hosts, groups)
    inventory = preflight.Inventory(hosts, groups, SPECS, ROLES, {}, lambda _pools, _host: [])
    text = preflight.report(preflight.check(inventory))
    assert "fleet_secrets.flower" in text
    assert value not in text
    assert repr(value) not in text


def test_a_hundred_hosts_take_less_than_three_seconds() -> None:
    hosts, groups = a_fleet()
    for number in range(3, 103):
        hosts[f"worker{number}"] = copy.deepcopy(hosts["worker1"])
        groups["workers"].append(f"worker{number}")
        groups["all"].append(f"worker{number}")
    start = time.monotonic()
    assert look(hosts, groups) == {}
    assert time.monotonic() - start < 3


def run_playbook(directory: Path, *inventories: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run preflight's part for the controller on inventories, with secrets that are made for it."""
    secrets = directory / "secrets.json"
    _, variables = "", {"fleet_secrets": a_fleet()[0]["redis1"]["fleet_secrets"]}
    secrets.write_text(json.dumps(variables))
    arguments = [word for path in inventories for word in ("-i", str(path))]
    return subprocess.run(
        [
            "ansible-playbook",
            *arguments,
            "--skip-tags",
            "preflight_hosts",
            "-e",
            f"@{secrets}",
            "playbooks/preflight.yml",
        ],
        cwd=ROOT,
        env=os.environ | environment,
        text=True,
        capture_output=True,
        check=False,
    )


def test_facts_that_are_variables_are_refused(tmp_path: Path) -> None:
    run = run_playbook(tmp_path, ROOT / "inventories/single", ANSIBLE_INJECT_FACT_VARS="true")
    assert run.returncode != 0
    assert "inject_facts_as_vars  [the whole fleet]" in run.stdout


@pytest.mark.parametrize("name", ["single", "fleet"])
def test_a_shipped_inventory_has_no_finding(name: str, tmp_path: Path) -> None:
    done = run_playbook(tmp_path, ROOT / "inventories" / name)
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_expensive_inventory_is_taken_with_a_warning(tmp_path: Path) -> None:
    dear = tmp_path / "dear"
    (dear / "group_vars" / "workers").mkdir(parents=True)
    (dear / "hosts.yml").write_text("workers: {hosts: {celery1: {}}}")
    (dear / "group_vars" / "workers" / "pools.yml").write_text(
        "celery_worker_pools:\n"
        "  short: {queues: [default, email], profile: short}\n"
        "  long: {queues: [heavy, io], profile: long, time_limit: 600, max_tasks_per_child: 10}\n"
    )
    done = run_playbook(tmp_path, ROOT / "inventories" / "single", dear)
    assert done.returncode == 0, done.stdout + done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("[WARNING]")]
    assert [line.split(" is ")[0] for line in said] == [
        "[WARNING]: celery1: celery_worker_pools.long.max_tasks_per_child",
    ]


def test_a_broken_inventory_is_refused_in_one_message(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    (broken / "group_vars" / "all").mkdir(parents=True)
    (broken / "hosts.yml").write_text("beat: {hosts: {celery1: {}}}")
    (broken / "group_vars" / "all" / "broken.yml").write_text(
        "redis_maxmemroy: 1gb\n"
        "flower_port: '{{ nothing_of_this_name }}'\n"
        "celery_app_queues: [default, emial]\n"
    )
    (broken / "group_vars" / "workers").mkdir()
    (broken / "group_vars" / "workers" / "pools.yml").write_text(
        "celery_worker_pools: {default: {queues: [default], concurency: 2}}"
    )
    done = run_playbook(tmp_path, ROOT / "inventories" / "single", broken)
    assert done.returncode != 0
    for expected in ("redis_maxmemory?", "nothing_of_this_name", "'emial'", "concurency"):
        assert expected in done.stdout, done.stdout
    assert "4 findings. No host was contacted." in done.stdout
    assert "UNREACHABLE" not in done.stdout


@pytest.mark.parametrize("name", ["TRACK_STARTED_COST", "CHILD_COST", "LEAST_TASKS_PER_CHILD"])
def test_preflight_and_the_check_of_a_release_warn_of_the_same(name: str) -> None:
    assert getattr(preflight, name) == getattr(app_check, name)
