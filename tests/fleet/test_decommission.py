# SPDX-License-Identifier: MIT
"""Hosts leave the fleet while it works: no task is lost, and nothing is left of them, or on them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fleet_runtime.broker import keys

from tests.fleet.faults import trial
from tests.fleet.faults.faults import LEASE, Fault, powered_off
from tests.fleet.faults.ledger import FILE, Ledger
from tests.fleet.operations.at_work import WAIT, failures, idle
from tests.fleet.support import canaries
from tests.fleet.support.hosts import eventually
from tests.fleet.support.marks import OPERATIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.fleet.support.fleet import Fleet
    from tests.fleet.support.hosts import Host
    from tests.fleet.support.plays import Plays, Run

pytestmark = [
    *OPERATIONS,
    pytest.mark.faults,
    pytest.mark.load,
    pytest.mark.group("beat"),
    pytest.mark.group("flower"),
]

PLAYBOOK = "playbooks/decommission.yml"
# Each file that the bundle leaves has one of these names, or an owner that no longer exists. The caches that
# the lab shares with its hosts, and the test's own ledger, do not count; nor does what systemd made for units
# of a host that lost its power: it removes that as it boots, but here each boot has the machine's boot id, by
# which it decides.
SEARCH = """
    set -- -path /root/.cache -o -path /var/cache/apt -o -path "$1" -o -path '*/tmp/systemd-private-*'
    find / /run -xdev \\( "$@" \\) -prune -o \\
        \\( -iname '*celery*' -o -iname '*fleet*' -o -iname '*flower*' -o -nouser -o -nogroup \\) -print
"""


def decommission(plays: Plays, hosts: str, *arguments: str, **variables: bool) -> Run:
    """Run the playbook for some hosts."""
    limit = ("--limit", hosts) if hosts else ()
    return plays.run(*limit, *arguments, playbook=PLAYBOOK, **variables)


def left_on(host: Host) -> list[str]:
    """Return the files, users, groups and units of the bundle that a host has."""
    files = host.sh(SEARCH, FILE.rpartition("/")[0]).splitlines()
    ours = "{ getent passwd; getent group; } | grep -E '^(celery|flower|fleet)' || true"
    users = host.sh(ours).splitlines()
    units = host.sh("systemctl list-units --all --plain --no-legend 'celery*' 'flower*'").splitlines()
    return [*files, *users, *units]


def known_of(fleet: Fleet, host: str) -> list[str]:
    """Return the keys of Redis that tell of a host, by their name or by what is in them."""
    kinds = {"zset": "zrange", "set": "smembers", "hash": "hgetall"}
    found = []
    with fleet.broker.connect("admin") as client:
        wanted = (
            keys.LEASES,
            keys.NODES,
            keys.DRAINED,
            "_kombu.binding.celery.pidbox",
            "_kombu.binding_permanent.celery.pidbox",
        )
        for key in (*wanted, *client.scan_iter("unacked*"), *client.scan_iter("*@*.celery.pidbox")):
            kind = kinds.get(str(client.type(key)))
            members = getattr(client, kind)(key, *((0, -1) if kind == "zrange" else ())) if kind else ""
            if f"@{host}" in f"{key} {members}" or (key == keys.DRAINED and host in members):
                found.append(key)
    return found


def certificate(host: Host) -> list[Path]:
    """Return what the controller has of a host's certificate."""
    return sorted(Path(host.variables["fleet_local_dir"], "pki", "hosts").glob(f"{host.name}.*"))


@pytest.mark.parametrize(
    ("hosts", "words"),
    [
        ("", ["Say which host leaves the fleet", "-l HOST"]),
        ("redis", ["runs Redis, which has the tasks of the whole fleet"]),
        (
            "workers",
            ["Nobody else would consume default, email, heavy, io", "fleet_decommission_anyway=true"],
        ),
        ("beat", ["No other host runs Beat"]),
    ],
)
def test_refusals(plays: Plays, hosts: str, words: list[str]) -> None:
    """What would leave a fleet that does not work is refused, in words that an operator can act upon."""
    decommission(plays, hosts).expect_refusal(*words)


def test_what_redis_knows_counts(fleet: Fleet, plays: Plays) -> None:
    """The inventory has another host for each queue; if nothing runs there, the only one may not leave."""
    other, last = fleet.group("workers")[0], fleet.group("workers")[-1]
    other.sh("systemctl stop celery.target", timeout=120)
    decommission(plays, last.name).expect_refusal("nobody else consumes default, email, heavy, io now")


def test_a_host_that_does_not_answer_is_refused_unless_it_is_gone(fleet: Fleet, plays: Plays) -> None:
    """Then Redis and the controller forget it, and nobody tries to reach it. One that lives is not gone."""
    host = fleet.group("workers")[-1]
    lives = decommission(plays, host.name, fleet_decommission_gone=True)
    lives.expect_refusal("still runs: it has renewed its lease")
    with powered_off(host):
        decommission(plays, host.name).expect_refusal("does not answer", "fleet_decommission_gone=true")
        gone = decommission(plays, host.name, fleet_decommission_gone=True).expect_success()
        assert f"<{host.variables['ansible_host']}> ESTABLISH SSH CONNECTION" not in gone.output
        assert known_of(fleet, host.name) == []
        assert certificate(host) == []
        assert not decommission(plays, host.name, fleet_decommission_gone=True).expect_success().changes


@pytest.fixture
def leaving(fleet: Fleet, plays: Plays) -> Iterator[list[Host]]:
    """The hosts that leave: one of workers, Beat's and Flower's. They are back at the end."""
    last = [fleet.group(group)[-1] for group in ("workers", "beat", "flower")]
    yield list({host.name: host for host in last}.values())
    plays.run().expect_success()


@pytest.fixture
def ledger(fleet: Fleet, leaving: list[Host]) -> Iterator[Ledger]:
    """The ledger. It is taken away before the hosts are back, so that they are as site.yml makes them."""
    ledger = Ledger(fleet)
    try:
        ledger.install()
        yield ledger
    finally:
        ledger.take_back()
        stay = [host for host in fleet.group("workers") if host not in leaving]
        for host in stay:
            host.sh("systemctl daemon-reload && systemctl restart celery.target", timeout=300)


def test_hosts_leave_and_come_back(fleet: Fleet, plays: Plays, ledger: Ledger, leaving: list[Host]) -> None:
    """Under load. A run that ended half-way is finished by the next; check mode tells what it would do."""
    names = [host.name for host in leaving]
    worker = leaving[0]
    before = left_on(worker)
    assert "/usr/local/bin/fleet-celery" in before
    would = decommission(plays, ":".join(names), "--check", fleet_decommission_anyway=True).expect_success()
    assert {host for host, _ in would.changes} >= set(names)
    assert left_on(worker) == before
    assert fleet.is_whole()

    def happens(fleet: Fleet) -> None:
        """Take the hosts out; first the controller is lost, and then somebody is in the way."""
        worker.sh("systemd-run --quiet --unit=squatter --uid=celery sleep 3600")
        worker.sh("mkdir -p /var/lib/fleet/kept && touch /var/lib/fleet/kept/was:%2Fetc%2Fcelery%2Fapp.env")
        plays.interrupted(
            *("--limit", ":".join(names)),
            playbook=PLAYBOOK,
            when=lambda: not worker.sh("ls /etc/systemd/system | grep celery-worker || true"),
            fleet_decommission_anyway=True,
        )
        stopped = decommission(plays, ":".join(names), fleet_decommission_anyway=True)
        worker.sh("systemctl stop squatter.service")
        assert stopped.code
        assert "is currently used by process" in stopped.output, str(stopped)
        decommission(plays, ":".join(names), fleet_decommission_anyway=True).expect_success()

    # Half of the fleet does the work of all meanwhile, beside three plays: waits are not the question here.
    fault = Fault(happens, wait=4 * LEASE)
    found = trial.run(fleet, ledger, fault)
    assert [*found.broken(fault), *failures(found), *idle(found)] == []

    assert {host.name: left_on(host) for host in leaving} == {name: [] for name in names}
    assert {name: known_of(fleet, name) for name in names} == {name: [] for name in names}
    assert [certificate(host) for host in leaving] == [[], [], []]
    assert worker.sh("systemctl --failed --plain --no-legend") == ""
    again = decommission(plays, ":".join(names), fleet_decommission_anyway=True).expect_success()
    assert not again.changes, str(again)
    assert [canaries.search(output, fleet.inventory.secrets) for output in plays.outputs] == [set()] * len(
        plays.outputs
    )

    def host_added(fleet: Fleet) -> None:
        """Let the hosts be of the fleet again, as if they were new."""
        ledger.lay()
        plays.run().expect_success()

    # Half of the fleet does all of the work, and the lab's machine installs three hosts beside it.
    fault = Fault(host_added, wait=2 * WAIT)
    found = trial.run(fleet, ledger, fault)
    assert [*found.broken(fault), *failures(found), *idle(found)] == []
    assert any(run.node.endswith(f"@{worker.name}") for run in found.runs), "it takes no part"


def test_the_fleet_is_whole_again(fleet: Fleet) -> None:
    """After site.yml, the hosts are what they were."""
    eventually(fleet.is_whole, timeout=60)
