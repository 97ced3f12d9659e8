#!/usr/bin/python
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Put a new key and its certificate in the place of the old ones."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: pki_pair
short_description: Put a new key and its certificate in the place of the old ones
description:
  - Refuses a certificate that is not the new key's, and leaves the old pair then.
  - The two files are replaced one right after the other. If the host loses its power just there, the next
    run of the role pki mends it.
options:
  key: {description: Path of the key., type: path, required: true}
  next_key: {description: "Path of the new key, which is moved to I(key).", type: path, required: true}
  certificate: {description: Path of the certificate., type: path, required: true}
  content: {description: The new certificate., type: str, required: true}
author: celery-fleet
"""

EXAMPLES = r"""
- name: Put the new pair in place
  fleet.celery.pki_pair:
    key: /etc/fleet/tls/host.key
    next_key: /etc/fleet/tls/host.key.next
    certificate: /etc/fleet/tls/host.crt
    content: "{{ lookup('file', 'host.crt', rstrip=false) }}"
"""

RETURN = r"""#"""

import os
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.fleet.celery.plugins.module_utils.certificates import belong_together


class PairError(Exception):
    """The new pair is none."""


def put(key: str, next_key: str, certificate: str, content: str) -> None:
    """Put a pair in place.

    Raises:
        PairError: The certificate is not the new key's.
    """
    handle, name = tempfile.mkstemp(dir=Path(certificate).parent, prefix=f".{Path(certificate).name}.")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(content)
            file.flush()
            os.fchmod(handle, 0o644)
            os.fsync(handle)
        if not belong_together(name, next_key):
            raise PairError(f"The new certificate does not belong to {next_key}.")
        Path(next_key).replace(key)
        Path(name).replace(certificate)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def main() -> None:
    """Run the module."""
    path = {"type": "path", "required": True}
    module = AnsibleModule(
        argument_spec={
            "key": {**path, "no_log": False},
            "next_key": {**path, "no_log": False},
            "certificate": path,
            "content": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    try:
        if not module.check_mode:
            put(**module.params)
    except (PairError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=True)


if __name__ == "__main__":
    main()
