# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who listens on which port of a host, from the kernel's own tables."""

from __future__ import annotations

import ipaddress
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PROC = Path("/proc")
LISTEN = "0A"  # state of a socket in /proc/net/tcp


@dataclass(frozen=True)
class Listener:
    """A TCP socket that listens."""

    address: str
    port: int
    inode: str


def listeners(proc: Path = PROC) -> Iterator[Listener]:
    """Return who listens, from the kernel's own tables."""
    for table in ("tcp", "tcp6"):
        path = proc / "net" / table
        if path.exists():  # there is no tcp6 where IPv6 is switched off
            for line in path.read_text().splitlines()[1:]:
                words = line.split()
                address, _separator, port = words[1].partition(":")
                if words[3] == LISTEN:
                    yield Listener(decode(address), int(port, 16), words[9])


def decode(address: str) -> str:
    """Return an address of /proc/net/tcp, which is in words of four bytes in the machine's order."""
    words = [bytes.fromhex(address[i : i + 8]) for i in range(0, len(address), 8)]
    order = 1 if sys.byteorder == "big" else -1
    found = ipaddress.ip_address(b"".join(word[::order] for word in words))
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return str(mapped or found)


def owner(inode: str, proc: Path = PROC) -> Path | None:
    """Return the directory in /proc of the process that has a socket."""
    for link in proc.glob("[0-9]*/fd/*"):
        try:
            if str(link.readlink()) == f"socket:[{inode}]":
                return link.parent.parent
        except OSError:  # the process ended
            continue
    return None


def overlap(one: str, other: str) -> bool:
    """Whether two sockets with one port get in each other's way."""
    wildcards = {"*", "0.0.0.0", "::", "::*"}  # noqa: S104 - compared, not bound
    return one == other or bool(wildcards & {one, other})


def taken(bind: Iterable[str], port: int, unit: str, variable: str, proc: Path = PROC) -> Iterator[str]:
    """Say who listens where a service shall, and is not that service.

    Args:
        bind: Addresses that the service shall listen on; `*` is all.
        port: Its port.
        unit: Its systemd unit.
        variable: The variable with which an operator sets another port.
        proc: Where the kernel's tables are.
    """
    for listener in listeners(proc):
        if listener.port != port or not any(overlap(address, listener.address) for address in bind):
            continue
        process = owner(listener.inode, proc)
        if process and f"/{unit}" in (process / "cgroup").read_text():
            continue
        name = (
            f"{(process / 'comm').read_text().strip()} (pid {process.name})" if process else "another program"
        )
        yield (
            f"port {listener.port} of {listener.address} is taken by {name}. Stop that, or set another "
            f"{variable}."
        )
