#!/usr/bin/python
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Look whether a host has its certificate, its key, and all that those need."""

from __future__ import annotations

DOCUMENTATION = r"""
module: pki_host
short_description: Look whether a host has its certificate, its key, and all that those need
version_added: 0.1.0
description:
  - Changes nothing. In most runs nothing is to be done on a host, and this one question finds out, in the
    place of six that would load Python's cryptography or Debian's index of packages.
options:
  directory: {description: "Where the files are; root's, with mode 0755.", type: path, required: true}
  group: {description: Unix group that may read the key., type: str, required: true}
  packages: {description: Debian packages that are needed., type: list, elements: str, default: []}
  key: {description: Path of the key., type: path, required: true}
  certificate: {description: Path of the certificate., type: path, required: true}
  contents:
    description: Path of each file that all may read, and its text.
    type: dict
    required: true
extends_documentation_fragment:
  - fleet.celery.attributes
  - fleet.celery.attributes.info
author: The celery-fleet contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: See what the host has
  fleet.celery.pki_host:
    directory: /etc/fleet/tls
    group: fleet-tls
    key: /etc/fleet/tls/host.key
    certificate: /etc/fleet/tls/host.crt
    contents: {/etc/fleet/tls/host.crt: "{{ lookup('file', 'host.crt', rstrip=false) }}"}
"""

RETURN = r"""
problems:
  description: What is not as it should be; nothing if all is.
  returned: always
  type: list
  elements: str
missing_packages:
  description: Those of I(packages) that are not installed.
  returned: always
  type: list
  elements: str
"""

import grp
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.fleet.celery.plugins.module_utils.certificates import belong_together
from ansible_collections.fleet.celery.plugins.module_utils.debian_packages import missing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

ROOT = 0


def group_id(name: str) -> int | None:
    """Return a group's number; None if there is no such group."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None


def has_access(path: str, gid: int | None, mode: int) -> bool:
    """Return whether a path is there, and root's, with this group and mode."""
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (ROOT, gid, mode)


def problems(params: dict[str, Any]) -> Iterator[str]:
    """Yield what is not as it should be."""
    yield from (f"the package {name}" for name in missing(params["packages"]))
    gid = group_id(params["group"])
    if gid is None:
        yield f"the group {params['group']}"
    if not has_access(params["directory"], ROOT, 0o755):
        yield params["directory"]
    if not has_access(params["key"], gid, 0o640):
        yield params["key"]
    for path, content in params["contents"].items():
        if not (has_access(path, ROOT, 0o644) and Path(path).read_bytes() == str(content).encode()):
            yield path
    if not belong_together(params["certificate"], params["key"]):
        yield f"a certificate for the key {params['key']}"


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "group": {"type": "str", "required": True},
            "packages": {"type": "list", "elements": "str", "default": []},
            "key": {"type": "path", "required": True, "no_log": False},
            "certificate": {"type": "path", "required": True},
            "contents": {"type": "dict", "required": True},
        },
        supports_check_mode=True,
    )
    found = list(problems(module.params))
    absent = [name for name in module.params["packages"] if f"the package {name}" in found]
    module.exit_json(changed=False, problems=found, missing_packages=absent)


if __name__ == "__main__":
    main()
