# SPDX-License-Identifier: MIT
"""Read from the inventory how each host is called."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.fleet.celery.plugins.module_utils import pki_names


class ActionModule(ActionBase):
    """The action."""

    _requires_connection = False

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        """Run the action."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        self.validate_argument_spec({})
        hostvars, groups = task_vars["hostvars"], task_vars["groups"]
        called = {
            host: pki_names.called(host, self.variables(task_vars, host), groups).as_dict()
            for host in hostvars
        }
        return {**result, "hosts": called}

    def variables(self, task_vars: Any, host: str) -> dict[str, Any]:
        """Return those variables of a host that say how it is called.

        They are templated one by one: `hostvars` itself cannot, where one names `hostvars`.
        """
        raw = task_vars["hostvars"].raw_get(host)
        everything = {**raw, "hostvars": task_vars["hostvars"], "groups": task_vars["groups"]}
        templar = self._templar.copy_with_new_env(available_variables=everything)
        return {name: templar.template(raw[name]) for name in pki_names.VARIABLES if name in raw}
