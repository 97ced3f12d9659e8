# SPDX-License-Identifier: MIT
"""The versions of Ansible and Celery that the project supports, each with the tests in a venv of its own.

Usage: make matrix [SESSION="runtime(celery='5.7.0')"]
       .venv/bin/nox --session "roles(ansible='13')" -- tests/unit/test_specs.py

`.venv/bin/nox --list` lists the sessions. `make test` runs the same tests with the pinned versions; the
workflow in .github runs every session.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nox
from fleet_runtime.compat.versions import RELEASES

ROOT = Path(__file__).resolve().parent
# Major versions of the package `ansible`, the pinned one and the newer ones, with the oldest Python of each.
# They have ansible-core 2.19, 2.20 and 2.21.
ANSIBLE = {"12": (3, 11), "13": (3, 12), "14": (3, 12)}

nox.options.envdir = ".cache/nox"
nox.options.default_venv_backend = "uv"


def prepare(session: nox.Session, *changed: str) -> None:
    """Install the pinned tools, this checkout's packages, and other versions of some packages.

    Args:
        session: The session whose venv it is.
        changed: Requirements that replace pinned versions.
    """
    # uv does not read pip's configuration; lab/bootstrap has written down which index that names.
    index = ROOT / ".venv" / "index"
    if index.exists() and (url := index.read_text().strip()):
        session.env["UV_DEFAULT_INDEX"] = url
    session.env["UV_SYSTEM_CERTS"] = "1"
    session.env["PATH"] = os.pathsep.join([str(ROOT / ".venv" / "bin"), os.environ["PATH"]])  # redis-server
    session.install("--requirement", "requirements/dev.txt")
    session.install(
        "--no-deps", "--no-build-isolation", "--editable", "app/runtime", "--editable", "app/demo"
    )
    if changed:
        session.install(*changed)


@nox.session
@nox.parametrize("ansible", list(ANSIBLE))
def roles(session: nox.Session, ansible: str) -> None:
    """Run the tests of roles, plugins and playbooks with a version of Ansible."""
    if sys.version_info < ANSIBLE[ansible]:
        session.skip(f"ansible {ansible} needs Python {'.'.join(map(str, ANSIBLE[ansible]))} or later")
    prepare(session, f"ansible=={ansible}.*")
    session.run("ansible-playbook", "--version")
    for inventory in sorted(ROOT.glob("inventories/*/")):
        session.run(
            "ansible-playbook", "--syntax-check", "--inventory", str(inventory), "site.yml", silent=True
        )
    session.run("pytest", "--quiet", *(session.posargs or ["tests/unit", "tests/lint"]))


@nox.session
@nox.parametrize("ansible", list(ANSIBLE))
def sanity(session: nox.Session, ansible: str) -> None:
    """Run `ansible-test sanity` of a version of Ansible."""
    if sys.version_info < ANSIBLE[ansible]:
        session.skip(f"ansible {ansible} needs Python {'.'.join(map(str, ANSIBLE[ansible]))} or later")
    prepare(session, f"ansible=={ansible}.*")
    session.run("pytest", "--quiet", "--timeout=4000", "tests/sanity", "-k", "ansible_test")


@nox.session
@nox.parametrize("celery", sorted(RELEASES["celery"]))
def runtime(session: nox.Session, celery: str) -> None:
    """Run the tests of the runtime and of the demo app with a version of Celery."""
    prepare(session, f"celery=={celery}")
    session.run("celery", "--version")
    session.run("pytest", "--quiet", "--numprocesses=4", "--dist=loadfile", *(session.posargs or ["app"]))
