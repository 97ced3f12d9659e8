# SPDX-License-Identifier: MIT
"""A host that lies gets no other certificate than the inventory's, and no other host's name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography import x509

from tests.fleet.support.inventory import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.fleet.support.fleet import Fleet
    from tests.fleet.support.hosts import Host
    from tests.fleet.support.plays import Plays

LIAR = Path(__file__).with_name("liar.py")
PACKAGES = "/usr/lib/python3/dist-packages"
FOREIGN = "198.51.100.7"  # of a network that is for documentation
EVIL = "evil.example"


def local(host: Host) -> Path:
    """Return where the controller keeps the authority."""
    return ROOT / str(host.variables["fleet_local_dir"]) / "pki"


def issued(host: Host) -> x509.Certificate:
    """Return the certificate that the controller has issued for a host."""
    return x509.load_pem_x509_certificate((local(host) / "hosts" / f"{host.name}.crt").read_bytes())


def named(certificate: x509.Certificate) -> set[str]:
    """Return whom a certificate is for."""
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(name.value) for name in names}


@pytest.fixture
def victim(fleet: Fleet) -> Host:
    """The host that was taken: one of workers, and not that of the broker if there is another."""
    brokers = {host.name for host in fleet.group("redis")}
    return min(fleet.group("workers"), key=lambda host: host.name in brokers)


@pytest.fixture
def _liar(fleet: Fleet, victim: Host) -> Iterator[None]:
    """Let root on that host change what Ansible's modules answer there, and give itself an address."""
    wanted = [EVIL, FOREIGN, *(name for name in fleet.hosts if name != victim.name)]
    victim.sh('cat >"$1/liar.py"', PACKAGES, text=LIAR.read_text())
    victim.sh("cat >/run/liar.json", text=json.dumps(wanted))
    victim.sh('echo "import liar" >"$1/liar.pth"; : >/run/liar.log; chmod 0666 /run/liar.log', PACKAGES)
    victim.sh('ip address add "$1/32" dev lo', FOREIGN)
    yield
    victim.sh('ip address del "$1/32" dev lo', FOREIGN)
    victim.sh('rm -rf "$1"/liar.* "$1"/__pycache__/liar.* /run/liar.*', PACKAGES)


@pytest.mark.faults
@pytest.mark.group("workers")
@pytest.mark.usefixtures("_liar")
def test_a_host_that_lies_gets_what_the_inventory_says(fleet: Fleet, victim: Host, plays: Plays) -> None:
    """It answers with another request, and with facts named like variables, and has an address more."""
    before = issued(victim)
    certificate = local(victim) / "hosts" / f"{victim.name}.crt"
    certificate.unlink()
    present = {
        "redis": "redis.yml",
        "flower": "parts/flower.yml",
    }  # the services that present the certificate
    for part in ("parts/pki.yml", *(part for group, part in present.items() if group in victim.groups)):
        plays.run("--limit", victim.name, playbook=f"playbooks/{part}").expect_success()
    told = victim.sh("cat /run/liar.log").split()
    assert {"facts", "request"} <= set(told), told
    made = issued(victim)
    assert named(made) == named(before)
    assert not named(made) & {EVIL, FOREIGN, *(name for name in fleet.hosts if name != victim.name)}
    assert made.subject == before.subject
    assert not made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert {one.oid for one in made.extensions} == {one.oid for one in before.extensions}
    shown = victim.sh('cat "$1/host.crt"', victim.variables["fleet_tls_dir"])
    assert x509.load_pem_x509_certificate(shown.encode()) == made


def test_the_authority_permits_the_fleet_and_nobody_else(fleet: Fleet, host: Host) -> None:
    """By what each host trusts."""
    trusted = host.sh('cat "$1/ca.crt"', host.variables["fleet_tls_dir"])
    (authority,) = x509.load_pem_x509_certificates(trusted.encode())
    limits = authority.extensions.get_extension_for_class(x509.NameConstraints)
    assert limits.critical
    permitted = {str(one.value) for one in limits.value.permitted_subtrees or ()}
    assert set(fleet.hosts) <= permitted
    assert EVIL not in permitted
    assert "0.0.0.0/0" not in permitted


def test_each_host_s_certificate_is_taken_by_openssl(host: Host) -> None:
    """As strictly as it can be asked."""
    host.sh('cd "$1" && openssl verify -x509_strict -purpose sslserver -CAfile ca.crt host.crt',
            host.variables["fleet_tls_dir"])  # fmt: skip


def test_only_a_host_with_a_service_is_localhost(fleet: Fleet, host: Host) -> None:
    """Or its key would open a door on each other host's loopback."""
    assert ("localhost" in named(issued(host))) == bool({"redis", "flower"} & host.groups)
