#!/usr/bin/python
"""Put back, or forget, what a host had before a batch changed it."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: fleet_kept
short_description: Put back, or forget, what a host had before a batch changed it
description:
  - M(fleet_files) and M(celery_release) with C(keep) keep each file and link as it was before they change it.
  - It is kept until the host is well with what it has now (C(dropped)), or else is put back (C(restored)).
    So what a run that was interrupted kept is there for the next one.
options:
  state:
    description:
      - C(known) changes nothing, and tells what is kept.
      - C(restored) puts all back, and forgets it.
      - C(dropped) forgets it.
    type: str
    choices: [known, restored, dropped]
    default: known
author: celery-fleet
"""

EXAMPLES = r"""
- name: Put back what the host had
  fleet_kept:
    state: restored
"""

RETURN = r"""
restored:
  description: Paths that are as they were before, or are kept for that.
  returned: always
  type: list
  elements: str
removed:
  description: Paths that were not there before.
  returned: always
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.fleet_kept import WAS, WAS_NOT, Kept


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["known", "restored", "dropped"], "default": "known"},
        },
        supports_check_mode=True,
    )
    kept, state = Kept(), module.params["state"]
    was, was_not = ([str(path) for path in kept.paths(kind)] for kind in (WAS, WAS_NOT))
    try:
        if not module.check_mode and state != "known":
            if state == "restored":
                kept.restore()
            kept.drop()
    except OSError as error:
        module.fail_json(msg=str(error))
    changed = state == "restored" and bool(was or was_not)
    module.exit_json(changed=changed, restored=was, removed=was_not)


if __name__ == "__main__":
    main()
