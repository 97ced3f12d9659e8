# SPDX-License-Identifier: MIT
"""No secret is shown anywhere: each one is a canary, and is looked for in all that others can read.

What is searched is what the whole suite did, and a play that writes files with secrets anew, at its wordiest.
"""

from __future__ import annotations

import re
import secrets
import subprocess
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography import x509

from tests.fleet.support import canaries, scan
from tests.fleet.support.inventory import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fleet.support.canaries import Hits
    from tests.fleet.support.fleet import Fleet
    from tests.fleet.support.hosts import Host
    from tests.fleet.support.plays import Plays

pytestmark = pytest.mark.afterwards

# Which secret a service has in its environment. Nobody but root and the service itself can read it there.
OWNERS = {
    r"environment of celery-worker@.*\.service": "redis_worker",
    r"environment of celery-beat\.service": "redis_beat",
    r"environment of flower\.service": "redis_flower",
    r"environment of fleet-celery-\d+\.service": "redis_ops",
}

# Files with a secret that no running process has read, so that to lose them restarts nothing.
LOST = {
    "redis": "/etc/redis/users.acl",
    "workers": "/etc/celery/ops.env",
    "flower": "/etc/nginx/flower.htpasswd",
}


def unexpected(hits: Hits) -> Hits:
    """Return the hits that are not a secret where it belongs."""
    return {
        (name, where)
        for name, where in hits
        if not any(re.fullmatch(place, where) and name == owned for place, owned in OWNERS.items())
    }


@pytest.fixture(scope="module")
def hits(fleet: Fleet) -> Callable[[Host], Hits]:
    """What a host shows, which is searched once, with a canary that is seen in every way that is searched."""

    @cache
    def search(name: str) -> Hits:
        host, canary = fleet.hosts[name], secrets.token_hex(16)
        plant = 'systemd-run --quiet --unit=canary --setenv=CANARY="$1" sh -c "sleep 60; true" "$1"'
        host.sh(f'{plant}; echo "$1" >/var/tmp/canary; echo "$1" | systemd-cat', canary)
        try:
            return canaries.search_host(host, {**fleet.inventory.secrets, "canary": canary})
        finally:
            host.sh("systemctl stop canary.service; rm /var/tmp/canary")

    return lambda host: search(host.name)


def test_search_finds(host: Host, hits: Callable[[Host], Hits]) -> None:
    """The search finds the canary wherever it is, or that it finds nothing else would mean nothing."""
    assert {where for name, where in hits(host) if name == "canary"} >= {
        "file /var/tmp/canary",
        "file /run/systemd/transient/canary.service",
        "systemctl show",
        "systemctl cat",
        "journal",
        "command line of canary.service",
        "environment of canary.service",
    }


def test_hosts_show_no_secret(host: Host, hits: Callable[[Host], Hits]) -> None:
    """No file that all can read, no unit, no line of the journal and no process of another shows a secret."""
    assert {hit for hit in unexpected(hits(host)) if hit[0] != "canary"} == set()


def test_services_have_their_own_secret(host: Host, hits: Callable[[Host], Hits]) -> None:
    """Each service has its own password in its environment, so the test above looked at the right place."""
    owners = {"workers": "redis_worker", "beat": "redis_beat", "flower": "redis_flower"}
    found = {name for name, where in hits(host) if where.startswith("environment") and name != "canary"}
    assert found == {secret for group, secret in owners.items() if group in host.groups}


@pytest.mark.group("workers")
def test_operators_see_no_password(fleet: Fleet) -> None:
    """The commands and pages with which a fleet is looked into show settings, and no password."""
    host, node = fleet.group("workers")[0], fleet.nodes[0].celery_name
    shown = {
        "report": host.sh("fleet-celery report"),
        "inspect conf": host.sh("fleet-celery inspect conf --json"),
        "inspect stats": host.sh("fleet-celery inspect stats --json"),
    }
    if fleet.group("flower"):
        for path in (f"/worker/{node}", "/api/workers?refresh=true", "/broker", "/metrics"):
            shown[path] = fleet.flower.get(path).body.decode()
    found = {where: canaries.search(text, fleet.inventory.secrets) for where, text in shown.items()}
    assert {where: names for where, names in found.items() if names} == {}


def test_repository_has_no_secret(fleet: Fleet) -> None:
    """Git has none of the secrets, nor would get one with the next `git add`."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
    )
    patterns = canaries.encoded(fleet.inventory.secrets)
    paths = [ROOT / name.decode() for name in listed.stdout.split(b"\0") if name]
    assert len(paths) > 100
    assert {
        path for path in paths if path.is_file() and any(scan.found_in(path.read_bytes(), patterns))
    } == set()


def test_authority_stays_on_the_controller(host: Host) -> None:
    """The authority's key is on the controller, encrypted and for one user, and on no host."""
    key = Path(host.variables["pki_ca_dir"], "ca.key")
    first, second, *_ = key.read_text().splitlines()
    assert first == "-----BEGIN ENCRYPTED PRIVATE KEY-----"
    assert key.stat().st_mode & 0o777 == 0o600
    places = ["/etc", "/home", "/opt", "/root", "/run", "/srv", "/usr/local", "/var"]
    assert host.sh('grep -rslF -D skip -f - -- "$@" || true', *places, text=second) == ""


def test_certificates_suit_a_clock_that_is_behind(host: Host) -> None:
    """That of the host, and that of the authority."""
    folder = host.variables["fleet_tls_dir"]
    for name in ("host.crt", "ca.crt"):
        certificate = x509.load_pem_x509_certificate(host.sh('cat "$1"', f"{folder}/{name}").encode())
        written = float(host.sh('stat -c %Y "$1"', f"{folder}/{name}"))
        assert certificate.not_valid_before_utc.timestamp() < written - 12 * 3600, name


def test_play_shows_no_secret(fleet: Fleet, plays: Plays) -> None:
    """A play that writes secrets anew shows none: not with -vvv --diff, and in no process meanwhile."""
    before = fleet.starts()
    for group, path in LOST.items():
        for host in fleet.group(group):
            host.sh('rm "$1"', path)
    with canaries.watch(list(fleet.hosts.values()), fleet.inventory.secrets) as seen:
        run = plays.run().expect_success()

    assert len(run.changes) == sum(len(fleet.group(group)) for group in LOST), str(run)
    assert fleet.restarted(before) == set()
    assert {host: unexpected(hits) for host, hits in seen.items() if unexpected(hits)} == {}


def test_no_play_showed_a_secret(fleet: Fleet, plays: Plays) -> None:
    """Nothing that any play of this suite printed shows a secret."""
    assert plays.outputs
    assert all("TASK [" in output for output in plays.outputs)
    assert [canaries.search(output, fleet.inventory.secrets) for output in plays.outputs] == [set()] * len(
        plays.outputs
    )
