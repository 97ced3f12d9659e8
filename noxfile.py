# SPDX-License-Identifier: MIT
"""The versions of Ansible and Celery that the project supports, each with the tests in a venv of its own.

Usage: make matrix [SESSION="runtime(oldest)"] [PYTHON=3.13]
       make matrix UPSTREAM=1
       .venv/bin/nox --session "roles(ansible='13')" -- tests/unit/test_specs.py

`.venv/bin/nox --list` lists the sessions. `make test` runs the same tests with the pinned versions; the
workflow in .github runs every session.
"""

from __future__ import annotations

import os
import re
import sys
import tomllib
from pathlib import Path

import nox

ROOT = Path(__file__).resolve().parent
# Major versions of the package `ansible`, the pinned one and the newer ones, with the oldest Python of each.
# They have ansible-core 2.19, 2.20 and 2.21.
ANSIBLE = {"12": (3, 11), "13": (3, 12), "14": (3, 12)}

# Combinations of Celery, kombu and redis-py at the level `full`, by the name of their session: each newest
# patch release, the oldest that is supported, and the mixed ones that the pins of apps lead to. kombu 5.7
# refuses redis-py before 6.1. The first is the oldest of all, and the last is what this project pins.
COMBINATIONS = {
    name or f"celery-{celery}_kombu-{kombu}_redis-{redis}": (celery, kombu, redis)
    for name, celery, kombu, redises in (
        ("oldest", "5.5.0", "5.5.2", ["5.2.0"]),
        ("", "5.5.3", "5.5.4", ["5.2.1", "6.4.0", "7.4.1", "8.1.0"]),
        ("", "5.6.0", "5.6.0", ["5.2.1", "6.4.0", "7.4.1", "8.1.0"]),
        ("", "5.6.3", "5.6.2", ["5.2.1", "6.4.0", "7.4.1", "8.1.0"]),
        ("", "5.6.3", "5.7.0", ["6.4.0", "7.4.1", "8.1.0"]),
        ("", "5.7.0", "5.7.0", ["6.4.0", "7.4.1", "8.1.0"]),
    )
    for redis in redises
}
# Of these, a choice in which each release of one package meets several of the others (make versions).
PAIRWISE = [
    "oldest",
    "celery-5.5.3_kombu-5.5.4_redis-8.1.0",
    "celery-5.6.3_kombu-5.6.2_redis-7.4.1",
    "celery-5.6.3_kombu-5.7.0_redis-6.4.0",
    "celery-5.7.0_kombu-5.7.0_redis-7.4.1",
]
OF_CELERY = ("celery", "kombu", "billiard", "redis")
# What they depend on, some releases with bounds that exclude what requirements/dev.txt pins.
PINNED_BY_CELERY = ("amqp", "click", "packaging", "python-dateutil", "tzdata", "vine")

nox.options.envdir = ".cache/nox"
nox.options.default_venv_backend = "uv"


def use_index(session: nox.Session) -> None:
    """Let a session install from the index that the tools came from, and find redis-server."""
    # uv does not read pip's configuration; lab/bootstrap has written down which index that names.
    index = ROOT / ".venv" / "index"
    if index.exists() and (url := index.read_text().strip()):
        session.env["UV_DEFAULT_INDEX"] = url
    session.env["UV_SYSTEM_CERTS"] = "1"
    session.env["PATH"] = os.pathsep.join([str(ROOT / ".venv" / "bin"), os.environ["PATH"]])


def prepare(session: nox.Session, *changed: str) -> None:
    """Install the pinned tools, this checkout's packages, and other versions of some packages.

    Args:
        session: The session whose venv it is.
        changed: Requirements that replace pinned versions.
    """
    use_index(session)
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


def prepare_runtime(session: nox.Session, *wanted: str) -> None:
    """Install the runtime with its extras and test tools, and the demo app.

    All but what depends on the versions of Celery and its libraries is as in requirements/dev.txt.

    Args:
        session: The session whose venv it is.
        wanted: Requirements of Celery and its libraries, and options of uv.
    """
    use_index(session)
    project = tomllib.loads((ROOT / "app" / "runtime" / "pyproject.toml").read_text())["project"]
    extras = [one for extra in project["optional-dependencies"].values() for one in extra]
    tools = [one for one in extras if not one.startswith(project["name"])]
    pins = re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "requirements" / "dev.txt").read_text(), re.MULTILINE)
    free = {*OF_CELERY, *(re.split(r"[^\w-]", one)[0] for one in project["dependencies"]), *PINNED_BY_CELERY}
    constraints = Path(session.create_tmp()) / "constraints.txt"
    constraints.write_text("".join(f"{name}=={version}\n" for name, version in pins if name not in free))
    more = ("packaging", "pydantic-settings", "hatchling", "editables")
    session.install("--constraints", str(constraints), *wanted, *tools, *more)
    session.install(
        "--no-deps", "--no-build-isolation", "--editable", "app/runtime", "--editable", "app/demo"
    )


def run_runtime(session: nox.Session, *arguments: str) -> None:
    """Run tests of the runtime and of the demo app, by default all."""
    session.chdir("app/runtime")
    session.run("pytest", "--quiet", "--numprocesses=4", "--dist=loadfile", *arguments)


@nox.session
@nox.parametrize(
    ("celery", "kombu", "redis"),
    [
        nox.param(*versions, id=name, tags=["pairwise"] if name in PAIRWISE else [])
        for name, versions in COMBINATIONS.items()
    ],
)
def runtime(session: nox.Session, celery: str, kombu: str, redis: str) -> None:
    """Run the tests of the runtime and of the demo app with a combination of versions.

    A whole run leaves a report, from which tools/matrix_table.py writes the table in docs/compatibility.md.
    """
    oldest = ("billiard==4.2.1",) if (celery, kombu, redis) == COMBINATIONS["oldest"] else ()
    prepare_runtime(session, f"celery=={celery}", f"kombu=={kombu}", f"redis=={redis}", *oldest)
    session.run("celery", "--version")
    asked = "import sys; print('.'.join(map(str, sys.version_info[:2])))"
    python = str(session.run("python", "-c", asked, silent=True)).strip()
    report = ROOT / ".cache" / "matrix" / f"{celery} {kombu} {redis} {python}.xml"
    run_runtime(session, *(session.posargs or (f"--junitxml={report}", "tests", "../demo/tests")))


@nox.session(default=False)
def newest(session: nox.Session) -> None:
    """Run the tests with the newest releases and pre-releases of Celery and its libraries.

    The tests of the surface come first: they say what has changed by its name. The level `full` refuses
    versions that it does not know; in this venv it knows all.
    """
    prepare_runtime(session, "--prerelease=allow", "--upgrade", *OF_CELERY)
    session.run("python", "-c", f"import importlib.metadata as m; print(*map(m.version, {OF_CELERY}))")
    (packages,) = Path(session.virtualenv.location).glob("lib/python*/site-packages")
    all_known = "v.RELEASES.update(dict.fromkeys(v.RELEASES, ('0', '99')))"
    (packages / "all_known.pth").write_text(f"import fleet_runtime.compat.versions as v; {all_known}\n")
    session.chdir("app/runtime")
    session.run("pytest", "--quiet", "-rf", "--tb=line", "tests/test_surface.py", success_codes=[0, 1])
    run_runtime(session, "-rfE", "--tb=short", *(session.posargs or ("tests", "../demo/tests")))
