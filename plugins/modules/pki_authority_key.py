#!/usr/bin/python
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Encrypt private keys with another passphrase."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: pki_authority_key
short_description: Encrypt private keys with another passphrase
description:
  - A key that the new passphrase opens is left alone, so a run that was interrupted can be repeated.
  - The file is replaced at once, and is never there in clear.
options:
  paths:
    description: Files with a key each. One that is not there is passed over.
    type: list
    elements: path
    required: true
  passphrase: {description: The new one., type: str, required: true}
  previous_passphrase: {description: The one that a key may still have., type: str, required: true}
author: celery-fleet
requirements: [cryptography]
"""

EXAMPLES = r"""
- name: Encrypt the authority's key anew
  fleet.celery.pki_authority_key:
    paths: [/srv/pki/ca.key]
    passphrase: "{{ new }}"
    previous_passphrase: "{{ old }}"
"""

RETURN = r"""
encrypted:
  description: Keys that were encrypted anew, or would be in check mode.
  returned: success
  type: list
  elements: str
"""

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

try:
    from cryptography.hazmat.primitives import serialization
except ImportError:
    serialization = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes


def opened(pem: bytes, passphrase: str) -> PrivateKeyTypes | None:
    """Return the key that is in a PEM text; None if the passphrase is not its."""
    try:
        return serialization.load_pem_private_key(pem, passphrase.encode())
    except (TypeError, ValueError):  # not encrypted, or encrypted otherwise
        return None


def encrypt(path: Path, new: str, old: str, *, check: bool) -> bool:
    """Encrypt a key with the new passphrase, unless it is already.

    Returns:
        Whether it was, or in check mode would be, changed.

    Raises:
        ValueError: Neither passphrase opens it.
    """
    pem = path.read_bytes()
    if opened(pem, new):
        return False
    key = opened(pem, old)
    if key is None:
        raise ValueError(f"{path} is encrypted with neither the new passphrase nor the one before it")
    if not check:
        replace(
            path,
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(new.encode()),
            ),
        )
    return True


def replace(path: Path, content: bytes) -> None:
    """Replace a file at once, readable by its owner only."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(handle)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "paths": {"type": "list", "elements": "path", "required": True},
            "passphrase": {"type": "str", "required": True, "no_log": True},
            "previous_passphrase": {"type": "str", "required": True, "no_log": True},
        },
        supports_check_mode=True,
    )
    if serialization is None:
        module.fail_json(msg=missing_required_lib("cryptography"))
    new, old = module.params["passphrase"], module.params["previous_passphrase"]
    try:
        encrypted = [
            path
            for path in module.params["paths"]
            if Path(path).exists() and encrypt(Path(path), new, old, check=module.check_mode)
        ]
    except (OSError, ValueError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=bool(encrypted), encrypted=encrypted)


if __name__ == "__main__":
    main()
