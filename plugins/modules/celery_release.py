#!/usr/bin/python
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Install, check, switch to, and prune the releases of a Celery app on a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: celery_release
short_description: Install, check, switch to, and prune the releases of a Celery app on a host
version_added: 0.1.0
description:
  - A release that is refused is so at a step, which the message names. V(install) and V(build) are of
    I(state=present), V(import) and V(check) of I(state=checked), V(resolve) of both.
  - Each state is one step of a deployment. None depends on the memory of an earlier run, so a deployment that
    was interrupted anywhere is finished by the next one.
options:
  path:
    description: The app's directory, such as C(/opt/celery/shop).
    type: path
    required: true
  state:
    description:
      - With V(present), the release is installed whole. Nothing of it runs as root. What an interrupted run
        left installing is ended first, with a warning.
      - With V(checked), its packages fit together, and Celery finds no fault with the app. The app's code
        runs as a user of its own that can write nowhere. What the check says of the app is kept beside it, in
        C(fleet-app.json), for Flower and the operator's commands; the runtime of an older version says
        nothing of it. Never reports a change.
      - With V(current), the link C(current) leads to it.
      - With V(pruned), releases are removed except for the newest, the current, the previous, and any that a
        process still runs from. A rollback that has begun is over with it.
      - With V(rollback_begun), the link C(rollback) leads to it, by which the next rollback knows where one
        that was interrupted went. With V(rollback_ended), there is no such link.
    type: str
    choices: [present, checked, current, pruned, rollback_begun, rollback_ended]
    required: true
  id:
    description: The release. Not for V(pruned) and V(rollback_ended).
    type: str
  archive:
    description:
      - The release's archive on the host, made by M(fleet.celery.app_release). Removed once it is installed.
    type: path
  python:
    description: The interpreter to install for, as a path, or as a version that uv fetches.
    type: str
  uv:
    description: The uv to install with.
    type: path
  uv_requirements:
    description:
      - With V(present), text of a requirements file with hashes. uv is installed from it first, by
        Python's own pip, into the virtual environment that I(uv) is in, and anew when the text changes.
      - If it is empty, uv is there.
    type: str
    default: ""
  index_url:
    description: Package index; empty means the host's own configuration.
    type: str
    default: ""
  index_environment:
    description: Environment variables of uv, such as proxies and certificates.
    type: dict
    default: {}
  index_hosts:
    description: Hosts from which the index gives its files, if these are others than its own.
    type: list
    elements: str
    default: []
  environment:
    description: Text of the environment file that the app is checked with.
    type: str
  secrets:
    description: Values that are blotted out of messages, if they have eight characters or more.
    type: list
    elements: str
    default: []
  queues:
    description: Queues that the app is to be checked against.
    type: list
    elements: str
    default: []
  sandbox:
    description: systemd properties that confine all that belongs to the release, one a line.
    type: str
    default: ""
  user:
    description: With V(present), the system user who installs the release, and owns it until it is whole.
    type: str
    default: ""
  build_packages:
    description: Packages that are built from their source. All others must have wheels.
    type: list
    elements: str
    default: []
  timeout:
    description: Seconds that a check may take.
    type: int
    default: 60
  keep:
    description: How many releases to keep.
    type: int
    default: 3
  backup_for:
    description:
      - With V(current), save the links before they change, for M(fleet.celery.fleet_backup) and the role of
        this name.
    type: str
    default: ""
attributes:
  check_mode:
    support: full
    details: A release that is not there yet cannot be checked, so V(checked) then says nothing.
  diff_mode:
    support: none
extends_documentation_fragment:
  - fleet.celery.attributes
author: The celery-fleet contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Roll back
  fleet.celery.celery_release:
    path: /opt/celery/shop
    state: current
    id: 3fa9c1d2e4b5
"""

RETURN = r"""
described: {description: Whether the release has a description of its app., returned: with I(id), type: bool}
removed: {description: The releases that were removed., returned: state is pruned, type: list, elements: str}
"""

import json
import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.fleet.celery.plugins.module_utils import hashed_venv
from ansible_collections.fleet.celery.plugins.module_utils.app_release_tree import (
    Installer,
    ReleaseTree,
    TreeError,
)
from ansible_collections.fleet.celery.plugins.module_utils.blotted import passwords_in, secrets_among
from ansible_collections.fleet.celery.plugins.module_utils.confined import Confined, stop
from ansible_collections.fleet.celery.plugins.module_utils.files import replace_file
from ansible_collections.fleet.celery.plugins.module_utils.fleet_backup import Backup
from ansible_collections.fleet.celery.plugins.module_utils.install_lock import StillHeldError, only_one
from ansible_collections.fleet.celery.plugins.module_utils.paths import DESCRIPTION

CACHE_LIMIT = 1024**3
# What `celery fleet check` warns of, and how a warning begins.
WARNINGS = {
    "renamed": "This is renamed: ",
    "overridden": "This does not hold: ",
    "costs": "This costs much: ",
}
OLD_WARNINGS = tuple(WARNINGS.values())  # in a line of text, where a runtime of an older version has no JSON
# By these, what uv and `celery fleet check` say is told apart.
NO_SOLUTION = re.compile(r"no solution found|is not compatible|incompatible with", re.I)
NO_BUILD = re.compile(r"failed to build|build backend|is disabled|no usable wheels", re.I)
NO_IMPORT = re.compile(
    r"cannot be imported|FLEET_APP names the module|unable to load celery application", re.I
)
NO_MODULE = re.compile(r"No module named '([\w.]+)'")


def present(module: AnsibleModule, tree: ReleaseTree) -> bool:
    """Install the release unless it is whole already."""
    given = module.params
    if tree.about(given["id"]):
        return False
    if not module.check_mode:
        index = {"UV_DEFAULT_INDEX": given["index_url"]} if given["index_url"] else {}
        env = {**index, **{name: str(value) for name, value in given["index_environment"].items()}}
        archive, python, uv = (Path(given[name]) for name in ("archive", "python", "uv"))
        version = "" if python.is_absolute() else given["python"]
        try:
            with only_one(tree.root.parent / ".lock", stop=lambda: stop(Installer.UNIT)) as ended:
                if ended:
                    module.warn(
                        f"Process {ended} was still installing, for a run that is over. It was ended, and "
                        "this run installs the release anew."
                    )
                install_uv(uv.parents[1], given["uv_requirements"], given["index_url"], env)
                installer = Installer(uv, python, tree.cache, confined(module, given["user"]), env)
                installer.build = tuple(given["build_packages"])
                installer.index_hosts = tuple(given["index_hosts"])
                if version:
                    tree.make_cache(installer)
                    installer.python = installer.fetch_python(version, tree.root.parent / "python" / version)
                tree.install(given["id"], archive, installer)
        except (TreeError, StillHeldError) as error:
            said = str(error)
            raise TreeError(heading(given["id"], step_of_install(said), said)) from error
    return True


def heading(release: str, step: str, findings: str) -> str:
    """Return a message about a release that is refused: at which step, and why."""
    return f"Release {release} fails at {step}, so nothing was switched to it.\n{findings}"


def step_of_install(said: str) -> str:
    """Return at which step an installation has failed, by what uv says."""
    if NO_SOLUTION.search(said):
        return "resolve"
    return "build" if NO_BUILD.search(said) else "install"


def install_uv(path: Path, requirements: str, index_url: str, env: dict[str, str]) -> None:
    """Install uv into a virtual environment, unless that has what it should."""
    if not requirements or hashed_venv.is_whole(path, requirements):
        return
    index = {"PIP_INDEX_URL": index_url} if index_url else {}
    if fault := hashed_venv.install(path, requirements, {**index, **env}):
        raise TreeError(f"{path} cannot be installed.\n{fault}")


def checked(module: AnsibleModule, tree: ReleaseTree) -> bool:
    """Check the release, as far as that is possible without a broker, and keep the description of its app."""
    given = module.params
    if not module.check_mode:
        path = tree.releases / given["id"]
        if findings := packages_fault(module, path):
            raise TreeError(heading(given["id"], "resolve", findings))
        findings, about = app_fault(module, path)
        if findings:
            step = "import" if NO_IMPORT.search(findings) else "check"
            raise TreeError(heading(given["id"], step, f"{findings}{import_advice(findings)}"))
        if about:
            text = json.dumps(about, indent=1, sort_keys=True) + "\n"
            if not same_text(path / DESCRIPTION, text):
                replace_file(path / DESCRIPTION, text, mode=0o644)
    return False


def same_text(path: Path, text: str) -> bool:
    """Return whether a file is there, with this text."""
    return path.is_file() and path.read_text(encoding="utf-8") == text


def import_advice(findings: str) -> str:
    """Return what to do about an app that lacks a module, after a line break; nothing for another fault."""
    names = NO_MODULE.findall(findings)
    if not names:
        return ""
    return (
        f"\nAdd the package that has the module {names[-1]} to what the app depends on (its requirements, "
        "its lock, or an extra in celery_app_source); or, if the module is in no package, its directory to "
        "PYTHONPATH in celery_app_environment."
    )


def current(module: AnsibleModule, tree: ReleaseTree) -> bool:
    """Switch to the release."""
    release = module.params["id"]
    changed: bool = tree.linked("current") != release
    if changed and not module.check_mode:
        if module.params["backup_for"]:
            for link in ("current", "previous"):
                Backup(module.params["backup_for"]).save(tree.root / link)
        tree.switch(release)
    return changed


def rollback_begun(module: AnsibleModule, tree: ReleaseTree) -> bool:
    """Note that a rollback to the release has begun."""
    release = module.params["id"]
    changed: bool = tree.linked("rollback") != release
    if changed and not module.check_mode:
        tree.begin_rollback(release)
    return changed


def rollback_ended(module: AnsibleModule, tree: ReleaseTree) -> bool:
    """Note that none is under way."""
    if module.check_mode:
        return tree.linked("rollback") is not None
    ended: bool = tree.end_rollback()
    return ended


def confined(module: AnsibleModule, user: str = "") -> Confined:
    """Return how what belongs to the release is run: never with the privileges of this module."""
    return Confined(user, module.params["sandbox"])


def packages_fault(module: AnsibleModule, path: Path) -> str:
    """Return what uv finds wrong with the packages of a release. It starts the release's interpreter."""
    argv = [module.params["uv"], "pip", "check", "--no-cache", "--python", path / "bin" / "python"]
    result = confined(module).run(f"celery-release-packages-{os.getpid()}", argv)
    return result.stderr.strip() or "uv pip check failed" if result.returncode else ""


def app_fault(module: AnsibleModule, path: Path) -> tuple[str, dict[str, Any]]:
    """Return what Celery finds wrong with the app of a release, in the words of `celery fleet check`.

    Of what works, but costs much, or has no effect, it warns.

    The app runs as nodes do: with the environment that they will have, in their sandbox, and as a user that
    exists only meanwhile.

    Returns:
        What is wrong, and the description of the app: empty if something is wrong, or if the release has the
        runtime of an older version, which gives none.
    """
    result, words = app_check(module, path, "--json")
    said = answer(result.stdout)
    if "No such option: --json" in words:
        result, words = app_check(module, path)
    if result.returncode:
        return "\n".join([*said["faults"], result.stderr.strip()]).strip() if said else words, {}
    texts = [f"{start}{text}" for kind, start in WARNINGS.items() for text in said.get(kind, ())]
    for text in texts or [line for line in result.stdout.splitlines() if line.startswith(OLD_WARNINGS)]:
        module.warn(text)
    return "", said.get("app", {})


def app_check(
    module: AnsibleModule, path: Path, *options: str
) -> tuple[subprocess.CompletedProcess[str], str]:
    """Run `celery fleet check`, and return the result, and all that it said or why it did not end."""
    given = module.params
    queues = ["--queues", ",".join(given["queues"])] if given["queues"] else []
    command = ["-A", "fleet_runtime.app", "fleet", "check", *options, *queues]
    unit = f"celery-release-check-{os.getpid()}"
    started = time.monotonic()
    result = confined(module).run(
        unit,
        [path / "bin" / "celery", *command],
        environment=given["environment"],
        network=True,  # as nodes: an app may ask a service for its settings
        properties=[f"RuntimeMaxSec={given['timeout']}"],
    )
    words = f"{result.stdout}{result.stderr}".strip()
    if result.returncode and time.monotonic() - started >= given["timeout"]:
        words = f"The app did not finish loading in {given['timeout']} seconds.\n{words}".strip()
    return result, words or (
        f"celery fleet check: exit status {result.returncode}; `journalctl -u {unit}` has the rest."
    )


def answer(stdout: str) -> dict[str, Any]:
    """Return what `celery fleet check --json` says, in a line among those of the app; else nothing."""
    for line in reversed(stdout.splitlines()):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict) and "faults" in found:
            return found
    return {}


STEPS = {
    "present": present,
    "checked": checked,
    "current": current,
    "rollback_begun": rollback_begun,
    "rollback_ended": rollback_ended,
}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "state": {
                "type": "str",
                "choices": [*STEPS, "pruned"],
                "required": True,
            },
            "id": {"type": "str"},
            "archive": {"type": "path"},
            "python": {"type": "str"},
            "uv": {"type": "path"},
            "uv_requirements": {"type": "str", "default": ""},
            "index_url": {"type": "str", "default": "", "no_log": True},
            "index_hosts": {"type": "list", "elements": "str", "default": []},
            "index_environment": {"type": "dict", "default": {}, "no_log": True},
            "environment": {"type": "str", "no_log": True},
            "secrets": {"type": "list", "elements": "str", "default": [], "no_log": True},
            "queues": {"type": "list", "elements": "str", "default": []},
            "sandbox": {"type": "str", "default": ""},
            "timeout": {"type": "int", "default": 60},
            "keep": {"type": "int", "default": 3},
            "user": {"type": "str", "default": ""},
            "build_packages": {"type": "list", "elements": "str", "default": []},
            "backup_for": {"type": "str", "default": ""},
        },
        required_if=[
            ("state", "present", ["id", "archive", "python", "uv", "user"]),
            ("state", "checked", ["id", "environment", "uv"]),
            ("state", "current", ["id"]),
            ("state", "rollback_begun", ["id"]),
        ],
        supports_check_mode=True,
    )
    index = set(map(str, module.params["index_environment"].values())) - set(module.params["secrets"])
    passwords = passwords_in([module.params["index_url"], *index])
    module.no_log_values = secrets_among(module.no_log_values, index) | passwords
    tree = ReleaseTree(Path(module.params["path"]))
    try:
        if module.params["state"] == "pruned":
            ended = rollback_ended(module, tree)
            removed = tree.surplus(module.params["keep"])
            if not module.check_mode:
                for release in removed:
                    tree.remove(release)
                tree.trim_cache(CACHE_LIMIT)
            module.exit_json(changed=ended or bool(removed), removed=removed)
        changed = STEPS[module.params["state"]](module, tree)
        described = (tree.releases / (module.params["id"] or "") / DESCRIPTION).is_file()
        module.exit_json(changed=changed, **({"described": described} if module.params["id"] else {}))
    except (TreeError, OSError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
