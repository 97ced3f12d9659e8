"""The module redis_host: which hosts it refuses, and why."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

import pytest
from modules import redis_host

if TYPE_CHECKING:
    from pathlib import Path


def arguments(tmp_path: Path, **given: Any) -> dict[str, Any]:
    """Return arguments with which this machine is fine, and others."""
    fine = {
        "bind": ["127.0.0.1"],
        "port": 1,
        "unit": "redis-server.service",
        "data_dir": str(tmp_path / "not yet" / "redis"),
        "disk_space": 1024,
        "mark": str(tmp_path / "users.acl"),
    }
    return fine | given


@pytest.mark.parametrize(
    ("address", "meaning"),
    [
        ("0100007F", "127.0.0.1"),
        ("00000000", "0.0.0.0"),  # noqa: S104
        ("00000000000000000000000001000000", "::1"),
        ("00000000000000000000000000000000", "::"),
        ("0000000000000000FFFF00000100007F", "127.0.0.1"),
    ],
)
def test_the_kernels_addresses_are_read(address: str, meaning: str) -> None:
    assert redis_host.decode(address) == meaning


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_port_that_somebody_has_is_refused_with_his_name(
    tmp_path: Path, family: socket.AddressFamily
) -> None:
    address = "127.0.0.1" if family == socket.AF_INET else "::1"
    with socket.create_server((address, 0), family=family) as other:
        port = other.getsockname()[1]
        (finding,) = redis_host.taken(arguments(tmp_path, bind=[address], port=port))
        assert f"port {port} of {address} is taken by" in finding
        assert f"(pid {os.getpid()})" in finding
        assert list(redis_host.taken(arguments(tmp_path, bind=["*"], port=port)))
        assert not list(redis_host.taken(arguments(tmp_path, bind=["192.0.2.1"], port=port)))


def test_redis_itself_may_have_its_port(tmp_path: Path) -> None:
    proc = tmp_path / "proc"
    (proc / "net").mkdir(parents=True)
    line = "   0: 0100007F:18EB 00000000:0000 0A 00000000:00000000 00:00000000 00000000   0   0 4711 1\n"
    (proc / "net" / "tcp").write_text("  sl  local_address ...\n" + line)
    process = proc / "123"
    (process / "fd").mkdir(parents=True)
    (process / "fd" / "7").symlink_to("socket:[4711]")
    (process / "comm").write_text("redis-server\n")
    for cgroup, findings in (("/system.slice/redis-server.service", 0), ("/user.slice/x.scope", 1)):
        (process / "cgroup").write_text(f"0::{cgroup}\n")
        assert len(list(redis_host.taken(arguments(tmp_path, port=6379), proc))) == findings


def test_an_address_of_another_host_is_refused(tmp_path: Path) -> None:
    bind = ["127.0.0.1", "192.0.2.1", "-192.0.2.2", "*", "no-such-name.invalid"]
    first, second = redis_host.foreign_addresses(arguments(tmp_path, bind=bind))
    assert first.startswith("redis_bind has 192.0.2.1,")
    assert second.startswith("redis_bind has no-such-name.invalid,")


def test_a_small_disk_is_refused_but_for_what_is_there(tmp_path: Path) -> None:
    (finding,) = redis_host.small_disk(arguments(tmp_path, disk_space=2**42))
    assert f"{tmp_path} has" in finding
    assert not list(redis_host.small_disk(arguments(tmp_path)))
    data = tmp_path / "data"
    data.mkdir()
    with (data / "aof").open("wb") as file:
        file.truncate(2**42)  # a file with a hole: its size counts, and it takes no room
    assert not list(redis_host.small_disk(arguments(tmp_path, data_dir=str(data), disk_space=2**42)))


@pytest.mark.parametrize(
    ("active", "mark", "files", "found"),
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
    tmp_path: Path, active: bool, mark: bool, files: list[str], found: str | None
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for name in files:
        (data / name).touch()
    if mark:
        (tmp_path / "users.acl").touch()
    params = arguments(tmp_path, data_dir=str(data))
    findings = list(redis_host.somebody_elses(params, lambda argv: (0 if active else 3, "", "")))
    assert [found in finding for finding in findings if found] == ([True] if found else [])
    assert bool(findings) == bool(found)
