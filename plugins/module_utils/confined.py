# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands that belong to an app or its packages, run without privileges in a systemd unit of their own.

systemd ends every process of the unit with it, so nothing of them is left when `run` returns.
"""

from __future__ import annotations

import subprocess
import tempfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ansible_collections.fleet.celery.plugins.module_utils.systemd_env import env_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path


@dataclass(frozen=True)
class Confined:
    """How such commands are run.

    Attributes:
        user: A system user, or empty for one that exists only meanwhile.
        properties: systemd properties that confine them, one a line, such as the filter fleet_sandbox makes.
    """

    user: str = ""
    properties: str = ""
    _run: tuple[str, ...] = field(default=("systemd-run", "--quiet", "--wait", "--pipe", "--collect"))

    def run(
        self,
        unit: str,
        argv: Iterable[str | Path],
        *,
        environment: Mapping[str, str] | str = "",
        cwd: Path | None = None,
        writable: Iterable[Path] = (),
        network: bool = False,
        properties: Iterable[str] = (),
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in its unit, wait for its end, and return how it went.

        Args:
            unit: Name of the unit.
            argv: The command.
            environment: Variables by name, or the text of an environment file. systemd reads them from a file
                that only root may read: they are in no command line and no property of the unit.
            cwd: Where to run it.
            writable: Paths that it may write to, besides a /tmp of its own.
            network: Whether it may reach anything but itself.
            properties: Further properties.
        """
        text = environment if isinstance(environment, str) else env_file(environment)
        with tempfile.NamedTemporaryFile("w", dir="/run", prefix="celery-release-", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            lines = [
                f"User={self.user}" if self.user else "DynamicUser=yes",
                *self.properties.splitlines(),
                f"EnvironmentFile={file.name}",
                f"PrivateNetwork={'no' if network else 'yes'}",
                "TimeoutStopSec=5",
                *(f"ReadWritePaths={path}" for path in writable),
                *([f"WorkingDirectory={cwd}"] if cwd else []),
                *properties,
            ]
            options = [word for line in lines for word in ("--property", line)]
            command = [*self._run, f"--unit={unit}", *options, "--", *map(str, argv)]
            return subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
            )


def stop(unit: str) -> None:
    """End a unit that an interrupted run left, if it is there."""
    subprocess.run(["systemctl", "stop", unit], capture_output=True, check=False)
