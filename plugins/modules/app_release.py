#!/usr/bin/python
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Identify or build the release of a Celery app, on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: app_release
short_description: Identify or build the release of a Celery app, on the controller
version_added: 0.1.0
description:
  - Turns an app's source into what every host needs to install the same thing, which is one archive with the
    wheels of the app and of the runtime, and the complete, hashed set of their dependencies.
  - The id of a release is a digest of what goes into it. To identify one asks no package index where the app
    ships a lock, and builds nothing unless only a build hook can tell what the app depends on. So it can run
    before any host is changed, and in check mode.
  - Build hooks run in a sandbox. They do not see the inventory, the vault's password, keys, or a network.
  - An app without a lock is resolved once; the result is kept in the cache and is part of the id. What a lock
    pins is never changed. The packages that the runtime needs besides are resolved together with it.
  - A failure says at which step it is, V(resolve) or V(build).
  - Runs on the controller, with the Python that has Ansible.
options:
  state:
    description:
      - With V(identified), the source is looked at and its release's id returned.
      - With V(built), the archive is in the cache.
      - With V(locked), the app has a lock, with hashes, of what it needs, in versions that fit the runtime.
        Its versions are kept unless the app asks for others, or I(upgrade) is true. It is written to I(lock),
        or to C(requirements.lock) in the source if I(lock) is no path on the controller.
    type: str
    choices: [identified, built, locked]
    required: true
  id:
    description: The id that was returned before. A source that changed since is refused.
    type: str
  source:
    description:
      - Directory, git URL, sdist, wheel, or requirement with an exact version.
      - Extras follow in brackets; those of a requirement stand before its version.
      - A directory that is no package is shipped as it is.
    type: str
    required: true
  git_ref:
    description: Branch, tag or commit of a git URL.
    type: str
    default: ""
  lock:
    description:
      - The app's lock, a path below the source or on the controller.
      - Empty means the first of C(uv.lock), C(pylock.toml), C(poetry.lock), C(Pipfile.lock),
        C(requirements.lock), and a C(requirements.txt) that has hashes.
      - A requirements file without hashes gives the versions, to which hashes are looked up.
    type: str
    default: ""
  upgrade:
    description: With V(locked), take the newest versions that fit.
    type: bool
    default: false
  runtime_extras:
    description: Extras of the runtime that the fleet's pools and Beat's scheduler need, such as V(gevent).
    type: list
    elements: str
    default: []
  fleet_lock:
    description:
      - Requirements file with hashes of the fleet's own venv, which has Flower and the operator's commands,
        and no app. Its archive is identified and built as well.
    type: path
  fleet_python:
    description: The interpreter that hosts run the fleet's own venv with.
    type: str
    default: /usr/bin/python3
  runtime_source:
    description:
      - Source directory of the fleet's runtime, or a wheel of it. C(requirements.lock) is in the directory,
        or beside the wheel.
    type: path
    required: true
  uv_requirements:
    description:
      - Text of a requirements file with hashes. Where the controller has no uv beside its Python, uv is
        installed from it into I(cache_dir), by Python's own pip.
    type: str
    default: ""
  cache_dir:
    description: Where archives and resolutions are kept.
    type: path
    required: true
  python:
    description: The interpreter that the hosts run the release with; part of what it is.
    type: str
    required: true
  pythons:
    description:
      - Versions of that interpreter on the hosts, such as V(3.11), as far as they are known. Dependencies are
        resolved for the oldest.
    type: list
    elements: str
    default: []
  build_packages:
    description: Packages that hosts may build from their source. All others must have wheels.
    type: list
    elements: str
    default: []
  unconfined:
    description: Whether build hooks run without the sandbox, with all rights of the operator.
    type: bool
    default: false
  index_url:
    description: Package index to build and resolve with; empty means the controller's own configuration.
    type: str
    default: ""
  index_environment:
    description:
      - Environment variables of uv on the hosts. Of these, the ones that name indexes and their credentials
        (C(UV_INDEX) and others) hold here, too; proxies and certificates are the controller's own.
    type: dict
    default: {}
  index_hosts:
    description: Hosts from which the index gives its files, if these are others than its own.
    type: list
    elements: str
    default: []
attributes:
  check_mode:
    support: full
  diff_mode:
    support: partial
    details: With V(locked), of the lock.
extends_documentation_fragment:
  - fleet.celery.attributes
author: The celery-fleet contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Identify the release
  fleet.celery.app_release:
    state: identified
    source: /home/me/shop
    runtime_source: /home/me/celery-fleet/app/runtime
    cache_dir: "{{ inventory_dir }}/.fleet/releases"
    python: /usr/bin/python3
  delegate_to: localhost
"""

RETURN = r"""
id:
  description: The id of the release.
  type: str
  returned: state is not locked
  sample: 3fa9c1d2e4b5
archive:
  description: Where the release's archive is, or would be.
  type: str
  returned: state is not locked
lock:
  description: Where the lock is, or would be.
  type: str
  returned: state is locked
fleet:
  description: The C(id) and the C(archive) of the fleet's own venv.
  type: dict
  returned: with I(fleet_lock)
"""

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible_collections.fleet.celery.plugins.module_utils.app_release import Builder, FleetBuilder, Uv
from ansible_collections.fleet.celery.plugins.module_utils.app_release_sandbox import Sandbox
from ansible_collections.fleet.celery.plugins.module_utils.app_release_source import (
    PACKAGING_ERROR,
    Directory,
    Git,
    ReleaseError,
    parse_runtime,
    parse_source,
    split_extras,
)
from ansible_collections.fleet.celery.plugins.module_utils.blotted import passwords_in, secrets_among
from ansible_collections.fleet.celery.plugins.module_utils.files import replace_file

if TYPE_CHECKING:
    from collections.abc import Callable


def released(module: AnsibleModule, builder: Builder) -> dict[str, Any]:
    """Identify the release, and build it if that is asked for."""
    given = module.params
    release = builder.identify(save=not module.check_mode)
    if given["id"] and given["id"] != release:
        raise ReleaseError(
            f"{builder.source}, or the runtime, changed meanwhile. Run again to deploy what it is now."
        )
    builds: dict[Path, Callable[[], object]] = {
        builder.archive(release): functools.partial(builder.build, release)
    }
    result: dict[str, Any] = {"id": release, "archive": str(builder.archive(release))}
    if given["fleet_lock"]:
        fleet = FleetBuilder(
            builder.runtime,
            Path(given["fleet_lock"]),
            builder.cache,
            builder.uv,
            python=given["fleet_python"],
        )
        builds[fleet.archive] = fleet.build
        result["fleet"] = {"id": fleet.id, "archive": str(fleet.archive)}
    missing = [build for archive, build in builds.items() if not archive.exists()]
    changed = given["state"] == "built" and bool(missing)
    if changed and not module.check_mode:
        for build in missing:
            build()
    return {"changed": changed, **result}


def locked(module: AnsibleModule, builder: Builder) -> dict[str, Any]:
    """Write the app's lock."""
    path = Path(module.params["lock"])
    if not path.is_absolute():
        if not isinstance(builder.source, Directory):
            raise ReleaseError(
                f"{builder.source} is no directory, so its lock is not written beside it. Let "
                'celery_app_lock be a path on the controller: "{{ inventory_dir }}/app.lock".'
            )
        path = builder.source.path / "requirements.lock"
    text = builder.locked(path, upgrade=module.params["upgrade"])
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    if text != before and not module.check_mode:
        replace_file(path, text, mode=0o644)
    diff = {"before_header": str(path), "after_header": str(path), "before": before, "after": text}
    return {"changed": text != before, "lock": str(path), "diff": diff}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["identified", "built", "locked"], "required": True},
            "id": {"type": "str"},
            "source": {"type": "str", "required": True},
            "git_ref": {"type": "str", "default": ""},
            "lock": {"type": "str", "default": ""},
            "upgrade": {"type": "bool", "default": False},
            "runtime_source": {"type": "path", "required": True},
            "uv_requirements": {"type": "str", "default": ""},
            "runtime_extras": {"type": "list", "elements": "str", "default": []},
            "fleet_lock": {"type": "path"},
            "fleet_python": {"type": "str", "default": "/usr/bin/python3"},
            "cache_dir": {"type": "path", "required": True},
            "python": {"type": "str", "required": True},
            "pythons": {"type": "list", "elements": "str", "default": []},
            "build_packages": {"type": "list", "elements": "str", "default": []},
            "unconfined": {"type": "bool", "default": False},
            "index_url": {"type": "str", "default": "", "no_log": True},
            "index_environment": {"type": "dict", "default": {}, "no_log": True},
            "index_hosts": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    if PACKAGING_ERROR:
        module.fail_json(msg=missing_required_lib("packaging"), exception=PACKAGING_ERROR)
    given = module.params
    cache = Path(given["cache_dir"])
    index = [given["index_url"], *given["index_environment"].values()]
    module.no_log_values = secrets_among(module.no_log_values, index) | passwords_in(index)
    warnings: list[str] = []
    try:
        place, extras = split_extras(given["source"])
        source = parse_source(place, given["git_ref"], ignored=(cache,))
        if isinstance(source, Git) and source.userinfo:
            # Ansible blots it out of everything that the module returns from here on.
            module.no_log_values.add(source.userinfo.rpartition(":")[2])
        runtime = parse_runtime(Path(given["runtime_source"]))
        builder = Builder(
            source,
            runtime,
            cache,
            python=given["python"],
            lock="" if given["state"] == "locked" and Path(given["lock"]).is_absolute() else given["lock"],
            uv=Uv(
                given["index_url"],
                Sandbox(unconfined=given["unconfined"]),
                given["index_hosts"],
                venv=cache / "uv" if given["uv_requirements"] else None,
                requirements=given["uv_requirements"],
                environment=given["index_environment"],
            ),
            extras=extras,
            pythons=set(given["pythons"]),
            build=given["build_packages"],
            needs=given["runtime_extras"],
        )
        warnings = builder.warnings
        result = (locked if given["state"] == "locked" else released)(module, builder)
    except ReleaseError as error:
        for warning in warnings:
            module.warn(warning)
        heading = f"The release fails at {error.step}, before anything is changed.\n" if error.step else ""
        module.fail_json(msg=f"{heading}{error}")
    except OSError as error:
        module.fail_json(msg=str(error))
    for warning in warnings:
        module.warn(warning)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
