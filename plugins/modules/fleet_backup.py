#!/usr/bin/python
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Restore or remove the backup of the files that a batch changed on a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: fleet_backup
short_description: Restore or remove the backup of the files that a batch changed
version_added: 0.1.0
description:
  - M(fleet.celery.fleet_files) and M(fleet.celery.celery_release) with C(backup_for) save each file and link
    before they change it, for the role whose batch it is.
  - The backup stays until the host is healthy with the new files (C(absent)), or is restored (C(restored)).
    So the next run finds the backup of an interrupted one.
options:
  owner:
    description: The role whose backup it is. Without it, C(absent) removes the backups of all roles.
    type: str
    choices: [celery_worker, celery_beat, flower]
  state:
    description:
      - C(listed) changes nothing, and returns the saved paths.
      - C(restored) restores the saved paths, and removes the backup. If one of them is a unit, systemd reads
        its units again.
      - C(absent) removes the backup.
    type: str
    choices: [listed, restored, absent]
    default: listed
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
- name: Restore the previous Flower
  fleet.celery.fleet_backup:
    owner: flower
    state: restored
"""

RETURN = r"""
restored:
  description: Paths that are restored, or are saved for that.
  returned: always
  type: list
  elements: str
removed:
  description: Paths that did not exist before.
  returned: always
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.fleet.celery.plugins.module_utils.fleet_backup import (
    OWNERS,
    WAS,
    WAS_NOT,
    Backup,
    all_backups,
)
from ansible_collections.fleet.celery.plugins.module_utils.fleet_systemd import SystemdError, reload_for


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "owner": {"type": "str", "choices": list(OWNERS)},
            "state": {"type": "str", "choices": ["listed", "restored", "absent"], "default": "listed"},
        },
        required_if=[("state", "listed", ["owner"]), ("state", "restored", ["owner"])],
        supports_check_mode=True,
    )
    owner, state = module.params["owner"], module.params["state"]
    chosen = [Backup(owner)] if owner else all_backups()
    was, was_not = (
        [str(path) for backup in chosen for path in backup.paths(kind)] for kind in (WAS, WAS_NOT)
    )
    try:
        if not module.check_mode and state != "listed":
            for backup in chosen:
                if state == "restored":
                    backup.restore()
                    reload_for(module.run_command, was + was_not)
                backup.drop()
    except (OSError, SystemdError) as error:
        module.fail_json(msg=str(error))
    changed = state == "restored" and bool(was or was_not)
    module.exit_json(changed=changed, restored=was, removed=was_not)


if __name__ == "__main__":
    main()
