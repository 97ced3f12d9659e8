#!/usr/bin/python
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Set the few values of the kernel that Redis asks for, and say which ones it does not let one set."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: redis_kernel
short_description: Set values under /proc/sys and /sys, as far as the kernel lets one
description:
  - Writes each value that is not as wanted, now. What sets them at boot is files of sysctl.d and tmpfiles.d.
  - A value that is not there or cannot be written, as in most containers, is left alone with a warning. It
    is the machine's to set, and Redis runs without it.
options:
  values:
    description: The values.
    type: list
    elements: dict
    required: true
    suboptions:
      path: {description: "A file under C(/proc/sys) or C(/sys).", type: path, required: true}
      value: {description: What to write to it., type: str, required: true}
      accept: {description: Other values that are as good., type: list, elements: str, default: []}
      reason: {description: What it is good for., type: str, required: true}
author: celery-fleet
"""

EXAMPLES = r"""
- name: Let Redis fork
  fleet.celery.redis_kernel:
    values:
      - {path: /proc/sys/vm/overcommit_memory, value: "1", reason: a fork needs no memory of its own}
"""

RETURN = r"""
refused: {description: Paths that were left alone., returned: always, type: list, elements: str}
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from ansible.module_utils.basic import AnsibleModule

if TYPE_CHECKING:
    from typing import Any

CHOSEN = re.compile(r"\[(\S+)]")


def current(text: str) -> str:
    """Return a value; of several, as in `always [madvise] never`, the one that is chosen."""
    chosen = CHOSEN.search(text)
    return chosen[1] if chosen else text.strip()


def apply(values: list[dict[str, Any]], *, check: bool) -> tuple[bool, dict[str, str]]:
    """Write the values that are not as wanted.

    Returns:
        Whether any was, or in check mode would be, changed; and the paths that were left alone, each with a
        text that says why, and what that means.
    """
    changed, refused = False, {}
    for item in values:
        path = Path(item["path"])
        try:
            now = current(path.read_text())
            if now in {item["value"], *item["accept"]}:
                continue
            if not check:
                path.write_text(item["value"])
            changed = True
        except OSError as error:
            refused[item["path"]] = (
                f"the kernel lets nobody set it from here ({error.strerror}). Set it to {item['value']} on "
                f"the machine, if you can: {item['reason']}."
            )
    return changed, refused


def main() -> None:
    """Run the module."""
    item = {
        "path": {"type": "path", "required": True},
        "value": {"type": "str", "required": True},
        "accept": {"type": "list", "elements": "str", "default": []},
        "reason": {"type": "str", "required": True},
    }
    module = AnsibleModule(
        argument_spec={"values": {"type": "list", "elements": "dict", "required": True, "options": item}},
        supports_check_mode=True,
    )
    changed, refused = apply(module.params["values"], check=module.check_mode)
    for path, why in refused.items():
        module.warn(f"{path} was left as it is: {why}")
    module.exit_json(changed=changed, refused=list(refused))


if __name__ == "__main__":
    main()
