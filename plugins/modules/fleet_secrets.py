#!/usr/bin/python
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action fleet_secrets, which does the work on the controller. There is no module."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: fleet_secrets
short_description: Make the passwords of an environment, into its vault file, and replace them
description:
  - A password that exists is changed only if I(replace) names it. A file that lacks none is not written.
  - A password that was replaced stays in the file, in the mapping C(fleet_secrets_previous), until I(forget)
    names it. So the next run finds in the file what is under way, on whatever controller it runs.
  - The file is replaced at once. Its other variables and its comments stay.
  - Passwords are neither shown nor logged.
options:
  path: {description: The vault file., type: path, required: true}
  names: {description: Keys that C(fleet_secrets) must have., type: list, elements: str, required: true}
  replace:
    description: Keys of passwords to make anew. One that was replaced, and is not forgotten yet, stays.
    type: list
    elements: str
    default: []
  forget:
    description: Keys to remove from C(fleet_secrets_previous).
    type: list
    elements: str
    default: []
  expected:
    description: What the inventory has as C(fleet_secrets). A file that has something else is refused.
    type: dict
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
extends_documentation_fragment:
  - fleet.celery.attributes
author: The celery-fleet contributors (!UNKNOWN)
version_added: 0.1.0
"""

EXAMPLES = r"""
- name: Make the passwords that are missing
  fleet.celery.fleet_secrets:
    path: "{{ inventory_dir }}/group_vars/all/vault.yml"
    names: [redis_worker, redis_beat, flower]
"""

RETURN = r"""
made: {description: Keys that were made., returned: success, type: list, elements: str}
replaced: {description: Keys that were replaced., returned: success, type: list, elements: str}
secrets:
  description: What C(fleet_secrets) has now, or would have. A result that has it is not shown.
  returned: with expected
  type: dict
previous: {description: The same for C(fleet_secrets_previous)., returned: with expected, type: dict}
"""
