# SPDX-License-Identifier: MIT
"""Refuse an inventory that cannot work, with all findings in one message."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from ansible import constants
from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.plugins.action import ActionBase
from ansible.utils.vars import load_extra_vars
from ansible_collections.fleet.celery.plugins.filter import celery_worker
from ansible_collections.fleet.celery.plugins.module_utils import inventory_check as preflight
from ansible_collections.fleet.celery.plugins.module_utils.playbook_variables import problems

if TYPE_CHECKING:
    from ansible.parsing.dataloader import DataLoader

COLLECTION = Path(__file__).resolve().parents[2]


class ActionModule(ActionBase):
    """The action."""

    _requires_connection = False

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        """Run the action."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _unused, arguments = self.validate_argument_spec({"roles": {"type": "dict", "required": True}})
        specs = {role: argument_specs(role) for role in arguments["roles"]}
        prefixes = tuple(sorted({f"{name.split('_')[0]}_" for spec in specs.values() for name in spec}))
        hostvars = task_vars["hostvars"]
        inventory = preflight.Inventory(
            hosts={host: self.variables(task_vars, host, prefixes) for host in hostvars},
            groups=task_vars["groups"],
            specs=specs,
            roles=arguments["roles"],
            given={role: given(role) for role in arguments["roles"]},
            pool_problems=pool_problems,
            reached_at=self.reached_at(task_vars),
            facts_are_variables=bool(constants.INJECT_FACTS_AS_VARS),
            extra=load_extra_vars(self._loader).keys(),
        )
        found = preflight.check(inventory)
        if found:
            result.update(failed=True, msg=preflight.report(found))  # an exception would be shown twice
        else:
            result["warnings"] = [preflight.warning(*cost) for cost in preflight.costs(inventory)]
        return result

    def reached_at(self, task_vars: Any) -> dict[str, Any]:
        """Return the ansible_host of each host that has one."""
        found = {host: self.variables(task_vars, host, ("ansible_host",)) for host in task_vars["hostvars"]}
        return {
            host: of["ansible_host"]
            for host, of in found.items()
            if of and not isinstance(of["ansible_host"], preflight.Broken)
        }

    def variables(self, task_vars: Any, host: str, prefixes: tuple[str, ...]) -> dict[str, Any]:
        """Return a host's variables with one of the prefixes, templated one by one."""
        raw = task_vars["hostvars"].raw_get(host)
        everything = {**raw, "hostvars": task_vars["hostvars"], "groups": task_vars["groups"]}
        templar = self._templar.copy_with_new_env(available_variables=everything)
        found: dict[str, Any] = {}
        for name, value in raw.items():
            if name.startswith(prefixes):
                try:
                    found[name] = templar.template(value)
                except AnsibleError as error:
                    found[name] = preflight.Broken(str(error).splitlines()[0])
        return found


def specification(role: str) -> Path:
    """Return the path of a role's argument specification."""
    return COLLECTION / "roles" / role / "meta" / "argument_specs.yml"


def argument_specs(role: str) -> dict[str, Any]:
    """Return the options of a role's main entry point."""
    described = yaml.safe_load(specification(role).read_text())
    options: dict[str, Any] = described["argument_specs"]["main"]["options"]
    return options


def require_extra_variables(loader: DataLoader) -> None:
    """Refuse extra variables (`-e`) with a former name, or with a misspelt one.

    Raises:
        AnsibleActionFail: This run was given such a variable.
    """
    found = problems(load_extra_vars(loader), argument_specs("preflight"))
    if found:
        raise AnsibleActionFail("\n".join([*found, "Nothing was changed."]))


def given(role: str) -> list[str]:
    """Return the names of the variables that the playbooks set for a role."""
    path = COLLECTION / "playbooks" / "vars" / f"{role}.yml"
    return sorted(yaml.safe_load(path.read_text())) if path.exists() else []


def pool_problems(pools: Any, host: str) -> list[str]:
    """Return what is wrong with a host's pools, whatever its size, which is validated on the host."""
    spec = str(specification("celery_worker").with_name("pool.yml"))
    return celery_worker.problems(pools, spec, host, cpus=None, memory_mb=None)
