#!/usr/bin/python
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Put back, or forget, what a host had before a batch changed it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: fleet_kept
short_description: Put back, or forget, what a host had before a batch changed it
version_added: 0.1.0
description:
  - M(fleet.celery.fleet_files) and M(fleet.celery.celery_release) with C(keep_for) keep each file and link
    as it was before they change it, for the role whose batch it is.
  - It is kept until the host is well with what it has now (C(dropped)), or else is put back (C(restored)).
    So what a run that was interrupted kept is there for the next one.
options:
  owner:
    description: >-
      The role whose batch it was. What others have kept is not touched. Without it, C(dropped) forgets all.
    type: str
    choices: [celery_worker, celery_beat, flower]
  state:
    description:
      - C(known) changes nothing, and tells what is kept.
      - C(restored) puts all back, and forgets it. systemd reads its units again, if one of them was kept.
      - C(dropped) forgets it.
    type: str
    choices: [known, restored, dropped]
    default: known
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
extends_documentation_fragment:
  - fleet.celery.attributes
author: The celery-fleet contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Put back what the host had
  fleet.celery.fleet_kept:
    owner: flower
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
from ansible_collections.fleet.celery.plugins.module_utils.fleet_kept import (
    OWNERS,
    WAS,
    WAS_NOT,
    Kept,
    everyones,
)
from ansible_collections.fleet.celery.plugins.module_utils.fleet_systemd import SystemdError, reload_for


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "owner": {"type": "str", "choices": list(OWNERS)},
            "state": {"type": "str", "choices": ["known", "restored", "dropped"], "default": "known"},
        },
        required_if=[("state", "known", ["owner"]), ("state", "restored", ["owner"])],
        supports_check_mode=True,
    )
    owner, state = module.params["owner"], module.params["state"]
    chosen = [Kept(owner)] if owner else everyones()
    was, was_not = ([str(path) for kept in chosen for path in kept.paths(kind)] for kind in (WAS, WAS_NOT))
    try:
        if not module.check_mode and state != "known":
            for kept in chosen:
                if state == "restored":
                    kept.restore()
                    reload_for(module.run_command, was + was_not)
                kept.drop()
    except (OSError, SystemdError) as error:
        module.fail_json(msg=str(error))
    changed = state == "restored" and bool(was or was_not)
    module.exit_json(changed=changed, restored=was, removed=was_not)


if __name__ == "__main__":
    main()
