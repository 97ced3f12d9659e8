# SPDX-License-Identifier: MIT
"""Install Debian packages that a host lacks; the module of the same name tells which those are."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase

LOCK_TIMEOUT = (
    600  # seconds to wait for apt's lock, should another program take it after the module has waited
)
INDEX_AGE = 86400  # seconds for which an index that was fetched is not fetched again


class ActionModule(ActionBase):  # type: ignore[misc]  # ansible ships no types
    """Asks first, and loads Debian's index only where something is to be installed."""

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        """Install."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        asked = self._execute_module(task_vars=task_vars)
        result.update(asked)
        if asked.get("failed") or not asked["missing"]:
            return result
        given = {
            **self._task.args,
            "cache_valid_time": INDEX_AGE,
            "install_recommends": False,
            "lock_timeout": LOCK_TIMEOUT,
            "update_cache": True,
        }
        result.update(
            self._execute_module("ansible.legacy.apt", module_args=given, task_vars=task_vars),
            missing=asked["missing"],
        )
        return result
