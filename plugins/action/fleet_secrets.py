"""Make the passwords that an environment lacks, into its vault file.

An action plugin and not a module: it runs on the controller, and encrypts with whatever vault password
Ansible was given (file, prompt or vault id), which no module gets to see.
"""

from __future__ import annotations

import os
import secrets
import string
import tempfile
from pathlib import Path
from typing import Any

import yaml
from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.parsing.vault import VaultLib, VaultSecretsContext, is_encrypted
from ansible.plugins.action import ActionBase

DOCUMENTATION = r"""
name: fleet_secrets
short_description: Make the passwords that an environment lacks, into its vault file
description:
  - A password that exists is never changed. A file that lacks none is not written.
  - Passwords are neither shown nor logged.
options:
  path: {description: The vault file., type: path, required: true}
  names: {description: Keys that `fleet_secrets` must have., type: list, elements: str, required: true}
author: celery-fleet
"""

ALPHABET = string.ascii_letters + string.digits
LENGTH = 40  # 238 bits, and easy to copy
HEADER = "# The passwords of this fleet, made by playbooks/secrets.yml. It never changes one that is here.\n"


class ActionModule(ActionBase):  # type: ignore[misc]  # ansible ships no types
    """The action."""

    _requires_connection = False

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        """Run the action."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, arguments = self.validate_argument_spec(
            {
                "path": {"type": "path", "required": True},
                "names": {"type": "list", "elements": "str", "required": True},
            }
        )
        path = Path(arguments["path"])
        context = VaultSecretsContext.current(optional=True)
        if context is None or not context.secrets:
            raise AnsibleActionFail(
                "There is no vault password to encrypt with. Put one into a file that only you can read, and "
                "name it in ANSIBLE_VAULT_PASSWORD_FILE or with --vault-password-file."
            )
        text = read(path, VaultLib(secrets=context.secrets))
        present = secrets_of(path, text)
        # str: Ansible's own kind of text is one that YAML cannot write
        missing = [str(name) for name in arguments["names"] if name not in present]
        if missing and not self._task.check_mode:
            write(path, VaultLib(secrets=context.secrets).encrypt(extended(text, present, missing)))
        result.update(changed=bool(missing), made=missing)
        return result


def read(path: Path, vault: VaultLib) -> str:
    """Return the text of a vault file; nothing if there is none yet.

    Raises:
        AnsibleActionFail: It is not encrypted, or not with a password that Ansible was given.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return ""
    if not is_encrypted(data):
        raise AnsibleActionFail(
            f"{path} is not encrypted, so whoever reads the inventory has the passwords. "
            f"Encrypt it with `ansible-vault encrypt {path}`, or remove it to have new ones made."
        )
    try:
        return str(vault.decrypt(data).decode())
    except AnsibleError:
        raise AnsibleActionFail(
            f"{path} cannot be decrypted with the vault password that was given."
        ) from None


def secrets_of(path: Path, text: str) -> dict[str, Any]:
    """Return the passwords in the text of a vault file.

    Raises:
        AnsibleActionFail: The text is not what a variables file has.
    """
    try:
        content = yaml.safe_load(text) or {}
    except yaml.YAMLError:
        raise AnsibleActionFail(f"{path} is not YAML. Look at it with `ansible-vault edit {path}`.") from None
    found = content.get("fleet_secrets", {}) if isinstance(content, dict) else None
    if not isinstance(found, dict):
        raise AnsibleActionFail(f"{path} must have a mapping fleet_secrets, of a name to a password each.")
    return found


def extended(text: str, present: dict[str, Any], missing: list[str]) -> str:
    """Return the text with a new password for each name; its other variables and its comments stay."""
    made = {name: "".join(secrets.choice(ALPHABET) for _ in range(LENGTH)) for name in missing}
    lines = "".join(f"  {name}: {password}\n" for name, password in made.items())
    if not present:
        rest = text.replace("fleet_secrets: {}\n", "").replace("fleet_secrets:\n", "")
        return f"{rest or '---' + chr(10) + HEADER}fleet_secrets:\n{lines}"
    if "\nfleet_secrets:\n  " in f"\n{text}":
        return text.replace("fleet_secrets:\n", f"fleet_secrets:\n{lines}", 1)
    # somebody wrote it in another style, so its comments cannot be kept in place
    content = yaml.safe_load(text)
    content["fleet_secrets"] = {**present, **made}
    return "---\n" + HEADER + yaml.safe_dump(content, allow_unicode=True, sort_keys=False)


def write(path: Path, data: bytes) -> None:
    """Replace a file at once, readable by its owner only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
