# SPDX-License-Identifier: MIT
"""The program that listens on a port: as the kernel has it, and the message about it."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from ansible_collections.fleet.celery.plugins.module_utils import fleet_sockets


def taken(bind: list[str], port: int, proc: Path = fleet_sockets.PROC) -> list[str]:
    """Return the programs that listen on a port which some.service needs."""
    return list(fleet_sockets.taken(bind, port, "some.service", "some_port", proc))


@pytest.mark.parametrize(
    ("address", "meaning"),
    [
        ("0100007F", "127.0.0.1"),
        ("00000000", "0.0.0.0"),
        ("00000000000000000000000001000000", "::1"),
        ("00000000000000000000000000000000", "::"),
        ("0000000000000000FFFF00000100007F", "127.0.0.1"),
    ],
)
def test_the_kernels_addresses_are_read(address: str, meaning: str) -> None:
    assert fleet_sockets.decode(address) == meaning


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_port_that_somebody_has_is_refused_with_his_name(family: socket.AddressFamily) -> None:
    address = "127.0.0.1" if family == socket.AF_INET else "::1"
    with socket.create_server((address, 0), family=family) as other:
        port = other.getsockname()[1]
        (finding,) = taken([address], port)
        assert f"port {port} of {address} is taken by" in finding
        assert f"(pid {os.getpid()})" in finding
        assert finding.endswith("set another some_port.")
        assert taken(["*"], port)
        assert not taken(["192.0.2.1"], port)


def test_the_service_itself_may_have_its_port(tmp_path: Path) -> None:
    proc = tmp_path / "proc"
    (proc / "net").mkdir(parents=True)
    line = "   0: 0100007F:18EB 00000000:0000 0A 00000000:00000000 00:00000000 00000000   0   0 4711 1\n"
    (proc / "net" / "tcp").write_text("  sl  local_address ...\n" + line)
    process = proc / "123"
    (process / "fd").mkdir(parents=True)
    (process / "fd" / "7").symlink_to("socket:[4711]")
    (process / "comm").write_text("redis-server\n")
    for cgroup, findings in (("/system.slice/some.service", 0), ("/user.slice/x.scope", 1)):
        (process / "cgroup").write_text(f"0::{cgroup}\n")
        assert len(taken(["127.0.0.1"], 6379, proc)) == findings
