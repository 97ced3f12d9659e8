#!/usr/bin/python
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action pki_certificate, which does the work on the controller. There is no module."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: pki_certificate
short_description: Make a host's certificate, on the controller
description:
  - All that it says comes from the arguments. A host adds its public key, and nothing else.
  - Refuses a name or an address that is another host's, one that the authority does not permit, and a public
    key of a kind that the role pki does not make.
  - A certificate that is there already, and says all that it should, stays.
options:
  path: {description: The certificate., type: path, required: true}
  public_key: {description: The host's public key (PEM)., type: str, required: true}
  names: {description: Its names and addresses., type: list, elements: str, required: true}
  days: {description: How long it is valid., type: int, required: true}
  renew_days: {description: How long before its end it is replaced., type: int, required: true}
  fleet: {description: How each host is called (the action C(pki_fleet))., type: dict, required: true}
  authority: {description: Path of the authority's certificate., type: path, required: true}
  authority_key: {description: Path of its key., type: path, required: true}
  passphrase: {description: That of the key., type: str, required: true}
  replace: {description: Replace one that is as it should be., type: bool, default: false}
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
extends_documentation_fragment:
  - fleet.celery.attributes
author: The celery-fleet contributors (!UNKNOWN)
version_added: 0.1.0
requirements: [cryptography >= 42]
"""

EXAMPLES = r"""
- name: Make the certificate of a host
  fleet.celery.pki_certificate:
    path: "{{ inventory_dir }}/.fleet/pki/redis1.crt"
    public_key: "{{ public_key }}"
    names: [redis1, 10.0.0.5]
    days: 825
    renew_days: 60
    fleet: "{{ called.hosts }}"
    authority: "{{ inventory_dir }}/.fleet/pki/ca.crt"
    authority_key: "{{ inventory_dir }}/.fleet/pki/ca.key"
    passphrase: "{{ fleet_secrets.pki_ca }}"
"""

RETURN = r"""
reasons: {description: Why it was made., returned: success, type: list, elements: str}
"""
