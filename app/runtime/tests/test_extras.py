# SPDX-License-Identifier: MIT
"""Packages that are not installed: a sentence names the extra, and what does not need the package works."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib.metadata import metadata, packages_distributions
from pathlib import Path

import fleet_runtime
import pytest
from celery import Celery
from fleet_runtime import extras
from fleet_runtime.errors import FleetError
from fleet_runtime.inspect import app_check
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from fleet_testing.commands import APPS, ENTRY, PATIENCE
from fleet_testing.params import URL

INSTALL = "which is not installed: install celery-fleet-runtime[{}]."
# Runs Celery's command line as if some modules were not installed.
WITHOUT = """
import sys
from importlib.abc import MetaPathFinder

class Hidden(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {hidden!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in {hidden!r} else found(name, package)
sys.meta_path.insert(0, Hidden())
from celery.__main__ import main
sys.argv[0] = "celery"
main()
"""


def run(component: str, *words: str, hidden: set[str]) -> subprocess.CompletedProcess[str]:
    """Run a command of Celery's where some modules are not installed."""
    return subprocess.run(
        [sys.executable, "-c", WITHOUT.format(hidden=hidden), *ENTRY, *words],
        env={
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": APPS,
            "FLEET_APP": "shop:app",
            "FLEET_COMPONENT": component,
            "CELERY_BROKER_URL": URL,
            "CELERY_RESULT_BACKEND": URL,
        },
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def test_each_package_is_an_extra_of_the_wheel() -> None:
    """Else the sentence would name an extra that pip does not know."""
    assert extras.PACKAGES.keys() <= set(metadata("celery-fleet-runtime").get_all("Provides-Extra") or ())


def test_the_core_needs_celery_kombu_and_redis_only() -> None:
    """So no other package can conflict with what an app pins. Celery brings billiard, click and vine."""
    package = Path(fleet_runtime.__file__).parent
    libraries = ("celery", "kombu", "redis", "billiard", "click", "vine")
    known = {*sys.stdlib_module_names, "fleet_runtime", *libraries}
    found = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Import(names=names):
                    modules = [alias.name for alias in names]
                case ast.ImportFrom(module=str(module)):
                    modules = [module]
                case _:
                    continue
            top = {module.partition(".")[0] for module in modules}
            found |= {(str(path.relative_to(package)), name) for name in top - known}
    assert found == {("cli/render.py", "rich")}


def test_a_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what needs it, and the extra."""
    monkeypatch.setattr(extras, "find_spec", lambda _: None)
    with pytest.raises(FleetError) as caught:
        extras.require("redbeat", "The fleet's Beat")
    assert str(caught.value) == f"The fleet's Beat needs celery-redbeat, {INSTALL.format('redbeat')}"


def test_check_refuses_an_app_without_what_beat_and_pools_need(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a release is switched, and only where the fleet has that scheduler, or a pool of that kind."""
    app = Celery(set_as_current=False)
    app.conf.broker_transport_options = {"visibility_timeout": 3600}
    assert app_check.findings(app, [], "redbeat", pools=["gevent"]) == []
    monkeypatch.setattr(extras, "find_spec", lambda _: None)
    found = " ".join(app_check.findings(app, [], "redbeat", pools=["prefork", "gevent"]))
    assert INSTALL.format("redbeat") in found
    assert INSTALL.format("gevent") in found
    assert app_check.findings(app, [], "persistent", pools=["threads"]) == []


@pytest.mark.parametrize(
    ("component", "words", "extra"),
    [
        ("flower", ["flower"], "flower"),
        ("beat", ["beat", "--scheduler=redbeat.RedBeatScheduler"], "redbeat"),
        ("ops", ["fleet", "status"], "rich"),
    ],
)
def test_a_command_without_its_package_names_the_extra(component: str, words: list[str], extra: str) -> None:
    """In one sentence, and before it asks Redis."""
    ended = run(component, *words, hidden={extras.PACKAGES[extra][0]})
    assert ended.returncode
    assert INSTALL.format(extra) in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_check_needs_no_optional_package() -> None:
    """An app that uses none of them is fit to run."""
    ended = run("ops", "fleet", "check", hidden={"flower", "gevent", "hiredis", "redbeat", "rich"})
    assert (ended.returncode, ended.stderr) == (0, "")


def needed(name: str, extras: frozenset[str] = frozenset(), seen: set[str] | None = None) -> set[str]:
    """Return the names of the packages that one needs, and what these need."""
    seen = set() if seen is None else seen
    seen.add(canonicalize_name(name))
    for text in metadata(name).get_all("Requires-Dist") or ():
        wanted = Requirement(text)
        held = not wanted.marker or any(wanted.marker.evaluate({"extra": one}) for one in extras or {""})
        if held and canonicalize_name(wanted.name) not in seen:
            needed(wanted.name, frozenset(wanted.extras), seen)
    return seen


def test_what_is_required_is_enough() -> None:
    """Of the packages that happen to be installed none is needed: kombu requires some by its extras only."""
    required = needed("celery-fleet-runtime")
    hidden = {
        module
        for module, homes in packages_distributions().items()
        if required.isdisjoint(map(canonicalize_name, homes)) and not module.startswith("_")
    }
    assert "packaging" not in hidden
    done = run("worker", "report", hidden=hidden)
    assert done.returncode == 0, done.stderr
    assert "transport:fleet_runtime" in done.stdout
