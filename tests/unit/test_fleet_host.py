# SPDX-License-Identifier: MIT
"""The module fleet_host: which hosts it refuses, and why."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.fleet.celery.plugins.modules import fleet_host

if TYPE_CHECKING:
    from pathlib import Path


def arguments(tmp_path: Path, **given: Any) -> dict[str, Any]:
    """Return arguments with which this machine is fine, and others."""
    fine = {
        "bind": ["127.0.0.1"],
        "port": 1,
        "unit": "redis-server.service",
        "prefix": "redis",
        "data_dir": str(tmp_path / "not yet" / "redis"),
        "disk_space": 1024,
        "marker": str(tmp_path / "users.acl"),
    }
    return fine | given


def test_a_taken_port_is_refused_where_redis_shall_listen(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        (finding,) = fleet_host.taken(arguments(tmp_path, bind=["-127.0.0.1"], port=port))
        assert finding.endswith("set another redis_port.")
        assert not list(fleet_host.taken(arguments(tmp_path, bind=["192.0.2.1"], port=port)))


def test_an_address_of_another_host_is_refused(tmp_path: Path) -> None:
    bind = ["127.0.0.1", "192.0.2.1", "-192.0.2.2", "*", "no-such-name.invalid"]
    first, second = fleet_host.foreign_addresses(arguments(tmp_path, bind=bind))
    assert first.startswith("redis_bind has 192.0.2.1,")
    assert second.startswith("redis_bind has no-such-name.invalid,")


def test_a_small_disk_is_refused_but_for_what_is_there(tmp_path: Path) -> None:
    (finding,) = fleet_host.small_disk(arguments(tmp_path, disk_space=2**42))
    assert f"{tmp_path} has" in finding
    assert not list(fleet_host.small_disk(arguments(tmp_path)))
    data = tmp_path / "data"
    data.mkdir()
    with (data / "aof").open("wb") as file:
        file.truncate(2**42)  # a file with a hole: its size counts, and it takes no room
    assert not list(fleet_host.small_disk(arguments(tmp_path, data_dir=str(data), disk_space=2**42)))


@pytest.mark.parametrize(
    ("active", "marker", "files", "found"),
    [
        (False, False, [], None),
        (True, True, ["appendonlydir", "dump.rdb"], None),
        (True, False, [], "was not set up by this role"),
        (False, False, ["dump.rdb"], "no append-only file"),
        (False, True, ["dump.rdb"], "no append-only file"),
        (False, False, ["dump.rdb", "appendonlydir"], None),
    ],
)
def test_the_data_of_somebody_else_are_not_lost(
    tmp_path: Path, active: bool, marker: bool, files: list[str], found: str | None
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for name in files:
        (data / name).touch()
    if marker:
        (tmp_path / "users.acl").touch()
    params = arguments(tmp_path, data_dir=str(data))
    findings = list(fleet_host.somebody_elses(params, lambda argv: (0 if active else 3, "", "")))
    assert [found in finding for finding in findings if found] == ([True] if found else [])
    assert bool(findings) == bool(found)


def inactive(_argv: list[str]) -> tuple[int, str, str]:
    """Answer as systemctl does for a unit that does not run."""
    return 3, "", ""


def test_only_a_redis_needs_a_disk_and_addresses(tmp_path: Path) -> None:
    """For nginx only the port counts: it may be told of an address that the host has later only."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        params = arguments(tmp_path, bind=["127.0.0.1", "192.0.2.1"], port=port, disk_space=2**62)
        assert len(list(fleet_host.findings(params, inactive))) == 3
        (finding,) = fleet_host.findings(params | {"prefix": "flower", "data_dir": None}, inactive)
        assert finding.endswith("set another flower_port.")
