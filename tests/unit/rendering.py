# SPDX-License-Identifier: MIT
"""Render a role's templates as Ansible does: with its defaults, its vars, and the project's filters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

PROJECT = Path(__file__).parents[2]


class Role:
    """A role with the variables that a playbook gives it."""

    def __init__(self, name: str, **variables: Any) -> None:
        """Read the role's defaults and vars, and lay the given variables over them."""
        self.path = PROJECT / "roles" / name
        self.variables = {
            **trusted(self.read("defaults/main.yml")),
            **trusted(self.read("vars/main.yml")),
            **variables,
            "inventory_hostname": "host1",
            "role_path": str(self.path),
            "ansible_search_path": [str(self.path)],
        }
        self.templar = Templar(DataLoader(), variables=self.variables)

    def read(self, file: str) -> Any:
        """Return a YAML file of the role as it is, or nothing if there is none."""
        path = self.path / file
        return yaml.safe_load(path.read_text()) if path.exists() else {}

    def evaluate(self, expression: str) -> Any:
        """Return the value of a Jinja expression."""
        return self.templar.template(trust_as_template("{{ " + expression + " }}"))

    def template(self, name: str) -> str:
        """Return the text of a template of the role."""
        return str(self.evaluate(f"lookup('ansible.builtin.template', '{name}')"))


def trusted(value: Any) -> Any:
    """Mark the strings of a role's own file as templates, as Ansible does when it reads the file."""
    if isinstance(value, str):
        return trust_as_template(value)
    if isinstance(value, dict):
        return {key: trusted(item) for key, item in value.items()}
    return [trusted(item) for item in value] if isinstance(value, list) else value
