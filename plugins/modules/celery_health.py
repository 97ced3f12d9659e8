#!/usr/bin/python
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask Celery nodes, of any number of hosts, whether they consume their queues."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: celery_health
short_description: Wait until Celery nodes consume the queues that they should
description:
  - Asks all nodes at once (C(celery fleet consumed)), and those that are not well again.
  - It changes nothing, and it does not fail for nodes that are not well. Each host can say so of its own.
options:
  command:
    description: Celery's command line for operators.
    type: list
    elements: str
    default: [/usr/local/bin/fleet-celery]
  expected:
    description: Full name of each node -> the queues that it should consume, and no other.
    type: dict
    required: true
  timeout: {description: Seconds to wait for the answers to one question., type: int, default: 5}
  retries: {description: How often nodes that are not well are asked again., type: int, default: 15}
  delay: {description: Seconds between two questions., type: int, default: 2}
author: celery-fleet
"""

EXAMPLES = r"""
- name: Ask all nodes
  fleet.celery.celery_health:
    expected: {default-1@worker1: [default], heavy-1@worker2: [heavy]}
  run_once: true
"""

RETURN = r"""
sick:
  description:
    - Each node that is not well -> the queues that it consumes instead, or nothing if it does not answer.
  returned: always
  type: dict
said:
  description: What the last question printed as its error, if nodes are not well.
  returned: always
  type: str
"""

import json
import time
from typing import TYPE_CHECKING

from ansible.module_utils.basic import AnsibleModule

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    Run = Callable[[Sequence[str]], tuple[int, str, str]]
    Nodes = dict[str, list[str]]


def ask(run: Run, command: Sequence[str], nodes: Nodes, timeout: int) -> tuple[Nodes, str]:
    """Return what the nodes that answer consume, and what was printed as an error."""
    _, out, err = run([*command, "fleet", "consumed", f"--timeout={timeout}", *nodes])
    try:
        return {node: sorted(queues) for node, queues in json.loads(out or "{}").items()}, err
    except (ValueError, TypeError, AttributeError):  # it printed something else
        return {}, err or out


def examine(run: Run, params: dict[str, Any]) -> tuple[dict[str, list[str] | None], str]:
    """Return the nodes that never were well with what they consume, and what was printed as an error."""
    waiting: Nodes = {node: sorted(queues) for node, queues in params["expected"].items()}
    consumed: Nodes = {}
    said = ""
    for left in range(params["retries"], -1, -1):
        consumed, said = ask(run, params["command"], waiting, params["timeout"]) if waiting else ({}, "")
        waiting = {node: queues for node, queues in waiting.items() if consumed.get(node) != queues}
        if not waiting:
            break
        if left:
            time.sleep(params["delay"])
    return {node: consumed.get(node) for node in waiting}, said.strip() if waiting else ""


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "command": {"type": "list", "elements": "str", "default": ["/usr/local/bin/fleet-celery"]},
            "expected": {"type": "dict", "required": True},
            "timeout": {"type": "int", "default": 5},
            "retries": {"type": "int", "default": 15},
            "delay": {"type": "int", "default": 2},
        },
        supports_check_mode=True,
    )
    sick, said = examine(module.run_command, module.params)
    module.exit_json(changed=False, sick=sick, said=said)


if __name__ == "__main__":
    main()
