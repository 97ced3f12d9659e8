# SPDX-License-Identifier: MIT
"""The inventory as the playbooks see it: the expectations of this suite come from here.

Ansible's own code reads it, so `group_vars`, vault and templates mean here what they mean in a play.
"""

from __future__ import annotations

import argparse
import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.cli import CLI
from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar
from ansible.vars.hostvars import HostVars
from ansible.vars.manager import VariableManager

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROOT = Path(__file__).resolve().parents[3]


class Variables:
    """The variables of one host, each templated when it is asked for."""

    def __init__(self, loader: DataLoader, values: dict[str, Any]) -> None:
        """Keep the raw values."""
        self._values = values
        self._templar = Templar(loader, values)

    def __getitem__(self, name: str) -> Any:
        """Return a variable's value as a play would use it."""
        return self._templar.template(self._values[name])

    def get(self, name: str) -> Any:
        """Return a variable's value; None if there is no such variable."""
        return self[name] if name in self._values else None


class Inventory:
    """The hosts, their groups and their variables."""

    def __init__(self, arguments: Sequence[str]) -> None:
        """Read the inventory.

        Args:
            arguments: As for `ansible-playbook`: its -i and --vault-password-file.
        """
        parser = argparse.ArgumentParser()
        parser.add_argument("-i", "--inventory", action="append", required=True)
        parser.add_argument("--vault-password-file", default=os.environ.get("ANSIBLE_VAULT_PASSWORD_FILE"))
        options = parser.parse_args(arguments)

        self._sources = [str(ROOT / source) for source in options.inventory]
        self._vault_secrets = []
        if options.vault_password_file:
            files = [str(ROOT / options.vault_password_file)]
            self._vault_secrets = CLI.setup_vault_secrets(
                DataLoader(), vault_ids=[], vault_password_files=files, auto_prompt=False
            )
        self.read()

    def read(self) -> None:
        """Read all files, as they are now."""
        self._loader = DataLoader()
        self._loader.set_basedir(str(ROOT))
        self._loader.set_vault_secrets(self._vault_secrets)
        self._manager = InventoryManager(self._loader, self._sources)
        self._variables = VariableManager(self._loader, self._manager)
        HostVars(self._manager, self._variables, self._loader)  # gives the variables `hostvars`
        self.__dict__.pop("secrets", None)

    @cached_property
    def hosts(self) -> list[str]:
        """The names of all hosts."""
        return [host.name for host in self._manager.get_hosts()]

    def group(self, name: str) -> list[str]:
        """Return the names of a group's hosts; nothing where there is no such group."""
        return [host.name for host in self._manager.get_hosts(name)] if name in self._manager.groups else []

    def groups_of(self, host: str) -> set[str]:
        """Return the names of the groups that a host is in."""
        return {group.name for group in self._manager.get_host(host).get_groups()}

    def variables(self, host: str) -> Variables:
        """Return a host's variables, with what the roles' defaults and the playbooks add."""
        own = self._variables.get_vars(host=self._manager.get_host(host))
        values = {**self._defaults, **own, **self._given, "playbook_dir": str(ROOT / "playbooks")}
        return Variables(self._loader, values)

    @cached_property
    def secrets(self) -> Mapping[str, str]:
        """Every secret of the fleet, by name."""
        return {name: str(value) for name, value in self.variables(self.hosts[0])["fleet_secrets"].items()}

    @cached_property
    def _defaults(self) -> dict[str, Any]:
        """The defaults of all roles, whose names do not clash."""
        return self._load("roles/*/defaults/main.yml")

    @cached_property
    def _given(self) -> dict[str, Any]:
        """What the playbooks give the roles."""
        return self._load("playbooks/vars/*.yml")

    def _load(self, pattern: str) -> dict[str, Any]:
        """Return the variables of several files."""
        files = [
            self._loader.load_from_file(str(path), trusted_as_template=True) for path in ROOT.glob(pattern)
        ]
        return {name: value for content in files for name, value in (content or {}).items()}
