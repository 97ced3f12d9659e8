# SPDX-License-Identifier: MIT
"""A host of the fleet, as its administrator reaches it."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import threading
import time
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import testinfra

if TYPE_CHECKING:
    from collections.abc import Callable

    from testinfra.host import Host as Testinfra

    from tests.fleet.support.inventory import Variables

T = TypeVar("T")

# One connection for all commands to a host: the suite's own, which no play closes.
SSH = (
    "-oBatchMode=yes",
    "-oControlMaster=auto",
    "-oControlPersist=60",
    f"-oControlPath=~/.ansible/cp/suite-{os.getpid()}-%C",
)
LOST = 255  # what ssh ends with when the connection, not the command, failed


class CommandError(AssertionError):
    """A command on a host failed; the message has what it said."""


@dataclass(frozen=True)
class Unit:
    """A systemd unit, as it was when it was asked for."""

    name: str
    properties: dict[str, str]

    def __getitem__(self, name: str) -> str:
        """Return a property of `systemctl show`."""
        return self.properties[name]

    @property
    def runs(self) -> bool:
        """Whether it is up."""
        return self["ActiveState"] == "active"

    @property
    def start(self) -> str:
        """Names this start of the unit: another one after a restart."""
        return self["InvocationID"]

    @property
    def main_pid(self) -> int:
        """The process that systemd watches."""
        return int(self["MainPID"])


@dataclass
class Host:
    """One host: what the inventory says of it, and a way to run commands there as root."""

    name: str
    groups: set[str]
    variables: Variables
    seen_units: set[str] = field(default_factory=set)  # those that a test asked about

    @cached_property
    def ssh(self) -> list[str]:
        """The command line that leads to the host, up to the command to run there."""
        options = shlex.split(self._optional("ansible_ssh_common_args"))
        options += ["-p", port] if (port := self._optional("ansible_port")) else []
        user = f"{name}@" if (name := self._optional("ansible_user")) else ""
        return ["ssh", *SSH, *options, f"{user}{self.variables['ansible_host']}"]

    @cached_property
    def infra(self) -> Testinfra:
        """The host for testinfra, whose modules know files, users, packages and processes."""
        return testinfra.get_host(
            f"ssh://{self.ssh[-1]}", ssh_extra_args=shlex.join(self.ssh[1:-1]), sudo=True
        )

    @cached_property
    def size(self) -> tuple[int, int]:
        """Its CPUs, and its memory in MiB, from where Ansible has them."""
        told = self.sh("grep -c ^processor /proc/cpuinfo; awk '/^MemTotal:/ {print $2}' /proc/meminfo")
        cpus, kib = told.split()
        return int(cpus), int(kib) // 1024

    def sh(self, script: str, *words: str, text: str = "", timeout: float = 60) -> str:
        """Run a shell script on the host as root, and return what it printed.

        Args:
            script: The script. It is seen in `ps`, as the words are, so neither may hold a secret.
            words: What the script finds in $1, $2, ...
            text: What the script finds on standard input; secrets go here.
            timeout: Seconds that it may take.

        Raises:
            ConnectionError: The host cannot be reached.
            CommandError: The script failed.
        """
        command = shlex.join(["sudo", "-n", "sh", "-c", script, "sh", *words])
        done = subprocess.run(
            [*self.ssh, command], input=text, capture_output=True, text=True, timeout=timeout, check=False
        )
        if done.returncode == LOST:
            raise ConnectionError(f"{self.name}: {done.stderr.strip()}")
        if done.returncode:
            raise CommandError(
                f"{self.name}: {script}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done.stdout

    def unit(self, name: str) -> Unit:
        """Return a unit as it is now."""
        return self.units([name])[name]

    def units(self, names: list[str]) -> dict[str, Unit]:
        """Return several units as they are now, in one call."""
        self.seen_units.update(names)
        blocks = self.sh('systemctl show -- "$@"', *names).split("\n\n")
        properties = [
            dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in blocks
        ]
        return {name: Unit(name, own) for name, own in zip(names, properties, strict=True)}

    def journal(self, unit: str, lines: int = 30) -> str:
        """Return the last lines of a unit's journal, or why there are none."""
        command = 'journalctl --no-pager --output=short-precise --unit="$1" --lines="$2"'
        try:
            return self.sh(command, unit, str(lines))
        except (ConnectionError, CommandError) as error:
            return str(error)

    def _optional(self, name: str) -> str:
        """Return a connection variable, or nothing if it is not set."""
        try:
            return str(self.variables[name])
        except KeyError:
            return ""


class Tunnel:
    """A port of this machine that leads, by way of a host, to an address which that host reaches.

    So this machine is an application outside the fleet, even where the broker listens on loopback only.
    """

    def __init__(self, host: Host, address: str, port: int) -> None:
        """Choose a port, which stays the same when the tunnel has to be opened again."""
        self._host = host
        self._target = f"{address}:{port}"
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port: int = probe.getsockname()[1]

    def open(self) -> int:
        """Open the tunnel unless it is open; return its port."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                forward = [
                    "-N",
                    "-oControlPath=none",
                    "-oExitOnForwardFailure=yes",
                    f"-L{self._port}:{self._target}",
                ]
                command = [self._host.ssh[0], *forward, *self._host.ssh[1:]]
                self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
                eventually(self._listens, timeout=15, pause=0.05)
        return self._port

    def close(self) -> None:
        """Close the tunnel."""
        if self._process:
            self._process.terminate()
            self._process.wait()

    def _listens(self) -> bool:
        """Whether the tunnel takes connections."""
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self._port)) == 0


def eventually(check: Callable[[], T], timeout: float, pause: float = 0.2) -> T:
    """Call a check until what it returns is true, and return that.

    Raises:
        AssertionError: It was not in time. The message has the last result or exception.
    """
    end = time.monotonic() + timeout
    while True:
        problem: Exception | None = None
        result: T | None = None
        try:
            result = check()
        except Exception as error:  # whatever a fleet that is being broken may raise
            problem = error
        if result:
            return result
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout:g} s; last: {problem or result!r}") from problem
        time.sleep(pause)
