# SPDX-License-Identifier: MIT
"""What each host runs, and what it lets in."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.fleet.support.fleet import Fleet
    from tests.fleet.support.hosts import Host

# Highest exposure that `systemd-analyze security` may see, of 10. A better sandbox lowers its number here.
EXPOSURE = {
    "redis-server.service": 1.3,
    "celery-worker@": 1.3,
    "celery-beat.service": 1.3,
    "flower.service": 1.3,
    "nginx.service": 3.4,
}


def test_units_run_and_are_enabled(fleet: Fleet, host: Host) -> None:
    """Every unit that the inventory asks for is up, and would be after a reboot."""
    units = host.units(fleet.units(host))
    assert units
    assert {unit.name for unit in units.values() if not unit.runs} == set()
    assert {unit.name for unit in units.values() if unit["UnitFileState"] != "enabled"} == set()


def test_no_other_unit_of_the_fleet(fleet: Fleet, host: Host) -> None:
    """No node, Beat, Flower or Redis runs where the inventory has none, and no unit has failed."""
    patterns = ["celery*", "flower*", "redis*", "nginx*"]
    # Without those that are not there, and only named in another unit's After=.
    listed = [
        line
        for line in host.sh('systemctl list-units --all --plain --no-legend -- "$@"', *patterns).splitlines()
        if line.split()[1] != "not-found"
    ]
    watchdog = {"celery-watchdog.timer", "celery-watchdog.service"}
    known = {*fleet.units(host), "celery.target", "celery.slice", *watchdog}
    assert {line.split()[0] for line in listed} <= known
    assert host.sh("systemctl list-units --failed --plain --no-legend") == ""


def test_nothing_else_listens(host: Host) -> None:
    """The sockets that take connections are those of the inventory: Redis with TLS, nginx, and the way in."""
    expected = set()
    if "redis" in host.groups:
        port = host.variables["redis_port"]
        expected |= {("redis-server", address.lstrip("-"), port) for address in host.variables["redis_bind"]}
    if "flower" in host.groups:
        port = host.variables["flower_port"]
        addresses = host.variables["flower_bind"] or ["0.0.0.0"] + ["::"] * has_ipv6(host)
        expected |= {("nginx", address.strip("[]"), port) for address in addresses}

    listening = set()
    for line in host.sh("ss --no-header --tcp --udp --listening --numeric --processes").splitlines():
        _, _, _, _, local, _, *users = line.split()
        address, _, port = local.rpartition(":")
        program = re.search(r'"([^"]+)"', " ".join(users))
        listening.add((program[1] if program else "", address.strip("[]").replace("*", "::"), int(port)))
    assert {entry for entry in listening if entry[0] != "sshd"} == expected


def has_ipv6(host: Host) -> bool:
    """Whether a host has an address of IPv6, besides its loopback."""
    addresses = re.findall(r" inet6 ([^/]+)/", host.sh("ip -6 -oneline address show"))
    return any(not ip_address(address).is_loopback for address in addresses)


def test_exposure(fleet: Fleet, host: Host) -> None:
    """No unit is more exposed, in systemd's own reckoning, than its budget."""
    services = [unit for unit in fleet.units(host) if unit.endswith(".service")]
    found = {}
    for unit in services:
        last = host.sh('systemd-analyze security --no-pager "$1" | tail -n 1', unit)
        found[unit] = float(re.findall(r"Overall exposure level for \S+: ([0-9.]+)", last)[0])
    over = {
        unit: exposure
        for unit, exposure in found.items()
        if exposure > next(most for name, most in EXPOSURE.items() if unit.startswith(name))
    }
    assert over == {}


@pytest.mark.group("flower")
def test_flower_has_no_port(host: Host) -> None:
    """Flower itself listens on its local socket only, which nobody but nginx may use."""
    pid = host.unit("flower.service").main_pid
    sockets = host.sh('ss --no-header --listening --processes | grep "pid=$1,"', str(pid))
    assert {line.split()[4] for line in sockets.splitlines()} == {"/run/flower/flower.sock"}
    directory = host.infra.file("/run/flower")
    assert (directory.user, directory.group, directory.mode & 0o007) == ("flower", "www-data", 0)
