#!/usr/bin/python
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Refuse a port that something else listens on."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: fleet_port
short_description: Refuse a port that something else listens on
description:
  - Fails with the name of who has the port, unless that is the service itself. It changes nothing.
options:
  bind:
    description: Addresses that the service shall listen on; an asterisk is all.
    type: list
    elements: str
    required: true
  port: {description: Its port., type: int, required: true}
  unit: {description: Its systemd unit., type: str, required: true}
  variable: {description: The variable that sets the port., type: str, required: true}
author: celery-fleet
"""

EXAMPLES = r"""
- name: Refuse a port that is taken
  fleet.celery.fleet_port:
    bind: ["*"]
    port: 5555
    unit: nginx.service
    variable: flower_port
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.fleet.celery.plugins.module_utils import fleet_sockets


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "bind": {"type": "list", "elements": "str", "required": True},
            "port": {"type": "int", "required": True},
            "unit": {"type": "str", "required": True},
            "variable": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    if found := list(fleet_sockets.taken(**module.params)):
        module.fail_json(
            msg="This host cannot run the service, and nothing was changed.\n- " + "\n- ".join(found)
        )
    module.exit_json(changed=False)


if __name__ == "__main__":
    main()
