#!/usr/bin/python
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find the services that run with other files than the host has now."""

from __future__ import annotations

DOCUMENTATION = r"""
module: fleet_stale
short_description: Find services that run with other files than the host has now
version_added: 0.1.0
description:
  - Each service of the fleet writes its start fingerprint when it starts, which is the checksums of the files
    that shape it (C(ExecStartPre=+/bin/sh -c 'exec sha256sum FILE... >FINGERPRINT')). This module compares
    fingerprints with files.
  - Unlike a handler, the answer does not depend on what this run of Ansible changed. A play that was
    interrupted between configuration and restart is finished by the next one.
  - It changes nothing.
options:
  units:
    description: The services that the host should run.
    type: list
    elements: dict
    required: true
    suboptions:
      unit: {description: Full name of the unit., type: str, required: true}
      fingerprint: {description: Path of the unit's fingerprint., type: path, required: true}
      program:
        description: Whether the unit is stale, too, if the program that its main process runs was replaced
          since. A package that was upgraded without a restart leaves such a unit.
        type: bool
        default: false
  changed_files:
    description: Files that a task before this one changed, or would have changed in check mode. A running
      service whose fingerprint names one of them is stale, which lets a dry run tell what would restart.
    type: list
    elements: str
    default: []
  other_units:
    description: Other units that the host should run, such as a target, which have no fingerprint.
    type: list
    elements: str
    default: []
  drain_marker:
    description: A file by which the host says that these services are not to run now.
    type: path
  app_dir:
    description: The app's directory, such as C(/opt/celery/shop), whose releases are told, too.
    type: path
  pattern:
    description: Glob of unit names, for instance C(celery-worker@*.service). Units that match it, but are
      not in I(units), are returned as I(surplus).
    type: str
extends_documentation_fragment:
  - fleet.celery.attributes
  - fleet.celery.attributes.info
author: The celery-fleet contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Compare what runs with what should
  fleet.celery.fleet_stale:
    units:
      - {unit: celery-worker@default-1.service, fingerprint: /run/celery/default-1.started}
    pattern: celery-worker@*.service
  register: units
"""

RETURN = r"""
stale:
  description: Units that run, and whose files changed since they started.
  returned: always
  type: list
  elements: str
down:
  description: Units of I(units) and of I(other_units) that do not run, or are not enabled.
  returned: always
  type: list
  elements: str
replaced:
  description: Those of the stale ones whose program was replaced since they started.
  returned: always
  type: list
  elements: str
surplus:
  description: Units of the pattern that run, are enabled or have a drop-in, and are not in I(units).
  returned: always
  type: list
  elements: str
states:
  description: The C(ActiveState) of each unit of I(units) and of I(other_units).
  returned: always
  type: dict
  sample: {celery-beat.service: active}
drained: {description: Whether the host has I(drain_marker)., returned: always, type: bool}
reason: {description: The text in I(drain_marker); empty if the host has none., returned: always, type: str}
current:
  description: The release that C(current) in I(app_dir) leads to; empty if there is none.
  returned: always
  type: str
previous: {description: The same of C(previous)., returned: always, type: str}
"""

from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.fleet.celery.plugins.module_utils.app_release_tree import ReleaseTree
from ansible_collections.fleet.celery.plugins.module_utils.fleet_stale import is_stale
from ansible_collections.fleet.celery.plugins.module_utils.fleet_systemd import (
    SystemdError,
    call,
    is_settled,
    is_up,
    show,
)

if TYPE_CHECKING:
    from typing import Any

    from ansible_collections.fleet.celery.plugins.module_utils.fleet_systemd import Run

UNIT_DIR = Path("/etc/systemd/system")
PROC = Path("/proc")


def is_replaced(run: Run, unit: str, proc: Path) -> bool:
    """Whether the program of a unit's main process is gone; an upgrade lays another in its place."""
    pid = call(run, "show", "--property=MainPID", "--value", unit).strip()
    try:
        program = str((proc / pid / "exe").readlink())
    except OSError:  # the process ended, or there is none: 0
        return False
    return program.endswith(" (deleted)")


def matching_units(run: Run, pattern: str, unit_dir: Path) -> set[str]:
    """Return the units that match a pattern and run or failed, are enabled, or have a drop-in.

    A drop-in for all instances, which an administrator may have laid, is that of no unit.
    """
    listed = call(run, "list-units", "--plain", "--no-legend", pattern).splitlines()
    members = {line.split()[0] for line in listed if line.strip()}
    enabled = {path.name for path in unit_dir.glob("*.wants/*")}
    tuned = {path.name.removesuffix(".d") for path in unit_dir.glob("*.service.d")}
    named = {name for name in enabled | tuned if "@." not in name}
    return members | {name for name in named if fnmatchcase(name, pattern)}


def compare(params: dict[str, Any], run: Run, unit_dir: Path = UNIT_DIR, proc: Path = PROC) -> dict[str, Any]:
    """Return the module's result."""
    fingerprints = {item["unit"]: Path(item["fingerprint"]) for item in params["units"]}
    states = show(run, [*fingerprints, *params.get("other_units", ())])
    pattern = params["pattern"]
    surplus = matching_units(run, pattern, unit_dir) - set(fingerprints) if pattern else set()
    up = [unit for unit in fingerprints if is_up(states[unit])]
    # One that waits for its turn to start has read nothing yet.
    begun = [unit for unit in up if states[unit]["SubState"] != "start-pre"]
    watched = {item["unit"] for item in params["units"] if item.get("program")}
    replaced = [unit for unit in up if unit in watched and is_replaced(run, unit, proc)]
    marker = Path(params["drain_marker"]) if params.get("drain_marker") else None
    drained = marker is not None and marker.exists()
    tree = ReleaseTree(Path(params["app_dir"])) if params.get("app_dir") else None
    return {
        "changed": False,
        "stale": [u for u in begun if u in replaced or is_stale(fingerprints[u], params["changed_files"])],
        "down": [unit for unit, state in states.items() if not is_settled(state)],
        "replaced": replaced,
        "surplus": sorted(surplus),
        "states": {unit: state["ActiveState"] for unit, state in states.items()},
        "drained": drained,
        "reason": marker.read_text(encoding="utf-8").strip() if marker and drained else "",
        "current": (tree and tree.linked("current")) or "",
        "previous": (tree and tree.linked("previous")) or "",
    }


def main() -> None:
    """Run the module."""
    unit = {
        "unit": {"type": "str", "required": True},
        "fingerprint": {"type": "path", "required": True},
        "program": {"type": "bool", "default": False},
    }
    module = AnsibleModule(
        argument_spec={
            "units": {"type": "list", "elements": "dict", "required": True, "options": unit},
            "changed_files": {"type": "list", "elements": "str", "default": []},
            "other_units": {"type": "list", "elements": "str", "default": []},
            "pattern": {"type": "str"},
            "drain_marker": {"type": "path"},
            "app_dir": {"type": "path"},
        },
        supports_check_mode=True,
    )
    try:
        result = compare(module.params, module.run_command)
    except (SystemdError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
