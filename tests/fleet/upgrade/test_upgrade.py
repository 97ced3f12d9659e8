# SPDX-License-Identifier: MIT
"""A fleet of the release before this one is upgraded as docs/upgrading.md says, while tasks are counted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.fleet.faults.ledger import Ledger
from tests.fleet.faults.report import Report
from tests.fleet.operations.at_work import Operator
from tests.fleet.support.hosts import eventually
from tests.fleet.support.inventory import ROOT, Inventory
from tests.fleet.upgrade.previous import NoHistoryError, PreviousPlays

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.fleet.support.fleet import Fleet
    from tests.fleet.support.plays import Plays, Run

pytestmark = [
    pytest.mark.upgrade,
    pytest.mark.long,
    pytest.mark.group("redis"),
    pytest.mark.group("workers"),
    pytest.mark.timeout(2400),
]

FOLDER = ROOT / ".cache" / "test" / "upgrade"
RATE = 20  # tasks a second
# Seconds that a task may take. A pool of the host has one node, which restarts, and Redis restarts as well.
WAIT = 90.0
WHY = "Redis restarts"


@pytest.fixture(scope="module")
def vault(plays: Plays) -> Path:
    """The vault of the inventory."""
    files = [ROOT / word / "group_vars" / "all" / "vault.yml" for word in plays.inventory_arguments]
    [vault] = [file for file in files if file.exists()]
    return vault


@pytest.fixture(scope="module")
def previous(fleet: Fleet, plays: Plays, vault: Path, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The release before this one deploys the fleet; the queues of its inventory, which may be fewer."""
    try:
        previous = PreviousPlays([*plays.inventory_arguments], tmp_path_factory.mktemp("previous"))
    except NoHistoryError as error:
        pytest.skip(str(error))
    for host in fleet.hosts.values():
        assert not host.sh("ls -d /opt/celery 2>/dev/null || true"), f"{host.name} has a release already"
    vault.unlink()  # this release may know of more passwords
    name = "fleet_secrets_file" if (previous.root / "galaxy.yml").exists() else "secrets_file"
    previous.run(playbook="playbooks/secrets.yml", **{name: str(vault)}).expect_success()
    hostile = ROOT / "tests" / "fleet" / "hostile_secrets.py"
    password = os.environ["ANSIBLE_VAULT_PASSWORD_FILE"]
    subprocess.run([sys.executable, hostile, vault, password], check=True)
    fleet.inventory.read()
    previous.run(playbook="site.yml").expect_success()
    fleet.reread()
    before = Inventory(previous.inventory_arguments)
    pools = [before.variables(host)["celery_worker_pools"] for host in before.group("workers")]
    return {queue for of_host in pools for pool in of_host.values() for queue in pool["queues"]}


@pytest.fixture(scope="module")
def operator(fleet: Fleet, plays: Plays, previous: set[str]) -> Iterator[Operator]:
    """An operator. The application that sends tasks keeps its copy of `ca.crt` from before."""
    ledger = Ledger(fleet)
    try:
        ledger.install()
        yield Operator(fleet, plays, ledger, Report(FOLDER), rate=RATE, wait=WAIT, queues=previous)
    finally:
        ledger.take_back()


@pytest.fixture(scope="module")
def releases() -> dict[str, str]:
    """The id of each release: `old` and `new`."""
    return {}


def running(fleet: Fleet) -> str:
    """Return the release that all nodes run, as they say, when `fleet status` has no problem."""
    ids: set[str] = set()

    def is_well() -> bool:
        told = fleet.group("workers")[0].sh("fleet-celery fleet status --json || true")
        found: dict[str, Any] = json.loads(told)
        ids.clear()
        ids.update(node["release"] for node in found["nodes"])
        assert not found["problems"], found["problems"]
        return len(ids) == 1

    eventually(is_well, timeout=120)
    return ids.pop()


def authority(fleet: Fleet) -> str:
    """Return the public key of the authority that hosts trust."""
    command = 'openssl x509 -in "$1/ca.crt" -noout -pubkey'
    [key] = {host.sh(command, host.variables["fleet_tls_dir"]) for host in fleet.hosts.values()}
    return key


def test_the_upgrade_loses_no_task(operator: Operator, vault: Path, releases: dict[str, str]) -> None:
    """All that docs/upgrading.md says, in its order; the second run changes nothing."""
    fleet = operator.fleet
    releases["old"] = running(fleet)
    key = authority(fleet)

    def act() -> Run:
        operator.play("playbooks/secrets.yml", fleet_secrets_file=str(vault)).expect_success()
        return operator.play("site.yml")

    operator.counted("upgrade", act, outage=WHY)
    releases["new"] = running(fleet)
    assert releases["new"] != releases["old"]
    assert authority(fleet) == key
    operator.play("playbooks/health.yml").expect_success()
    operator.play("playbooks/status.yml").expect_success()
    assert operator.play("site.yml").expect_success().changes == []


def test_the_rollback_loses_no_task(operator: Operator, releases: dict[str, str]) -> None:
    """The release before runs in the units, and with the access rules, of this one."""
    fleet = operator.fleet
    operator.counted(
        "rollback", lambda: operator.play("playbooks/rollback.yml", fleet_release_id=releases["old"])
    )
    assert running(fleet) == releases["old"]
    operator.play("playbooks/health.yml").expect_success()
    assert fleet.broker.denials() == []


def test_the_way_forward_loses_no_task(operator: Operator, releases: dict[str, str]) -> None:
    """site.yml releases what the inventory has."""
    fleet = operator.fleet
    operator.counted("forward again", lambda: operator.play("site.yml"))
    assert running(fleet) == releases["new"]
    assert operator.play("site.yml").expect_success().changes == []
    assert fleet.broker.denials() == []
