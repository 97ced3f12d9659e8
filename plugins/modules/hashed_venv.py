#!/usr/bin/python
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keep a virtual environment that holds a tool, pinned by hash."""

from __future__ import annotations

DOCUMENTATION = r"""
module: hashed_venv
short_description: Keep a virtual environment that holds a tool, pinned by hash
description:
  - Installs a requirements file with hashes into a virtual environment of its own, with Python's own pip, and
    again when the file changes. It is for what has to be there before anything better than pip is.
  - A copy of the file in the environment, written last, says that the environment is whole.
  - What an interrupted run left installing beside it is ended first, with a warning.
options:
  path:
    description: The virtual environment.
    type: path
    required: true
  requirements:
    description: Text of a requirements file in which everything has a hash.
    type: str
    required: true
  python:
    description: The interpreter to make it with.
    type: path
    default: /usr/bin/python3
  index_url:
    description: Package index; empty means the host's own configuration.
    type: str
    default: ""
  index_environment:
    description: Environment variables of pip, such as proxies and certificates.
    type: dict
    default: {}
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
author: celery-fleet
"""

EXAMPLES = r"""
- name: Install uv
  fleet.celery.hashed_venv:
    path: /opt/celery/uv
    requirements: "{{ lookup('file', 'requirements/uv.txt') }}"
"""

RETURN = r"""#"""

import os
import subprocess
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.fleet.celery.plugins.module_utils.blotted import secrets_among
from ansible_collections.fleet.celery.plugins.module_utils.install_lock import StillHeldError, only_one


def install(path: Path, requirements: str, python: str, env: dict[str, str]) -> str:
    """Make the environment anew, and return what went wrong."""
    wanted = path.with_name(f"{path.name}.requirements")
    os.umask(0o022)  # every user may read it, and only root may change it
    path.parent.mkdir(parents=True, exist_ok=True)
    wanted.write_text(requirements, encoding="utf-8")
    venv = [python, "-m", "venv", "--clear", str(path)]
    pip = [str(path / "bin" / "python"), "-m", "pip", "install", "--require-hashes", "--only-binary=:all:"]
    for argv in (venv, [*pip, "--requirement", str(wanted)]):
        result = subprocess.run(argv, env={**os.environ, **env}, capture_output=True, text=True, check=False)
        if result.returncode:
            return result.stderr.strip() or result.stdout.strip()
    wanted.replace(path / "requirements.txt")
    return ""


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "requirements": {"type": "str", "required": True},
            "python": {"type": "path", "default": "/usr/bin/python3"},
            "index_url": {"type": "str", "default": "", "no_log": True},
            "index_environment": {"type": "dict", "default": {}, "no_log": True},
        },
        supports_check_mode=True,
    )
    given = module.params
    module.no_log_values = secrets_among(module.no_log_values, given["index_environment"].values())
    path, requirements = Path(given["path"]), given["requirements"]
    marker = path / "requirements.txt"
    if marker.is_file() and marker.read_text(encoding="utf-8") == requirements:
        module.exit_json(changed=False)
    if not module.check_mode:
        env = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
        env |= {"PIP_INDEX_URL": given["index_url"]} if given["index_url"] else {}
        env |= {name: str(value) for name, value in given["index_environment"].items()}
        try:
            with only_one(path.parent / ".lock") as ended:
                if ended:
                    module.warn(
                        f"Process {ended} was still installing, for a run that is over. It was ended."
                    )
                fault = install(path, requirements, given["python"], env)
        except StillHeldError as error:
            fault = str(error)
        if fault:
            module.fail_json(msg=f"{path} cannot be installed.\n{fault}")
    module.exit_json(changed=True)


if __name__ == "__main__":
    main()
