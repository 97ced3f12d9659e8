#!/usr/bin/python
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tell which Debian packages a host lacks. The action of the same name installs them."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: fleet_packages
short_description: Install Debian packages that a host lacks, and load no index where it lacks none
description:
  - Does what M(ansible.builtin.apt) does with I(state=present), and without recommended packages.
  - If all packages are there, the host is asked one cheap question. M(ansible.builtin.apt) would load the
    whole index of packages first, which takes a second of CPU on every host in every run.
  - Waits up to ten minutes for another program that holds apt's locks, such as the first upgrades of a new
    machine.
options:
  name: {description: Names of the packages., type: list, elements: str, required: true}
  policy_rc_d:
    description: What the package's scripts are told when they would start a service; 101 forbids it.
    type: int
author: celery-fleet
"""

EXAMPLES = r"""
- name: Install nginx, without its default site
  fleet.celery.fleet_packages:
    name: [nginx-light]
    policy_rc_d: 101
"""

RETURN = r"""
missing: {description: Those that were not installed., returned: always, type: list, elements: str}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.fleet.celery.plugins.module_utils.apt_locks import PATIENCE, wait
from ansible_collections.fleet.celery.plugins.module_utils.debian_packages import missing


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "list", "elements": "str", "required": True},
            "policy_rc_d": {"type": "int"},
        },
        supports_check_mode=True,
    )
    absent = missing(module.params["name"])
    if absent and not module.check_mode:
        first, last = wait()
        if last:
            module.fail_json(
                msg=f"{', '.join(absent)} cannot be installed: {last} has held apt's lock for {PATIENCE} "
                "seconds. See what it does, let it end, and run again.",
                missing=absent,
            )
        if first:
            module.warn(f"Waited for {first}, which held apt's lock.")
    module.exit_json(changed=False, missing=absent)


if __name__ == "__main__":
    main()
