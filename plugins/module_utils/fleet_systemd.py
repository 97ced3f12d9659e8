# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What systemd says of units, for this project's modules."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    # argv -> (exit code, standard output, standard error), as AnsibleModule.run_command
    Run = Callable[[list[str]], tuple[int, str, str]]

PROPERTIES = ("LoadState", "ActiveState", "SubState", "UnitFileState", "NeedDaemonReload", "InvocationID")
ENABLED = ("enabled", "static")
UNIT_DIRECTORY = "/etc/systemd/system/"


class SystemdError(Exception):
    """systemctl refused; the message is its own."""


def call(run: Run, *argv: str) -> str:
    """Run systemctl and return what it prints.

    Raises:
        SystemdError: It ended with another exit code than 0.
    """
    code, out, err = run(["systemctl", "--no-pager", *argv])
    if code:
        raise SystemdError(err.strip() or out.strip() or f"systemctl {argv[0]} ended with exit code {code}")
    return out


def reload_for(run: Run, paths: Iterable[str]) -> None:
    """Have systemd read its units again, if one of the paths that were changed belongs to them."""
    if any(path.startswith(UNIT_DIRECTORY) for path in paths):
        call(run, "daemon-reload")


def show(run: Run, units: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return the PROPERTIES of each unit; one that the host does not have is `not-found` and `inactive`."""
    if not units:
        return {}
    out = call(run, "show", f"--property={','.join(PROPERTIES)}", *units)
    blocks = [block for block in out.split("\n\n") if block.strip()]
    if len(blocks) != len(units):
        raise SystemdError(f"systemctl show told of {len(blocks)} units, not of {len(units)}:\n{out}")
    return {
        unit: dict(line.split("=", 1) for line in block.strip().splitlines())
        for unit, block in zip(units, blocks, strict=True)
    }


def journal(run: Run, unit: str, lines: int = 20) -> str:
    """Return the last lines of a unit's journal."""
    argv = ["journalctl", "--no-pager", "--output=cat", f"--lines={lines}", f"--unit={unit}"]
    return run(argv)[1].strip()


def stopped_at(run: Run, unit: str) -> float:
    """Return when a unit was down last, by the monotonic clock, in seconds; 0 if it never was."""
    microseconds = call(run, "show", "--property=InactiveEnterTimestampMonotonic", "--value", unit).strip()
    return int(microseconds or 0) / 1e6


def is_up(state: dict[str, str]) -> bool:
    """Whether a unit runs, or tries to: a crash loop (`activating`) is up, a unit that gave up is not."""
    return state["ActiveState"] not in {"inactive", "failed"}


def is_starting(state: dict[str, str]) -> bool:
    """Whether a start is under way, and not merely due after one that failed."""
    return state["ActiveState"] == "activating" and not state["SubState"].startswith("auto-restart")


def is_settled(state: dict[str, str]) -> bool:
    """Whether a unit runs, and will after a reboot."""
    return state["ActiveState"] in {"active", "reloading"} and state["UnitFileState"] in ENABLED
