# SPDX-License-Identifier: MIT
"""What cannot work is refused before anything changes, in words that an operator can act upon."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.fleet.support.fleet import Fleet
    from tests.fleet.support.hosts import Host
    from tests.fleet.support.plays import Plays

pytestmark = pytest.mark.faults

# A change that the run would make on every host with nodes, were it not refused.
PENDING = {"celery_worker_log_level": "DEBUG"}


@contextmanager
def other_distribution(host: Host) -> Iterator[None]:
    """Let a host say that it is another Debian."""
    release = "/usr/lib/os-release"
    host.sh('sed "s/Debian/Devuan/; s/debian/devuan/" "$1" >/run/os-release', release)
    host.sh('mount --bind /run/os-release "$1"', release)
    try:
        yield
    finally:
        host.sh('umount "$1"; rm /run/os-release', release)


@contextmanager
def taken_port(host: Host, port: int) -> Iterator[None]:
    """Let somebody else listen on a port of a host."""
    host.sh('systemd-run --quiet --unit=squatter python3 -m http.server "$1"', str(port))
    host.sh('until ss -Hltn "sport = :$1" | grep -q .; do sleep 0.1; done', str(port))
    try:
        yield
    finally:
        host.sh("systemctl stop squatter.service")


@contextmanager
def small_disk(host: Host) -> Iterator[None]:
    """Let a host have little room for releases."""
    host.sh("mount -t tmpfs -o size=64m small /opt")
    try:
        yield
    finally:
        host.sh("umount /opt")


@pytest.mark.group("workers")
def test_small_disk(fleet: Fleet, plays: Plays) -> None:
    """A host without room is named, with the file system and what it has."""
    host = fleet.group("workers")[-1]
    with small_disk(host):
        refused = plays.run(**PENDING)
    refused.expect_refusal(host.name, "has 64 MiB free on /opt", "preflight_disk_free_mb")


@pytest.mark.group("workers")
def test_other_distribution(fleet: Fleet, plays: Plays) -> None:
    """One host of a distribution that the fleet was not made for stops the run for all hosts."""
    host = fleet.group("workers")[-1]
    with other_distribution(host):
        refused = plays.run(**PENDING)
    refused.expect_refusal(host.name, "Devuan", "Debian 12")


@pytest.mark.group("flower")
def test_taken_port(fleet: Fleet, plays: Plays) -> None:
    """A port that something else listens on is named, and by whom it is taken."""
    host = fleet.group("flower")[0]
    with taken_port(host, 5599):
        refused = plays.run(flower_port=5599)
    refused.expect_refusal(host.name, "5599", "python3")


def test_bad_inventory(plays: Plays) -> None:
    """A misspelt variable and a queue that nobody consumes are both named, and no host is contacted."""
    refused = plays.run(celery_worker_log_levle="INFO", celery_app_queues=["default", "lost"])
    refused.expect_refusal("celery_worker_log_levle", "celery_worker_log_level", "lost")
    assert "ESTABLISH SSH CONNECTION" not in refused.output


@pytest.mark.group("workers")
def test_missing_source(plays: Plays) -> None:
    """An app that is not where the inventory says is refused before any host is changed."""
    refused = plays.run(celery_app_source="/nowhere/shop", **PENDING)
    refused.expect_refusal("/nowhere/shop", "not there on the controller")
