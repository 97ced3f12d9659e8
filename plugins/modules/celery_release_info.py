#!/usr/bin/python
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tell which releases of a Celery app a host has."""

from __future__ import annotations

DOCUMENTATION = r"""
module: celery_release_info
short_description: Tell which releases of a Celery app a host has
version_added: 0.1.0
description:
  - Answers at once all that the role has to know of a host before it decides what to do there.
options:
  path:
    description: The app's directory, such as C(/opt/celery/shop).
    type: path
    required: true
  id:
    description: The release that the host is to have; empty means the one that it runs.
    type: str
    default: ""
  keep:
    description: How many releases are kept.
    type: int
    default: 3
  environment_file:
    description: A file that is compared with I(environment).
    type: path
  environment:
    description: What the file is to hold.
    type: str
  packages:
    description: Debian packages that are looked for.
    type: list
    elements: str
    default: []
extends_documentation_fragment:
  - fleet.celery.attributes
  - fleet.celery.attributes.info
author: The celery-fleet contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: See what the host runs
  fleet.celery.celery_release_info:
    path: /opt/celery/shop
"""

RETURN = r"""
whole: {description: Whether the release is installed whole., returned: always, type: bool}
active: {description: Whether C(current) leads to it., returned: always, type: bool}
described: {description: Whether it has the description of its app., returned: always, type: bool}
same_environment: {description: Whether the file holds what it should., returned: always, type: bool}
current: {description: The release that C(current) leads to., returned: always, type: str}
previous: {description: The release that a rollback would switch to., returned: always, type: str}
rollback: {description: The release that an unfinished rollback goes to., returned: always, type: str}
releases: {description: "The releases that can be switched to, newest first.", returned: always, type: list}
surplus: {description: What pruning would remove., returned: always, type: list}
scripted:
  description: The releases whose runtime loads scripts into Redis, and calls none of its functions.
  returned: always
  type: list
missing_packages: {description: Those of the packages that are not installed., returned: always, type: list}
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.fleet.celery.plugins.module_utils.app_release_tree import ReleaseTree
from ansible_collections.fleet.celery.plugins.module_utils.debian_packages import missing
from ansible_collections.fleet.celery.plugins.module_utils.paths import DESCRIPTION


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "id": {"type": "str", "default": ""},
            "keep": {"type": "int", "default": 3},
            "environment_file": {"type": "path"},
            "environment": {"type": "str", "no_log": True},
            "packages": {"type": "list", "elements": "str", "default": []},
        },
        required_together=[("environment_file", "environment")],
        supports_check_mode=True,
    )
    given = module.params
    tree = ReleaseTree(Path(given["path"]))
    releases, current = tree.whole(), tree.linked("current")
    release = given["id"] or current
    file = Path(given["environment_file"] or "")
    module.exit_json(
        whole=release in releases,
        active=release in releases and release == current,
        described=(tree.releases / (release or "") / DESCRIPTION).is_file(),
        same_environment=file.is_file() and file.read_text(encoding="utf-8") == given["environment"],
        current=current or "",
        previous=tree.linked("previous") or "",
        rollback=tree.linked("rollback") or "",
        releases=releases,
        surplus=tree.surplus(given["keep"]),
        scripted=tree.scripted(),
        missing_packages=missing(given["packages"]),
    )


if __name__ == "__main__":
    main()
