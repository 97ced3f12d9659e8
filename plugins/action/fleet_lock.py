# SPDX-License-Identifier: MIT
"""Take, or give back, the lock of the fleet, for the process of Ansible that this is.

An action plugin beside the module, since only the controller knows which user runs Ansible, and whether the
process that had the lock before is gone.
"""

from __future__ import annotations

import getpass
import os
import socket
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.fleet.celery.plugins.action.inventory_check import require_extra_variables

LONGEST_SHOWN = 100  # characters of what a host has sent

display = Display()


class ActionModule(ActionBase):
    """The action."""

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        """Run the action."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        if self._task.args["state"] == "held":
            require_extra_variables(self._loader)
        me = identity()
        result |= self.ask(me, "", task_vars)
        if result.get("failed") or self._task.args["state"] == "free":
            return result
        found = result["holder"]
        if found.get("id") in {None, me["id"]}:
            return result
        if self._task.check_mode:
            display.warning(f"{spelled(found)} A run that is no dry one would be refused.")
        elif is_over(found) or self._task.args.get("takeover") in {True, "true", "True", "yes"}:
            display.display(f"The lock is taken over from a run that is gone: {spelled(found)}")
            result |= self.ask(me, found["id"], task_vars)
            found = result["holder"]
        if found.get("id") != me["id"] and not self._task.check_mode:
            raise AnsibleActionFail(
                f"{spelled(found)} Nothing was changed. Run again when that has ended. "
                "If it is known to be over, since its controller is gone: -e fleet_lock_takeover=true."
            )
        return result

    def ask(self, me: dict[str, Any], previous_run: str, task_vars: Any) -> dict[str, Any]:
        """Run the module."""
        arguments = {"state": self._task.args["state"], "run": me, "previous_run": previous_run}
        answer: dict[str, Any] = self._execute_module(
            module_name="fleet.celery.fleet_lock", module_args=arguments, task_vars=task_vars
        )
        return answer


def identity() -> dict[str, Any]:
    """Return the user and the process of this run of Ansible. Tasks run in child processes of it."""
    process = os.getppid()
    playbooks = [Path(word).name for word in sys.argv if word.endswith((".yml", ".yaml"))]
    began = started(process)
    return {
        "id": f"{machine()}:{process}:{began}",
        "who": f"{getpass.getuser()}@{socket.gethostname()}",
        "what": " ".join(playbooks) or "Ansible",
        "since": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        "machine": machine(),
        "process": process,
        "began": began,
    }


def machine() -> str:
    """Return what tells those processes whose numbers can be compared with ours: one boot, one container."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {Path('/proc/self/ns/pid').readlink()}"


def started(process: int) -> str:
    """Return when a process began, in the kernel's ticks; nothing if there is none."""
    try:
        # the name, in brackets, may have spaces in it
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def is_over(found: dict[str, Any]) -> bool:
    """Whether a run is known to be over: it was on this controller, and its process is gone."""
    process = str(found.get("process"))  # as the host of the lock says, so it could be a path
    return found.get("machine") == machine() and process.isdigit() and started(int(process)) != found["began"]


def spelled(found: dict[str, Any]) -> str:
    """Return a sentence about the run that has the lock."""
    who, what, since = (printable(found.get(part)) for part in ("who", "what", "since"))
    return f"{who} runs {what} on this fleet since {since}."


def printable(text: Any) -> str:
    """Return what a host has sent as a text that a terminal only shows."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(text))[:LONGEST_SHOWN]
