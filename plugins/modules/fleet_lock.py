#!/usr/bin/python
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Take, or give back, the lock of the fleet. The action plugin of this name says for whom."""

from __future__ import annotations

DOCUMENTATION = r"""
module: fleet_lock
short_description: Let one operator at a time change the fleet
version_added: 0.1.0
description:
  - The lock is a file on one host. It names the user, the controller and the playbook that hold it, and since
    when.
  - It is held until it is given back. A run that failed, or was interrupted, leaves it behind. The next run
    on the same controller sees that the process is gone, and takes it. Another controller is refused, unless
    I(takeover) is set.
options:
  state:
    description: C(held) takes the lock, C(free) gives it back.
    type: str
    choices: [held, free]
    required: true
  takeover:
    description: Take the lock from the run that has it.
    type: bool
    default: false
  run:
    description:
      - Names the run that the lock is for by its C(id), and says what others are told of it.
      - The action of this name sets it; a task leaves it out.
    type: dict
    required: true
  previous_run:
    description: The C(id) of a holder whose run is over, from whom the lock is taken. The action sets it.
    type: str
    default: ""
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
- name: Refuse to run beside another operator
  fleet.celery.fleet_lock:
    state: held
"""

RETURN = r"""
holder: {description: The run that has the lock now., returned: always, type: dict}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.fleet.celery.plugins.module_utils.fleet_lock import free, holder, take


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["held", "free"], "required": True},
            "takeover": {"type": "bool", "default": False},
            "run": {"type": "dict", "required": True},
            "previous_run": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    given = module.params
    try:
        if module.check_mode:
            found = holder() or {}
        elif given["state"] == "held":
            found = take(given["run"], given["previous_run"])
        else:
            free(given["run"]["id"])
            found = holder() or {}
    except OSError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, holder=found)


if __name__ == "__main__":
    main()
