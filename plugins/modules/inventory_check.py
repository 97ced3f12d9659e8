#!/usr/bin/python
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action inventory_check, which does the work on the controller. There is no module."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: inventory_check
short_description: Refuse an inventory that cannot work, with all findings in one message
description:
  - Reads the variables of all hosts on the controller, and connects to none.
  - Warns of settings that work, but cost much.
options:
  roles:
    description: For each role that has an argument specification, the groups that it runs on.
    type: dict
    required: true
extends_documentation_fragment:
  - fleet.celery.attributes
  - fleet.celery.attributes.info
author: The celery-fleet contributors (!UNKNOWN)
version_added: 0.1.0
"""

EXAMPLES = r"""
- name: Check the inventory
  fleet.celery.inventory_check:
    roles: {redis: [redis], celery_worker: [workers]}
"""

RETURN = r""" # """
