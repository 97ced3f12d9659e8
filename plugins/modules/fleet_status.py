#!/usr/bin/python
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tell how a host of the fleet is, in a few words for a table."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: fleet_status
short_description: Tell how a host of the fleet is, in a few words for a table
description:
  - Asks the host only, so it answers when Redis is away. It changes nothing.
options:
  path:
    description: The app's directory, such as C(/opt/celery/shop).
    type: path
    required: true
  units:
    description: Units that the host should run, with the stamp of each. See M(fleet.celery.fleet_stale).
    type: list
    elements: dict
    default: []
    suboptions:
      unit: {description: Full name of the unit., type: str, required: true}
      stamp: {description: Path of the unit's stamp., type: path, required: true}
  mark:
    description: A file by which the host says that it is drained, and why.
    type: path
author: celery-fleet
"""

EXAMPLES = r"""
- name: See how the host is
  fleet.celery.fleet_status:
    path: /opt/celery/shop
    units: [{unit: celery-beat.service, stamp: /run/celery-beat.started}]
"""

RETURN = r"""
row: {description: "What is said, by column.", returned: always, type: dict}
well: {description: "Whether all units are up, with what they should have.", returned: always, type: bool}
"""

from pathlib import Path
from typing import TYPE_CHECKING

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.fleet.celery.plugins.module_utils.app_release_tree import ReleaseTree
from ansible_collections.fleet.celery.plugins.module_utils.fleet_stale import is_stale
from ansible_collections.fleet.celery.plugins.module_utils.fleet_systemd import SystemdError, is_up, show

if TYPE_CHECKING:
    from typing import Any

    from ansible_collections.fleet.celery.plugins.module_utils.fleet_systemd import Run

NOTHING = "-"


def look(params: dict[str, Any], run: Run) -> dict[str, Any]:
    """Return the module's result."""
    tree = ReleaseTree(Path(params["path"]))
    stamps = {item["unit"]: Path(item["stamp"]) for item in params["units"]}
    states = show(run, list(stamps))
    up = [unit for unit, state in states.items() if state["ActiveState"] == "active"]
    down = [unit for unit, state in states.items() if not is_up(state)]
    missing = [unit for unit in states if unit not in up]
    stale = [unit for unit in up if is_stale(stamps[unit], ())]
    mark = Path(params["mark"] or "/nonexistent")
    drained = (mark.read_text(encoding="utf-8").strip() or "yes") if mark.exists() else ""
    return {
        "changed": False,
        "row": {
            "RELEASE": tree.linked("current") or NOTHING,
            "BEFORE": tree.linked("previous") or NOTHING,
            "UP": f"{len(up)} of {len(states)}",
            "STALE": len(stale) or NOTHING,
            "DRAINED": drained or NOTHING,
            "NOT UP": ", ".join(name.removesuffix(".service") for name in missing) or NOTHING,
        },
        "well": not stale and (not missing or (bool(drained) and missing == down)),
    }


def main() -> None:
    """Run the module."""
    unit = {"unit": {"type": "str", "required": True}, "stamp": {"type": "path", "required": True}}
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "units": {"type": "list", "elements": "dict", "default": [], "options": unit},
            "mark": {"type": "path"},
        },
        supports_check_mode=True,
    )
    try:
        result = look(module.params, module.run_command)
    except (SystemdError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
