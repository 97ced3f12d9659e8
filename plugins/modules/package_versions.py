#!/usr/bin/python
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tell which version of some packages a host has, and which it should get."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: package_versions
short_description: Tell which version of some Debian packages a host has, and which it should get
description:
  - For packages of one source, which are upgraded together. Fails if one of them is not installed, or is not
    in the archive in the version that is asked for.
  - It changes nothing, and loads no index from the network.
options:
  name: {description: Names of the packages., type: list, elements: str, required: true}
  version:
    description: The version that they should have. The candidate of each, if empty.
    type: str
    default: ""
  warn:
    description: Playbook that installs a newer version. If the archive has one, warn, and say whether it is
      in the archive of security updates, and whether C(version) keeps the playbook from installing it. If
      the packages only are not as they should be, warn, too.
    type: str
    default: ""
author: celery-fleet
"""

EXAMPLES = r"""
- name: See whether Redis is to be upgraded
  fleet.celery.package_versions:
    name: [redis-server, redis-tools]
  register: redis
"""

RETURN = r"""
installed: {description: The version that the first package has., returned: success, type: str}
wanted: {description: The version that it should have., returned: success, type: str}
due: {description: Whether a package has another version than it should., returned: success, type: bool}
newest:
  description: The candidate of the first package, whatever C(version) asks for.
  returned: success
  type: str
newer: {description: Whether a package is older than its candidate., returned: success, type: bool}
security:
  description: Whether the archive of security updates has a package in a newer version.
  returned: success
  type: bool
unfinished:
  description: Whether dpkg was interrupted while it installed one of them.
  returned: success
  type: bool
older:
  description: Whether what is wanted is older than what is there, C(no), C(revision), or C(upstream) if the
    program itself is older.
  returned: success
  type: str
targets: {description: "What to tell apt, C(name=version).", returned: success, type: list, elements: str}
returns:
  description: What to tell apt to have the installed versions again; nothing if the archive has them no more.
  returned: success
  type: list
  elements: str
"""

from typing import TYPE_CHECKING

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.fleet.celery.plugins.module_utils.debian_packages import is_older, look, upstream

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from ansible_collections.fleet.celery.plugins.module_utils.debian_packages import Package


class VersionError(Exception):
    """The packages cannot be as they should; the message says why."""


def decide(packages: Sequence[Package], version: str) -> dict[str, Any]:
    """Return the module's result.

    Raises:
        VersionError: A package is not there, or not to be had.
    """
    wanted = {package.name: version or package.candidate for package in packages}
    for package in packages:
        if not package.installed:
            raise VersionError(f"{package.name} is not installed. Run site.yml first.")
        if version and version not in [*package.available, package.installed]:
            raise VersionError(
                f"the archive has no {package.name} {version}. It has: "
                f"{', '.join(package.available) or 'none'}."
            )
    first = packages[0]
    return {
        "changed": False,
        "installed": first.installed,
        "wanted": wanted[first.name],
        "due": any(wanted[package.name] != package.installed or not package.whole for package in packages),
        "newest": first.candidate,
        "newer": any(is_older(package.installed, package.candidate) for package in packages),
        "security": any(
            is_older(package.installed, version) for package in packages for version in package.security
        ),
        "unfinished": not all(package.whole for package in packages),
        "older": age(wanted[first.name], first.installed),
        "targets": [f"{name}={version}" for name, version in wanted.items()],
        "returns": [f"{package.name}={package.installed}" for package in packages]
        if all(package.installed in package.available for package in packages)
        else [],
    }


def news(result: dict[str, Any], name: str, version: str, playbook: str) -> str:
    """Return what an operator is to know; nothing if there is no newer version, and all is as it should be.

    Args:
        result: The module's.
        name: Of the first package.
        version: The version that is asked for, if one is.
        playbook: The one that installs a newer version.
    """
    if not result["newer"]:
        if not result["due"]:
            return ""
        return (
            f"{name} {result['installed']} is not as it should be, {result['wanted']}. {playbook} mends it."
        )
    what = "the security update" if result["security"] else "version"
    remedy = (
        f"{version} is asked for, so {playbook} does not install it: name another version, or none."
        if version and version != result["newest"]
        else f"{playbook} installs it."
    )
    return f"{name} {result['installed']} is on hold, and the archive has {what} {result['newest']}. {remedy}"


def age(wanted: str, installed: str) -> str:
    """Return whether one version is older than another, and in which part."""
    if not is_older(wanted, installed):
        return "no"
    return "revision" if upstream(wanted) == upstream(installed) else "upstream"


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "list", "elements": "str", "required": True},
            "version": {"type": "str", "default": ""},
            "warn": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    try:
        result = decide(look(module.params["name"]), module.params["version"])
    except VersionError as error:
        module.fail_json(msg=str(error))
    if module.params["warn"] and (
        said := news(result, module.params["name"][0], module.params["version"], module.params["warn"])
    ):
        module.warn(said)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
