# SPDX-License-Identifier: MIT
"""Redis is upgraded under load, with one restart and no task lost; or else the way back works."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.fleet.faults import trial
from tests.fleet.faults.faults import REDIS, UNACKNOWLEDGED, Fault
from tests.fleet.faults.ledger import Ledger
from tests.fleet.support import canaries
from tests.fleet.support.hosts import eventually
from tests.fleet.support.marks import OPERATIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.fleet.support.fleet import Fleet
    from tests.fleet.support.hosts import Host
    from tests.fleet.support.plays import Plays, Run

pytestmark = [*OPERATIONS, pytest.mark.faults]

PLAYBOOK = "playbooks/upgrade_redis.yml"
PACKAGES = ("redis-server", "redis-tools")
SNAPSHOTS = "/var/lib/redis-snapshots"
WAIT = 120  # seconds that a task may take meanwhile
BALLAST = 100 * 1024 * 1024  # bytes
# An older version: the archive's own if it has one, else the same program under a version that is less.
GO_BACK = """set -e
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq update
    now=$(dpkg-query -Wf '${Version}' redis-server)
    old=$(apt-cache madison redis-server | cut -d'|' -f2 | tr -d ' ' | uniq | sed -n 2p)
    if [ "$old" ]; then
        set -- "redis-server=$old" "redis-tools=$old"
    else
        old="$now~0"
        rm -rf /root/older && mkdir /root/older && cd /root/older
        apt-get -qq download redis-server redis-tools 2>/dev/null
        set --
        for name in redis-server redis-tools; do
            dpkg-deb -R "$name"_*.deb "$name"
            sed -i "s/^Version: .*/Version: $old/; s/(= $now)/(= $old)/" "$name/DEBIAN/control"
            dpkg-deb -b "$name" "$name.deb" >/dev/null
            set -- "$@" "./$name.deb"
        done
    fi
    apt-get -qq install --allow-downgrades --allow-change-held-packages -o Dpkg::Options::=--force-confold \\
        "$@" >/dev/null
    apt-mark hold redis-server redis-tools >/dev/null
    echo "$old"
"""
# As an upgrade leaves a host that is interrupted between the packages and the restart.
INSTALL_ONLY = """set -e
    printf '#!/bin/sh\\nexit 101\\n' >/usr/sbin/policy-rc.d
    chmod 0755 /usr/sbin/policy-rc.d
    trap 'rm /usr/sbin/policy-rc.d' EXIT
    DEBIAN_FRONTEND=noninteractive apt-get -qq install --allow-change-held-packages \\
        -o Dpkg::Options::=--force-confold redis-server redis-tools >/dev/null
"""
# A version that starts nothing.
BROKEN = "/run/systemd/system/redis-server.service.d/zz-broken.conf"


@pytest.fixture
def broker(fleet: Fleet) -> Host:
    """The host of Redis."""
    return fleet.group("redis")[0]


@pytest.fixture
def older(fleet: Fleet, broker: Host) -> str:
    """Let the host have an older version; return which."""
    fleet.broker.keep_denials()
    version = broker.sh(GO_BACK, timeout=300).strip()
    eventually(fleet.is_whole, timeout=60)
    assert installed(broker) == version
    return version


@pytest.fixture
def ledger(fleet: Fleet) -> Iterator[Ledger]:
    """The ledger, in which the nodes write."""
    ledger = Ledger(fleet)
    try:
        ledger.install()
        yield ledger
    finally:
        ledger.remove()


def upgrade(plays: Plays, *arguments: str, **variables: str) -> Run:
    """Run the playbook."""
    return plays.run(*arguments, playbook=PLAYBOOK, **variables)


def installed(broker: Host) -> str:
    """Return the version that a host has, which must be on hold."""
    told = packages(broker)
    assert {state for _, state in told} == {"hold ok installed"}
    [version] = {version for version, _ in told}
    return version


def packages(broker: Host) -> list[tuple[str, str]]:
    """Return the version and the state of each package."""
    told = broker.sh("dpkg-query -Wf '${Version} ${Status}\\n' \"$@\"", *PACKAGES).splitlines()
    return [(line.split()[0], line.split(" ", 1)[1]) for line in told]


def test_packages_are_held(broker: Host) -> None:
    """An upgrade of the host's packages leaves Redis alone."""
    assert installed(broker)
    planned = broker.sh("apt-get --simulate dist-upgrade")
    assert "Inst redis" not in planned


def test_nothing_to_upgrade(fleet: Fleet, plays: Plays) -> None:
    """It says so, and changes nothing."""
    before = fleet.starts()
    done = upgrade(plays).expect_success()
    assert "There is nothing to upgrade" in " ".join(done.output.split())
    assert not done.changes
    assert fleet.restarted(before) == set()


def test_bad_versions(plays: Plays) -> None:
    """A version that nobody has, and one whose name is misspelt, are refused."""
    upgrade(plays, redis_version="5:99-1").expect_refusal("the archive has no redis-server 5:99-1")
    upgrade(plays, redis_verison="5:7").expect_refusal("redis_verison", "redis_version")


def test_upgrade(
    fleet: Fleet, plays: Plays, broker: Host, older: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under load. First a Redis that is nearly full is refused; then check mode says what would be done."""
    with nearly_full(fleet):
        upgrade(plays).expect_refusal("not fit for an upgrade", "more than 80 %", "redis_maxmemory")
    # It is told of, whatever the inventory asks for.
    for version, remedy in (("", f"{PLAYBOOK} installs it"), (older, f"{older} is asked for")):
        told = plays.run(
            "-l", broker.name, playbook="playbooks/health.yml", redis_version=version
        ).expect_success()
        assert f"redis-server {older} is on hold, and the archive has" in " ".join(told.output.split())
        assert remedy in " ".join(told.output.split())
    before = fleet.starts()
    would = upgrade(plays, "--check").expect_success()
    assert {"Install the packages", "Restart Redis"} <= {
        task.rpartition(" : ")[2] for _, task in would.changes
    }
    assert (installed(broker), fleet.restarted(before)) == (older, set())

    if (
        len(fleet.group("workers")) == 1
    ):  # which has the play's work to do, too, and is asked for probes at its end
        monkeypatch.setattr(trial, "RATE", 20)
    # The play may be on the machine of the nodes, and take from them what they need: waits do not count.
    fault = Fault(lambda _: run(upgrade(plays)), wait=WAIT, twice=UNACKNOWLEDGED)
    found = trial.run(fleet, ledger, fault)
    print(f"\n{found.row()}")
    assert found.broken(fault) == []
    assert installed(broker) != older
    assert fleet.restarted(before) == {(broker.name, REDIS)}
    assert broker.sh('stat -c "%a %U" "$1"', SNAPSHOTS) == "700 root\n"
    assert len(broker.sh('ls "$1/packages"', SNAPSHOTS).split()) in (0, len(PACKAGES))
    assert not upgrade(plays).expect_success().changes
    assert [canaries.search(output, fleet.inventory.secrets) for output in plays.outputs] == [set()] * len(
        plays.outputs
    )


def run(done: Run) -> None:
    """Expect a run to have ended well."""
    done.expect_success()


@contextmanager
def nearly_full(fleet: Fleet) -> Iterator[None]:
    """Let Redis have little more memory than it uses, and enough in it that connections do not count."""
    with fleet.broker.connect("admin") as client:
        before = client.config_get("maxmemory")["maxmemory"]
        client.setrange("ballast", BALLAST - 1, "x")
        client.config_set("maxmemory", client.info("memory")["used_memory"] * 100 // 90)
        try:
            yield
        finally:
            client.config_set("maxmemory", before)
            client.delete("ballast")


def test_an_interrupted_upgrade_is_finished(fleet: Fleet, plays: Plays, broker: Host, older: str) -> None:
    """The packages are there, and the Redis of before still runs: the next run restarts and proves it."""
    before = fleet.starts()
    broker.sh(INSTALL_ONLY, timeout=300)
    assert older not in dict(packages(broker))
    assert fleet.restarted(before) == set()
    upgrade(plays).expect_success()
    assert installed(broker) != older
    assert fleet.restarted(before) == {(broker.name, REDIS)}
    assert not upgrade(plays).expect_success().changes


def test_an_upgrade_whose_controller_is_lost(fleet: Fleet, plays: Plays, broker: Host, older: str) -> None:
    """While the packages are installed: the next run ends what it began, with one restart."""
    before = fleet.starts()
    plays.interrupted(playbook=PLAYBOOK, when=lambda: older not in dict(packages(broker)))
    upgrade(plays).expect_success()
    assert installed(broker) != older
    assert fleet.restarted(before) == {(broker.name, REDIS)}
    assert not upgrade(plays).expect_success().changes


def test_the_way_back(fleet: Fleet, plays: Plays, broker: Host, older: str) -> None:
    """A new Redis that does not come up: the commands that the message has lead back, and nothing is lost."""
    fleet.broker.keep_denials()
    with fleet.broker.connect("admin") as client:
        client.set("canary:upgrade", "1")
    broker.sh('mkdir -p "${1%/*}" && printf "[Service]\\nExecStart=\\nExecStart=/bin/false\\n" >"$1"', BROKEN)
    broker.sh("systemctl daemon-reload")
    try:
        failed = upgrade(plays)
    finally:
        broker.sh('rm "$1" && systemctl daemon-reload', BROKEN)
    assert failed.code != 0
    assert "journal of redis-server.service" in failed.output
    message = re.sub(r"\n +", "\n  ", failed.output.replace("\\\n", ""))
    back = message.rpartition("go back to")[2].partition("The data stay as they are")[0]
    commands = [line.strip() for line in back.splitlines() if re.match(r" *(systemctl|apt)", line)]
    assert len(commands) == 4, back
    broker.sh("\n".join(["set -e", "export DEBIAN_FRONTEND=noninteractive", *commands]), timeout=300)

    eventually(fleet.is_whole, timeout=60)
    assert installed(broker) == older
    with fleet.broker.connect("admin") as client:
        assert client.getdel("canary:upgrade") == "1"
    upgrade(plays).expect_success()
    assert installed(broker) != older
