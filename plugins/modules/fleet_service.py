#!/usr/bin/python
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Start, stop, restart or watch several units in one call, and show the journal of one that fails."""

from __future__ import annotations

DOCUMENTATION = r"""
module: fleet_service
short_description: Start, stop, restart or watch several units in one call
version_added: 0.1.0
description:
  - Units are enabled and started together, stopped together, or restarted one after another. A loop over
    M(ansible.builtin.systemd_service) can do neither of the first two, and a warm stop of a Celery node takes
    as long as its longest task.
  - Before units are started or restarted, systemd reads them again, if their files have changed since.
  - If a unit fails, the message ends with the last lines of its journal.
  - In check mode a unit that the host does not have yet is taken as one that a task before this one would
    have made.
options:
  units: {description: Full names of the units., type: list, elements: str, required: true}
  state:
    description:
      - C(started) enables the units and starts those that are not up. A start that is under way is waited
        for, for as long as the unit lets it take. If it fails, the unit is restarted, since it began before
        what the run has changed.
      - C(disabled) disables the units and stops those that are up.
      - C(stopped) stops those that are up, together, and leaves them enabled.
      - C(restarted) restarts each unit when the one before it is ready. It does not enable them.
      - C(ready) changes nothing. It waits until the units are ready.
      - C(settled) waits until no start is under way, for as long as the units let it take, whatever comes of
        it. It joins the starts that it finds, and starts nothing else.
    type: str
    choices: [started, disabled, stopped, restarted, ready, settled]
    required: true
  ready:
    description: Command that ends with exit code 0 once the units work. They are ready if it does, and if all
      of them were up from before it began until after its end, without a restart in between.
    type: list
    elements: str
    default: []
  ready_by_unit:
    description: Unit -> such a command of its own, in place of I(ready).
    type: dict
    default: {}
  enable_only:
    description: Units that C(started) enables only. They run with something old, and are restarted next.
    type: list
    elements: str
    default: []
  keep_going:
    description: With C(restarted), restart all units even if one fails, and fail at the end.
    type: bool
    default: false
  ready_retries:
    description: How often I(ready) is tried again before the units count as failed. Where a unit is starting,
      a try begins when that has ended.
    type: int
    default: 10
  ready_delay: {description: Seconds between two tries., type: int, default: 1}
  journal_lines: {description: How many lines of a failed unit's journal are shown., type: int, default: 20}
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
extends_documentation_fragment:
  - fleet.celery.attributes
author: The celery-fleet contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Run the nodes
  fleet.celery.fleet_service:
    units: [celery.target, celery-worker@default-1.service, celery-worker@default-2.service]
    state: started
"""

RETURN = r"""
units:
  description: The units that were acted upon, or would be in check mode.
  returned: always
  type: list
  elements: str
seconds:
  description: For each unit that was restarted how long it took to stop, to start, and to be ready.
  returned: state is restarted
  type: dict
"""

import select
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.fleet.celery.plugins.module_utils.fleet_systemd import (
    ENABLED,
    SystemdError,
    call,
    is_starting,
    is_up,
    journal,
    show,
    stopped_at,
)

if TYPE_CHECKING:
    from typing import Any

    from ansible_collections.fleet.celery.plugins.module_utils.fleet_systemd import Run


# How many starts that systemd begins meanwhile are waited for: with an app that imports for long and then
# dies, there would be as many as there are tries.
JOINED = 2


DOWN = ("inactive", "failed", "deactivating")


class ServiceError(Exception):
    """A unit did not reach the state asked for; the message tells why."""


def is_abandoned(stdout: int = 1) -> bool:
    """Return whether nobody reads what the module says any more, for its run was interrupted.

    Else it would go on for as long as all proofs may take, and meet the next run. Where sudo passes output
    on through a terminal of its own (use_pty), it cannot be seen.
    """
    poll = select.poll()
    poll.register(stdout, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _unused, event in poll.poll(0))


class Services:
    """The units that the module was given, and what it does with them."""

    def __init__(self, params: dict[str, Any], run: Run, *, check: bool) -> None:
        """Ask systemd how the units are."""
        self.params = params
        self.run = run
        self.check = check
        self.states = show(run, params["units"])
        self.seconds: dict[str, dict[str, float]] = {}

    def apply(self) -> list[str]:
        """Bring the units to the state asked for, and return those that were acted upon."""
        states = {
            "started": self.start,
            "disabled": self.disable,
            "stopped": self.stop,
            "restarted": self.restart,
            "ready": self.watch,
            "settled": self.settle,
        }
        starts = self.params["state"] in {"started", "restarted"}
        if starts and not self.check and self.where("NeedDaemonReload", "yes"):
            call(self.run, "daemon-reload")
        return states[self.params["state"]]()

    def where(self, key: str, *values: str) -> list[str]:
        """Return the units with a property that has one of the values."""
        return [unit for unit, state in self.states.items() if state[key] in values]

    def start(self) -> list[str]:
        """Enable the units, and start together those that are not up."""
        enabled = self.where("UnitFileState", *ENABLED)
        enable = [unit for unit in self.states if unit not in enabled]
        now = {unit: state for unit, state in self.states.items() if unit not in self.params["enable_only"]}
        start = [unit for unit, state in now.items() if state["ActiveState"] in DOWN]
        activating = [unit for unit, state in now.items() if state["ActiveState"] == "activating"]
        joined = [unit for unit in activating if is_starting(now[unit])]
        stuck = [unit for unit in activating if unit not in joined]  # between two starts of a crash loop
        if not self.check:
            self.call_for("enable", enable)
        self.bring_up("start", start)
        stuck += self.join(joined)
        self.bring_up("start", [unit for unit in joined if unit not in stuck])
        self.bring_up("restart", stuck)
        return sorted({*enable, *start, *stuck})

    def join(self, units: list[str]) -> list[str]:
        """Wait until the starts of units that are under way have ended, and return those that failed.

        To restart such a unit would end a start that takes long, again with each run.
        """
        if not units or self.check:
            return []
        with suppress(SystemdError):  # seen below, and of each unit
            self.call_for("start", units)
        return [unit for unit, state in show(self.run, units).items() if state["ActiveState"] != "active"]

    def disable(self) -> list[str]:
        """Disable the units, and stop together those that are up."""
        disable = self.where("UnitFileState", "enabled")
        if not self.check:
            self.call_for("disable", disable)
        return sorted({*disable, *self.stop()})

    def stop(self) -> list[str]:
        """Stop together the units that are up."""
        stop = [unit for unit, state in self.states.items() if is_up(state)]
        failed = self.where("ActiveState", "failed")
        if not self.check:
            self.call_for("stop", stop)
            # a unit that had to be killed is "failed" now, and systemd would list it for ever
            self.states.update(show(self.run, stop))
            self.call_for("reset-failed", self.where("ActiveState", "failed"))
        return sorted({*stop, *failed})

    def restart(self) -> list[str]:
        """Restart the units, each when the one before it is ready."""
        failures = []
        for unit in self.states:
            try:
                self.bring_up("restart", [unit])
            except ServiceError as error:
                if not self.params["keep_going"]:
                    raise
                failures.append(str(error))
        if failures:
            raise ServiceError("\n".join(failures))
        return list(self.states)

    def watch(self) -> list[str]:
        """Wait until the units are ready, and change nothing."""
        units = list(self.states)
        try:
            self.wait(units)
        except SystemdError as error:
            raise ServiceError(self.explain(units, str(error))) from None
        return []

    def settle(self) -> list[str]:
        """Wait until no start is under way, whatever comes of it."""
        for _unused in range(JOINED):
            starting = [
                unit for unit, state in show(self.run, list(self.states)).items() if is_starting(state)
            ]
            self.join(starting)
        return []

    def call_for(self, verb: str, units: list[str]) -> None:
        """Run one systemctl for several units, if there are any."""
        if units:
            call(self.run, verb, *units)

    def bring_up(self, verb: str, units: list[str]) -> None:
        """Start or restart units, and wait until they are ready."""
        if not units or self.check:
            return
        try:
            before = time.monotonic()
            call(self.run, verb, *units)
            done = time.monotonic()
            if self.params["ready"] or self.params["ready_by_unit"]:
                self.wait(units)
            if verb == "restart" and len(units) == 1:
                self.clock(units[0], before, done)
        except SystemdError as error:
            raise ServiceError(self.explain(units, str(error))) from None

    def clock(self, unit: str, before: float, done: float) -> None:
        """Note how long a unit took to stop, to start, and to be ready: moments of the host's clock."""
        stopped = stopped_at(self.run, unit)
        down = min(max(stopped, before), done)  # one that was not up has stopped at some other time
        times = {"stop": down - before, "start": done - down, "ready": time.monotonic() - done}
        self.seconds[unit] = {name: round(seconds, 2) for name, seconds in times.items()}

    def wait(self, units: list[str]) -> None:
        """Wait until the units are ready.

        Raises:
            SystemdError: They never were.
        """
        joins = JOINED
        for last in (*[False] * self.params["ready_retries"], True):
            starting = [unit for unit, state in show(self.run, units).items() if is_starting(state)]
            if starting and joins:
                joins -= 1
                self.join(starting)
            problem = self.problem(units)
            if not problem:
                return
            if is_abandoned():
                raise SystemdError(f"the run that waited for this has ended; until then: {problem}")
            if last:
                raise SystemdError(problem)
            time.sleep(self.params["ready_delay"])

    def problem(self, units: list[str]) -> str:
        """Return why the units are not ready; nothing if they are."""
        before = show(self.run, units)
        problems = [self.complaint(command) for command in self.commands(units)]
        after = show(self.run, units)
        for unit in units:
            if after[unit]["ActiveState"] != "active":
                return f"{unit} is {after[unit]['ActiveState']}"
            if after[unit]["InvocationID"] != before[unit]["InvocationID"]:
                return f"{unit} was started again meanwhile"
        return "\n".join(filter(None, problems))

    def commands(self, units: list[str]) -> list[list[str]]:
        """Return the commands that tell whether units are ready, each once."""
        of_units = [self.params["ready_by_unit"].get(unit, self.params["ready"]) for unit in units]
        return [command for at, command in enumerate(of_units) if command and command not in of_units[:at]]

    def complaint(self, command: list[str]) -> str:
        """Return what a command says that fails; nothing if it does not."""
        code, out, err = self.run(command)
        return f"{' '.join(command)} ended with exit code {code}: {(err or out).strip()}" if code else ""

    def explain(self, units: list[str], error: str) -> str:
        """Return a message with the journal of each unit that is not up, or of all if all are."""
        states = show(self.run, units)
        guilty = [unit for unit in units if states[unit]["ActiveState"] != "active"] or units
        parts = [error]
        for unit in guilty:
            parts.append(f"--- journal of {unit}, which is {states[unit]['ActiveState']} ---")
            parts.append(journal(self.run, unit, self.params["journal_lines"]))
        return "\n".join(parts)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "units": {"type": "list", "elements": "str", "required": True},
            "state": {
                "type": "str",
                "choices": ["started", "disabled", "stopped", "restarted", "ready", "settled"],
                "required": True,
            },
            "ready": {"type": "list", "elements": "str", "default": []},
            "ready_by_unit": {"type": "dict", "default": {}},
            "enable_only": {"type": "list", "elements": "str", "default": []},
            "keep_going": {"type": "bool", "default": False},
            "ready_retries": {"type": "int", "default": 10},
            "ready_delay": {"type": "int", "default": 1},
            "journal_lines": {"type": "int", "default": 20},
        },
        supports_check_mode=True,
    )
    try:
        services = Services(module.params, module.run_command, check=module.check_mode)
        units = services.apply()
    except (SystemdError, ServiceError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=bool(units), units=units, seconds=services.seconds)


if __name__ == "__main__":
    main()
