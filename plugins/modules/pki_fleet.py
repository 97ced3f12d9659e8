#!/usr/bin/python
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action pki_fleet, which does the work on the controller. There is no module."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: pki_fleet
short_description: Read from the inventory how each host is called
description:
  - Reads the variables of all hosts on the controller, and connects to none. Facts are no part of it.
options: {}
extends_documentation_fragment:
  - fleet.celery.attributes
  - fleet.celery.attributes.info
author: The celery-fleet contributors (!UNKNOWN)
version_added: 0.1.0
"""

EXAMPLES = r"""
- name: Read how each host is called
  fleet.celery.pki_fleet:
  register: called
"""

RETURN = r"""
hosts:
  description: For each host what is its own, its services, more, and whether it runs a service.
  returned: success
  type: dict
"""
