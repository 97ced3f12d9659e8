# SPDX-License-Identifier: MIT
"""What an operator does every week, while tasks are sent and counted: none is lost, fails or runs twice."""

from __future__ import annotations

import json
import re
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.fleet.faults.faults import REDIS, UNACKNOWLEDGED, powered_off
from tests.fleet.support.hosts import eventually
from tests.fleet.support.inventory import ROOT
from tests.fleet.support.marks import OPERATIONS
from tests.fleet.support.plays import Plays

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.fleet.operations.at_work import Operator
    from tests.fleet.support.clients import Producer
    from tests.fleet.support.fleet import Fleet
    from tests.fleet.support.hosts import Host
    from tests.fleet.support.plays import Run

pytestmark = [*OPERATIONS, pytest.mark.load, pytest.mark.timeout(1200)]

APP = ("workers", "beat", "flower")  # the groups of hosts that have the app
BREAK = "\n\n# --- broken on purpose ---\n"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of the demo app's source."""
    ignore = shutil.ignore_patterns("__pycache__")
    return shutil.copytree(ROOT / "app" / "demo", tmp_path / "demo", ignore=ignore)


def append(source: Path, text: str) -> str:
    """Make another version of the app, and return its source for the inventory."""
    with (source / "src/demo/app.py").open("a") as file:
        file.write(text)
    return str(source)


def status(fleet: Fleet) -> dict[str, Any]:
    """Return what `fleet status` says, which fails if anything is wrong."""
    said = fleet.group("workers")[-1].sh("fleet-celery fleet status --json || true")
    found: dict[str, Any] = json.loads(said)
    return found


def releases(fleet: Fleet) -> set[str]:
    """Return which releases the hosts of workers run, by their nodes' own word."""
    return {said["release"] for said in status(fleet)["nodes"]}


def starts(fleet: Fleet, hosts: list[Host]) -> dict[tuple[str, str], str]:
    """Return when each unit of some hosts was started."""
    names = {host.name for host in hosts}
    return {place: start for place, start in fleet.starts().items() if place[0] in names}


# --- releases that work ---


def test_release_and_rollback(operator: Operator, source: Path) -> None:
    """A new version, then the one before, then the same by name: each with a run's cost printed."""
    fleet = operator.fleet
    [old] = releases(fleet)
    operator.variables["celery_app_source"] = append(source, "\nVERSION = 2\n")
    run = operator.counted("release", lambda: operator.play("playbooks/release.yml"))
    eventually(lambda: len(releases(fleet)) == 1, timeout=60)
    [new] = releases(fleet)
    assert new != old
    assert current(fleet, "beat") == current(fleet, "flower") == {new}
    groups = {host.name: name for name in APP for host in fleet.group(name)}
    switched = [groups[host] for host, task in run.changes if "Switch to the release" in task]
    assert switched == [name for name in APP for _ in fleet.group(name)]
    costs = [float(cost) for cost in re.findall(r"Ansible\s+([0-9.]+) s", run.output)]
    assert len(costs) == len(fleet.group("workers"))
    print(f"\nAnsible itself took for each host, in seconds: {costs}")
    assert max(costs) <= 3, costs

    operator.counted("rollback", lambda: operator.play("playbooks/rollback.yml"))
    assert releases(fleet) == {old}
    operator.play("playbooks/rollback.yml", fleet_release_id=new[:6]).expect_success()
    assert releases(fleet) == {new}


def test_check_mode_says_what_would_restart(operator: Operator, source: Path) -> None:
    """And changes nothing."""
    fleet = operator.fleet
    before = fleet.starts()
    version = append(source, "\nVERSION = 3\n")
    run = operator.play("playbooks/release.yml", "--check", celery_app_source=version).expect_success()
    assert fleet.restarted(before) == set()
    restart = "Restart the nodes whose files have changed"
    told = {host for host, task in run.changes if restart in task}
    assert told == {host.name for host in fleet.group("workers")}
    assert listed(run, "Would restart") == sorted(node.unit for node in fleet.nodes)


def listed(run: Run, what: str) -> list[str]:
    """Return the units of all hosts that a run in check mode shows."""
    return sorted(re.findall(r"- (\S+)", "".join(re.findall(rf"{what}:((?:\s+- \S+)+)", run.output))))


def units_of(fleet: Fleet, host: Host) -> list[str]:
    """Return the units of a host's nodes."""
    return sorted(node.unit for node in fleet.nodes if node.host.name == host.name)


def test_a_release_that_is_interrupted(operator: Operator, source: Path) -> None:
    """The controller is lost while a host is in the middle of it; site.yml finishes the work."""
    fleet = operator.fleet
    operator.variables["celery_app_source"] = append(source, "\nVERSION = 4\n")
    [old] = releases(fleet)

    def act() -> Run:
        operator.interrupted("playbooks/release.yml")
        eventually(lambda: releases(fleet) != {old}, timeout=60)  # the node had just been told to start
        return operator.play("site.yml")

    operator.counted("interrupted release", act)
    eventually(lambda: len(releases(fleet)) == 1, timeout=60)
    assert releases(fleet) != {old}
    assert operator.play("site.yml").expect_success().changes == []


def test_a_rollback_that_is_interrupted(operator: Operator) -> None:
    """The next one goes on to where that one went, and not back; no host reaches more than the fleet."""
    fleet = operator.fleet
    [now] = releases(fleet)

    def act() -> Run:
        operator.interrupted("playbooks/rollback.yml")
        eventually(lambda: releases(fleet) != {now}, timeout=60)  # the node had just been told to start
        return operator.play("playbooks/rollback.yml")

    with offline(fleet):
        operator.counted("interrupted rollback", act)
    eventually(lambda: len(releases(fleet)) == 1, timeout=60)
    assert releases(fleet) != {now}
    operator.play("playbooks/rollback.yml").expect_success()
    assert releases(fleet) == {now}, "the next one goes back"


@contextmanager
def offline(fleet: Fleet) -> Iterator[None]:
    """Cut the hosts off from all but their own network."""
    routes = {name: host.sh("ip route show default").strip() for name, host in fleet.hosts.items()}
    try:
        for host in fleet.hosts.values():
            host.sh("ip route del default")
        yield
    finally:
        for name, route in routes.items():
            fleet.hosts[name].sh("ip route replace $1", route)


def app_dir(host: Host) -> str:
    """Return the directory of the app's releases on a host."""
    return f"/opt/celery/{host.variables['celery_app_name']}"


def current(fleet: Fleet, *groups: str) -> set[str]:
    """Return the releases that hosts of some groups have been switched to."""
    hosts = [host for group in groups for host in fleet.group(group)]
    return {host.sh('basename "$(readlink "$1/current")"', app_dir(host)).strip() for host in hosts}


def test_a_host_that_vanishes(operator: Operator, source: Path) -> None:
    """The run ends there, whatever comes after that host; the next one finishes the work."""
    fleet = operator.fleet
    first, *_, last = fleet.group("workers")
    [old] = releases(fleet)
    before = fleet.starts()
    operator.variables["celery_app_source"] = append(source, "\nVERSION = 6\n")
    with ThreadPoolExecutor(max_workers=1) as pool:
        running = pool.submit(operator.play, "playbooks/release.yml")
        eventually(lambda: bool(fleet.restarted(before)), timeout=120)
        with powered_off(last):
            run = running.result()
            assert run.code
            assert f"{last.name} was lost" in run.output or "UNREACHABLE" in run.output
            assert {host for host, task in run.changes if "Switch" in task} == {first.name}
            assert current(fleet, "beat") | current(fleet, "flower") == {old}
            operator.play("playbooks/health.yml", f"--limit=!{last.name}").expect_success()
    last.sh("systemctl is-system-running --wait || true", timeout=120)
    operator.play("playbooks/release.yml").expect_success()
    eventually(lambda: len(releases(fleet)) == 1, timeout=60)
    assert current(fleet, "beat") == current(fleet, "flower") == releases(fleet) != {old}
    eventually(fleet.is_whole, timeout=60)


def test_a_release_that_is_taken_back_halfway(operator: Operator, source: Path) -> None:
    """An operator sees that it was none, stops it, and has all hosts run what they ran."""
    fleet = operator.fleet
    [old] = releases(fleet)
    version = append(source, "\nVERSION = 5\n")
    hosts = [host for name in APP for host in fleet.group(name)]
    for host in hosts:  # as a rollback leaves it that was interrupted, and is of no interest any more
        host.sh('cd "$1" && ln -sfn "$(readlink current)" rollback', app_dir(host))

    def act() -> Run:
        operator.interrupted("playbooks/release.yml", celery_app_source=version)
        eventually(lambda: len(releases(fleet)) > 1, timeout=60)
        assert [host.name for host in hosts if "rollback" in host.sh('ls "$1"', app_dir(host))] == []
        return operator.play("playbooks/rollback.yml")

    operator.counted("release taken back", act)
    eventually(lambda: releases(fleet) == {old}, timeout=60)
    links = [host.sh('ls "$1"', app_dir(host)) for host in hosts]
    assert [text for text in links if "current" not in text or "rollback" in text] == []


# --- releases that do not ---

SICK = {
    # On one host only, and not the first: all of them are asked before anything is switched.
    "import": (
        "import socket\n\nif socket.gethostname() == 'LAST':\n    raise ImportError('no such driver')\n",
        "no such driver",
    ),
    "start": (
        "import os\n\nif os.environ.get('FLEET_COMPONENT') == 'worker':\n"
        "    raise RuntimeError('no license')\n",
        "no license",
    ),
    "consumption": (
        "from celery import signals\n\n\n@signals.worker_ready.connect\ndef never(sender, **_):\n"
        "    for name in list(sender.app.amqp.queues.consume_from):\n"
        "        sender.cancel_task_queue(name)\n",
        "consumes nothing",
    ),
    "tasks": (
        "import time\nfrom celery.loaders.app import AppLoader\n\n\ndef hang(self, task_id, task):\n"
        "    if task.name == 'fleet.proof':\n        time.sleep(60)\n\n\nAppLoader.on_task_init = hang\n",
        "has failed its self-test|did not pass its self-test",  # whichever ends sooner
    ),
}


@pytest.mark.parametrize("kind", SICK)
def test_a_release_that_is_broken(operator: Operator, source: Path, kind: str) -> None:
    """It stops at the first host, which runs the old one again; the others were not touched."""
    fleet, (text, said) = operator.fleet, SICK[kind]
    untouched = fleet.group("workers")[0 if kind == "import" else 1 :]
    before, others, linked = releases(fleet), starts(fleet, untouched), current(fleet, *APP)
    version = append(source, BREAK + text.replace("LAST", fleet.group("workers")[-1].name))
    run = operator.counted(
        f"broken {kind}",
        lambda: operator.play(
            "playbooks/release.yml", celery_app_source=version, celery_worker_health_retries=3
        ),
        succeeds=False,
    )
    assert run.code != 0
    told = run.output[run.output.rindex("fatal: [") :]
    first = fleet.group("workers")[-1 if kind == "import" else 0].name
    assert re.search(said, told), told
    assert first in told
    assert kind == "import" or "Hosts whose turn had not come were not touched." in told
    assert kind == "import" or "--- journal of celery-worker@" in told
    assert starts(fleet, untouched) == others
    assert current(fleet, *APP) == linked
    eventually(lambda: releases(fleet) == before, timeout=60)
    eventually(fleet.is_whole, timeout=60)


def test_a_release_with_a_broken_part(operator: Operator, source: Path) -> None:
    """Beat runs the old one again, and the workers the new one, until they are rolled back."""
    fleet, (text, said), component = operator.fleet, SICK["start"], "beat"
    [old] = releases(fleet)
    version = append(source, BREAK + text.replace("'worker'", f"'{component}'"))
    run = operator.counted(
        f"broken {component}",
        lambda: operator.play(
            "playbooks/release.yml", celery_app_source=version, flower_health_retries=3, fleet_batches=1
        ),
        succeeds=False,
    )
    assert run.code != 0
    assert said in run.output
    assert current(fleet, component) == {old} != releases(fleet)
    eventually(fleet.is_whole, timeout=60)
    operator.counted("broken part rolled back", lambda: operator.play("playbooks/rollback.yml"))
    assert current(fleet, *APP) == releases(fleet) == {old}
    eventually(fleet.is_whole, timeout=60)


def test_a_batch_of_several_is_put_back_whole(operator: Operator, source: Path) -> None:
    """One host of it works with other pools already, and another one does not: both have the old ones."""
    fleet = operator.fleet
    before, pools = releases(fleet), fleet.group("workers")[0].variables["celery_worker_pools"]
    text, said = SICK["start"]
    sick = text.replace(
        "if ", f"import socket\nif socket.gethostname() == '{fleet.group('workers')[-1].name}' and "
    )
    others = {{"io": "files"}.get(name, name): options for name, options in pools.items()}
    run = operator.play(
        "site.yml",
        fleet_batches=2,
        celery_app_source=append(source, BREAK + sick),
        celery_worker_pools=others,
        celery_worker_health_retries=3,
    )
    assert run.code != 0
    told = run.output[run.output.rindex("fatal: [") :]
    assert said in told
    assert "undefined" not in told, "the host that is well has nothing to say"
    eventually(lambda: releases(fleet) == before, timeout=60)
    eventually(fleet.is_whole, timeout=60)
    assert not any(node["name"].startswith("files-") for node in status(fleet)["nodes"])
    starts_before = fleet.starts()
    operator.play("site.yml").expect_success()
    assert fleet.restarted(starts_before) == set(), "what was put back is what the inventory has"


# --- the number of nodes ---


def test_scale_up_and_down(operator: Operator) -> None:
    """More nodes of a pool, and another pool; then fewer, by the inventory alone."""
    fleet = operator.fleet
    pools = fleet.group("workers")[0].variables["celery_worker_pools"]
    grown = {**pools["default"], "nodes": pools["default"]["nodes"] + 1}
    more = {**pools, "default": grown, "extra": {"queues": ["default"]}}
    added = {f"{name}@{host.name}" for name in ("default-3", "extra-1") for host in fleet.group("workers")}
    operator.counted("scale up", lambda: operator.play("site.yml", celery_worker_pools=more))
    assert added <= {node["name"] for node in status(fleet)["nodes"]}
    operator.counted("scale down", lambda: operator.play("site.yml"))
    assert not added & {node["name"] for node in status(fleet)["nodes"]}


def test_a_queue_comes_and_goes(operator: Operator, producer: Producer) -> None:
    """By the inventory. Who consumes it may do so until its nodes are others; what is left in it is told."""
    fleet = operator.fleet
    redis_host = fleet.group("redis")[0].name
    pools = fleet.group("workers")[0].variables["celery_worker_pools"]
    queues = [*pools["default"].get("queues", ["default"]), "reports"]
    more = {**pools, "default": {**pools["default"], "queues": queues}}
    operator.counted("queue added", lambda: operator.play("site.yml", celery_worker_pools=more))
    assert "reports" in queues_that_redis_lets_use(fleet)
    producer.send("demo.tasks.greet", "reports", queue="reports", countdown=3600)

    removed = operator.counted("queue removed", lambda: operator.play("site.yml"), succeeds=False)
    assert removed.code
    assert "no pool consumes them any more: reports (1)." in " ".join(removed.output.split())
    assert "reports" in queues_that_redis_lets_use(fleet)
    fleet.group("workers")[0].sh("fleet-celery purge --force --queues=reports")
    assert {host for host, _ in operator.play("site.yml").expect_success().changes} == {redis_host}
    assert "reports" not in queues_that_redis_lets_use(fleet)
    assert operator.play("site.yml").expect_success().changes == []


def queues_that_redis_lets_use(fleet: Fleet) -> set[str]:
    """Return the keys that nodes may use, by the running server's word."""
    with fleet.broker.connect("admin") as client:
        patterns: Any = client.acl_getuser("worker")["keys"]  # a text, or a list of newer clients
    words = patterns.split() if isinstance(patterns, str) else patterns
    return {word.removeprefix("~") for word in words}


# --- hosts out of service ---


def test_drain_and_undrain(operator: Operator) -> None:
    """A host that was drained stays so, through site.yml and a reboot, until it is undrained."""
    fleet = operator.fleet
    host = fleet.group("workers")[0]
    this = f"--limit={host.name}"

    def is_marked() -> bool:
        return "drained" in host.sh("ls /etc/celery").split()

    def drain() -> Run:
        return operator.play("playbooks/drain.yml", this, "-e", "fleet_drain_reason='a new disk'")

    def drain_in_two() -> Run:
        operator.interrupted(
            "playbooks/drain.yml", this, "-e", "fleet_drain_reason='a new disk'", when=is_marked
        )
        return drain()

    def undrain_in_two() -> Run:
        operator.interrupted("playbooks/undrain.yml", this, when=lambda: not is_marked())
        return operator.play("playbooks/undrain.yml", this)

    operator.play("playbooks/drain.yml", this, "-e", "fleet_drain_reason=a new disk").expect_refusal(
        '"new disk"'
    )
    operator.counted("drain", drain)
    assert not nodes_of(fleet, host)
    [mark] = status(fleet)["drained"]
    assert (mark["host"], mark["why"]) == (host.name, "a new disk")
    seen = operator.play("playbooks/status.yml")
    assert re.search(rf"{host.name} .*a new disk", seen.output)
    assert seen.changes == []
    again = drain().expect_success()
    assert again.changes == []
    others = ",".join(other.name for other in fleet.group("workers")[1:])
    operator.play("playbooks/drain.yml", f"--limit={others}").expect_refusal("Nobody would consume")
    assert operator.play("site.yml").expect_success().changes == []
    host.sh(
        """mark=$(readlink -f /etc/celery/drained) && rm "$mark" && systemctl start celery.target
        echo 'half done' >"$mark" && fleet-celery fleet drained "$1" --no""",
        host.name,
        timeout=120,
    )
    operator.play("site.yml").expect_success()
    assert not nodes_of(fleet, host), "a drain that was interrupted is finished"
    assert [mark["why"] for mark in status(fleet)["drained"]] == ["half done"]
    with powered_off(host):
        operator.play("playbooks/health.yml", f"--limit=!{host.name}").expect_success()
    host.sh("systemctl is-system-running --wait || true", timeout=120)
    host.sh("systemctl start celery.target 'celery-worker@default-1.service'")
    assert not nodes_of(fleet, host), "the unit itself refuses"
    operator.play("playbooks/rotate_certificates.yml").expect_success()  # Flower shows the others

    would = operator.play("playbooks/undrain.yml", "--check", this).expect_success()
    assert listed(would, "Would start") == units_of(fleet, host)
    assert not nodes_of(fleet, host)
    operator.counted("undrain", lambda: operator.play("playbooks/undrain.yml", this))
    assert nodes_of(fleet, host)
    assert status(fleet)["drained"] == []
    eventually(fleet.is_whole, timeout=60)
    operator.counted("interrupted drain", drain_in_two)
    assert not nodes_of(fleet, host)
    assert [mark["host"] for mark in status(fleet)["drained"]] == [host.name]
    operator.counted("interrupted undrain", undrain_in_two)
    assert status(fleet)["drained"] == []
    eventually(fleet.is_whole, timeout=60)
    seen = operator.play("playbooks/status.yml").expect_success()
    for one in fleet.group("workers"):
        assert re.search(rf"\b{one.name} +workers +yes ", seen.output), str(seen)


def nodes_of(fleet: Fleet, host: Host) -> list[str]:
    """Return the nodes of a host that live, by Redis."""
    names = [node["name"] for node in status(fleet)["nodes"]]
    return [name for name in names if name.endswith(f"@{host.name}")]


def test_the_whole_fleet_is_not_drained_by_mistake(operator: Operator) -> None:
    """Neither without a limit, nor by naming all who consume a queue."""
    operator.play("playbooks/drain.yml").expect_refusal("Name the hosts")
    first, *_, last = operator.fleet.group("workers")
    everyone = ",".join(host.name for host in operator.fleet.group("workers"))
    operator.play("playbooks/drain.yml", f"--limit={everyone}").expect_refusal("Nobody would consume")
    first.sh("systemctl stop celery.target", timeout=120)
    try:
        refused = operator.play("playbooks/drain.yml", f"--limit={last.name}")
        refused.expect_refusal("nobody else consumes", "fleet_drain_anyway=true")
    finally:
        first.sh("systemctl start celery.target", timeout=120)
    eventually(operator.fleet.is_whole, timeout=60)


def test_restart(operator: Operator) -> None:
    """Of all nodes, batch after batch; then of a pool."""
    fleet = operator.fleet
    before = fleet.starts()
    operator.counted("restart", lambda: operator.play("playbooks/restart.yml"))
    nodes = {(host.name, node.unit) for node in fleet.nodes for host in [node.host]}
    assert fleet.restarted(before) == nodes
    before = fleet.starts()

    def interrupted() -> Run:
        operator.interrupted("playbooks/restart.yml", by=signal.SIGINT)
        return operator.play("playbooks/restart.yml")

    operator.counted("interrupted restart", interrupted)
    assert fleet.restarted(before) == nodes
    eventually(fleet.is_whole, timeout=60)
    before = fleet.starts()
    operator.play("playbooks/restart.yml", fleet_restart_pools=["heavy"]).expect_success()
    assert {unit for _, unit in fleet.restarted(before)} == {"celery-worker@heavy-1.service"}
    operator.play("playbooks/restart.yml", fleet_restart_pools="hevy").expect_refusal("hevy")
    beat = fleet.group("beat")[0].name
    operator.play("playbooks/restart.yml", f"--limit={beat}").expect_refusal("is of the tier workers")
    for playbook in ("drain", "undrain"):
        operator.play(f"playbooks/{playbook}.yml", f"--limit={beat}").expect_refusal("a host of workers")
    unlocked = fleet.group("redis")[0].sh("ls -A /var/lib/fleet 2>/dev/null || true")
    assert unlocked == "", "what is refused takes no lock"


@pytest.mark.parametrize(
    ("tier", "units", "twice"),
    [
        ("beat", {"celery-beat.service"}, ""),
        ("flower", {"flower.service"}, ""),
        ("redis", {REDIS}, UNACKNOWLEDGED),
    ],
)
def test_restart_of_a_tier(operator: Operator, tier: str, units: set[str], twice: str) -> None:
    """What belongs to it, and nothing else."""
    fleet = operator.fleet
    before = fleet.starts()
    operator.counted(
        f"restart {tier}",
        lambda: operator.play("playbooks/restart.yml", fleet_restart_tier=tier),
        twice=twice,
    )
    assert {unit for _, unit in fleet.restarted(before)} == units
    eventually(fleet.is_whole, timeout=60)


@pytest.mark.parametrize(
    ("playbook", "what"),
    [
        ("restart", "Would restart"),
        ("drain", "Would stop"),
        ("rollback", "Would restart"),
    ],
)
def test_check_mode_of_others(operator: Operator, playbook: str, what: str) -> None:
    """They say what they would do to a host, and leave it alone."""
    fleet = operator.fleet
    host, before = fleet.group("workers")[0], fleet.starts()
    release = host.sh(
        'basename "$(readlink "$1/previous")"', app_dir(host)
    ).strip()  # newer ones were put back
    run = operator.play(
        f"playbooks/{playbook}.yml", "--check", f"--limit={host.name}", fleet_release_id=release
    )
    run.expect_success()
    assert listed(run, what) == units_of(fleet, host), str(run)
    assert fleet.restarted(before) == set()
    assert fleet.is_whole()


# --- two operators ---


def test_the_second_operator_is_refused(operator: Operator) -> None:
    """Who was first is said; a run on another controller that is over can be taken over from."""
    fleet = operator.fleet
    host = fleet.group("redis")[0]
    other = (
        '{"id": "x", "who": "ann@desk", "what": "release.yml", "since": "2026-01-01 00:00:00 UTC", '
        '"machine": "another", "process": 1, "began": "1"}'
    )
    host.sh("mkdir -p /var/lib/fleet && cat >/var/lib/fleet/lock", text=other)
    operator.play("playbooks/restart.yml", fleet_restart_tier="beat").expect_refusal(
        "ann@desk runs release.yml on this fleet since 2026-01-01 00:00:00 UTC.", "fleet_lock_takeover"
    )
    operator.play(
        "playbooks/restart.yml", fleet_restart_tier="beat", fleet_lock_takeover=True
    ).expect_success()
    assert host.sh("ls -A /var/lib/fleet").split() == []


def test_two_operators_at_once(operator: Operator, plays: Plays, tmp_path: Path) -> None:
    """The second run is refused while the first goes on, which does not notice."""
    fleet = operator.fleet
    other = Plays(plays.inventory_arguments, tmp_path, plays.outputs)
    with ThreadPoolExecutor(max_workers=1) as pool:
        first = pool.submit(operator.play, "playbooks/restart.yml")
        eventually(lambda: fleet.group("redis")[0].sh("ls -A /var/lib/fleet").strip() == "lock", timeout=60)
        second = other.run(playbook="playbooks/restart.yml", fleet_restart_tier="beat")
        assert not first.done(), "the first was over too soon"
        second.expect_refusal("runs restart.yml on this fleet since", "Nothing was changed.")
        first.result().expect_success()
    assert fleet.is_whole()
