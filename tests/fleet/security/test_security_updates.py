# SPDX-License-Identifier: MIT
"""Redis is on hold, so nothing installs its security updates: an operator is told of each."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.fleet.support.fleet import Fleet
    from tests.fleet.support.hosts import Host
    from tests.fleet.support.plays import Plays

pytestmark = [pytest.mark.group("redis"), pytest.mark.long]

NEW = "99:1-1"
LIST = "/etc/apt/sources.list.d/pocket.list"
OPTIONS = f"-o Dir::Etc::sourcelist={LIST} -o Dir::Etc::sourceparts=- -o APT::Get::List-Cleanup=0"
# An archive like that of the distribution's security updates, with a newer Redis.
OFFER = f"""set -e
    folder=/srv/pocket/dists/pocket-security/main/binary-$(dpkg --print-architecture)
    mkdir -p "$folder"
    for name in redis-server redis-tools; do
        printf '%s\\n' "Package: $name" 'Version: {NEW}' 'Architecture: all' "Filename: $name.deb" \\
            'Size: 1' "SHA256: $(printf %064d 0)" ''
    done >"$folder/Packages"
    echo 'deb [trusted=yes] file:/srv/pocket pocket-security main' >{LIST}
    apt-get -qq update {OPTIONS} -o Acquire::AllowInsecureRepositories=true
"""
WITHDRAW = f"rm -rf /srv/pocket {LIST} /var/lib/apt/lists/*_srv_pocket_*"


@contextmanager
def update_is_there(host: Host) -> Iterator[None]:
    """Offer a security update of Redis meanwhile."""
    try:
        host.sh(OFFER)
        assert "pocket-security/main" in host.sh("apt-cache madison redis-server")
        yield
    finally:
        host.sh(WITHDRAW)


@pytest.mark.parametrize("playbook", ["playbooks/status.yml", "playbooks/health.yml"])
def test_a_security_update_of_redis_is_told_of(fleet: Fleet, plays: Plays, playbook: str) -> None:
    """By name, with the playbook that installs it; the fleet is as well as before."""
    [host] = fleet.group("redis")
    with update_is_there(host):
        told = plays.run(playbook=playbook).expect_success()
    words = " ".join(told.output.split())
    assert f"is on hold, and the archive has the security update {NEW}. playbooks/upgrade_redis.yml" in words
    assert NEW not in plays.run(playbook=playbook).expect_success().output
