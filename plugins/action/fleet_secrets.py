# SPDX-License-Identifier: MIT
"""Make the passwords of an environment, into its vault file, and replace them.

An action plugin and not a module: it runs on the controller, and encrypts with whatever vault password
Ansible was given (file, prompt or vault id), which no module gets to see.
"""

from __future__ import annotations

import secrets
import string
from pathlib import Path
from typing import Any

import yaml
from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.parsing.vault import VaultLib, VaultSecretsContext, is_encrypted
from ansible.plugins.action import ActionBase
from ansible_collections.fleet.celery.plugins.action.inventory_check import require_extra_variables
from ansible_collections.fleet.celery.plugins.module_utils.files import replace_file

ALPHABET = string.ascii_letters + string.digits
LENGTH = 40  # 238 bits, and easy to copy
NOW = "fleet_secrets"
BEFORE = "fleet_secrets_previous"
HEADER = (
    "# The passwords of this fleet, made by playbooks/secrets.yml, which never changes one that is here.\n"
)
BEFORE_HEADER = (
    "# Being replaced, and valid until playbooks/rotate_secrets.yml has ended. It removes them itself.\n"
)


class ActionModule(ActionBase):
    """The action."""

    _requires_connection = False

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        """Run the action."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        names = {"type": "list", "elements": "str"}
        _unused, arguments = self.validate_argument_spec(
            {
                "path": {"type": "path", "required": True},
                "names": {**names, "required": True},
                "replace": {**names, "default": []},
                "forget": {**names, "default": []},
                "expected": {"type": "dict"},
            }
        )
        require_extra_variables(self._loader)
        path = Path(arguments["path"])
        context = VaultSecretsContext.current(optional=True)
        if context is None or not context.secrets:
            raise AnsibleActionFail(
                "There is no vault password to encrypt with. Put one into a file that only you can read, and "
                "name it in ANSIBLE_VAULT_PASSWORD_FILE or with --vault-password-file."
            )
        text = read(path, VaultLib(secrets=context.secrets))
        now, before = mapping_of(path, text, NOW), mapping_of(path, text, BEFORE)
        expected = arguments["expected"]
        if expected is not None and plain(expected) != plain(now):
            raise AnsibleActionFail(
                f"The inventory does not have its fleet_secrets from {path}. Name the file that they are in "
                "with -e fleet_secrets_file=..., and give none with -e: all are replaced in that one file."
            )
        # str: Ansible's own kind of text is one that YAML cannot write
        missing = [str(name) for name in arguments["names"] if name not in now]
        replaced = [str(name) for name in arguments["replace"] if name in now and name not in before]
        wanted_before = {**before, **{name: now[name] for name in replaced}}
        wanted_before = {name: old for name, old in wanted_before.items() if name not in arguments["forget"]}
        wanted_now = {**now, **{name: new_password() for name in [*missing, *replaced]}}

        result.update(changed=(wanted_now, wanted_before) != (now, before), made=missing, replaced=replaced)
        if result["changed"] and not self._task.check_mode:
            write(path, VaultLib(secrets=context.secrets).encrypt(edited(text, wanted_now, wanted_before)))
        if expected is not None:
            result.update(secrets=wanted_now, previous=wanted_before, _ansible_no_log=True)
        return result


def plain(values: dict[str, Any]) -> dict[str, str]:
    """Return a mapping in Python's own types, to be compared."""
    return {str(name): str(value) for name, value in values.items()}


def new_password() -> str:
    """Return a password."""
    return "".join(secrets.choice(ALPHABET) for _unused in range(LENGTH))


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
            f"{path} is not encrypted, so everybody who reads the inventory has the passwords. "
            f"Encrypt it with `ansible-vault encrypt {path}`, or remove it to have new ones made."
        )
    try:
        return str(vault.decrypt(data).decode())
    except AnsibleError:
        raise AnsibleActionFail(
            f"{path} cannot be decrypted with the vault password that was given."
        ) from None


def mapping_of(path: Path, text: str, name: str) -> dict[str, Any]:
    """Return a mapping of names to passwords in the text of a vault file.

    Raises:
        AnsibleActionFail: The text is not what a variables file has.
    """
    try:
        content = yaml.safe_load(text) or {}
    except yaml.YAMLError:
        raise AnsibleActionFail(f"{path} is not YAML. Look at it with `ansible-vault edit {path}`.") from None
    found = content.get(name, {}) if isinstance(content, dict) else None
    if not isinstance(found, dict):
        raise AnsibleActionFail(f"{path} must have a mapping {name}, of a name to a password each.")
    return found


# --- the text of a vault file ---


def edited(text: str, now: dict[str, Any], before: dict[str, Any]) -> str:
    """Return the text with other passwords; its other variables and its comments stay."""
    old = yaml.safe_load(text) or {}
    wanted = {**old, NOW: now, BEFORE: before}
    if not before:
        del wanted[BEFORE]
    try:
        result = in_place(text, old, now, before)
        if yaml.safe_load(result) == wanted:
            return result
    except (yaml.YAMLError, KeyError):
        pass
    # somebody wrote it in another style, so its comments cannot be kept in place
    rest = {name: value for name, value in wanted.items() if name != BEFORE}
    dumped = "---\n" + HEADER + yaml.safe_dump(rest, allow_unicode=True, sort_keys=False)
    return with_previous(dumped, before)


def in_place(text: str, old: dict[str, Any], now: dict[str, Any], before: dict[str, Any]) -> str:
    """Return the text with other passwords, if it is in the style in which they are written here."""
    present = old.get(NOW) or {}
    text = with_values(text, {name: now[name] for name in present if now[name] != present[name]})
    text = with_new(text, {name: now[name] for name in now if name not in present})
    return text if before == old.get(BEFORE, {}) else with_previous(text, before)


def with_values(text: str, values: dict[str, str]) -> str:
    """Return the text with its values replaced in place."""
    nodes = {key.value: node for key, node in children(value_of(text, NOW))} if values else {}
    for name in sorted(values, key=lambda name: -int(nodes[name].start_mark.index)):
        start, end = nodes[name].start_mark.index, nodes[name].end_mark.index
        line_end = "\n" if text[start:end].endswith("\n") else ""  # a block of lines ends with its last one
        text = text[:start] + values[name] + line_end + text[end:]
    return text


def with_new(text: str, values: dict[str, str]) -> str:
    """Return the text with values that it did not have."""
    if not values:
        return text
    lines = "".join(f"  {name}: {value}\n" for name, value in values.items())
    if f"\n{NOW}:\n  " in f"\n{text}":
        return text.replace(f"{NOW}:\n", f"{NOW}:\n{lines}", 1)
    rest = text.replace(f"{NOW}: {{}}\n", "").replace(f"{NOW}:\n", "")
    return f"{rest or '---' + chr(10) + HEADER}{NOW}:\n{lines}"


def with_previous(text: str, before: dict[str, Any]) -> str:
    """Return the text with other previous passwords, which are its last lines."""
    for key, value in children(yaml.compose(text, yaml.SafeLoader)):
        if key.value == BEFORE:
            last = [node for _unused, node in children(value)][-1:] or [value]
            end = text.find("\n", last[0].end_mark.index - 1) + 1 or len(text)
            text = text[: key.start_mark.index].removesuffix(BEFORE_HEADER) + text[end:]
    if not before:
        return text
    lines = "".join(f"  {name}: {quoted(password)}\n" for name, password in before.items())
    line_end = "" if text.endswith("\n") else "\n"
    return f"{text}{line_end}{BEFORE_HEADER}{BEFORE}:\n{lines}"


def value_of(text: str, name: str) -> yaml.Node | None:
    """Return the value of a key at the top of a text, with its place; None if there is no such key."""
    found = [value for key, value in children(yaml.compose(text, yaml.SafeLoader)) if key.value == name]
    return found[0] if found else None


def children(node: yaml.Node | None) -> list[tuple[yaml.Node, yaml.Node]]:
    """Return the keys and values of a mapping, in their order; nothing if it is none."""
    return node.value if isinstance(node, yaml.MappingNode) else []


def quoted(value: Any) -> str:
    """Return a value as one line of YAML."""
    return yaml.safe_dump(value, default_style='"', width=float("inf")).removesuffix("\n")


def write(path: Path, data: bytes) -> None:
    """Replace a file, which may have the only copy of a password, readable by its owner only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, data)
