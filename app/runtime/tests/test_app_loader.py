# SPDX-License-Identifier: MIT
"""Loading the app that an operator names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from fleet_runtime.bootstrap.app_loader import load
from fleet_runtime.errors import FleetError

from fleet_testing.commands import run

MODULES = {
    "fine": "from celery import Celery\napp = Celery('fine')\nnumber = 7\nclass inner:\n    app = app",
    "broken": "def fail():\n    return 1 / 0\n\nfail()",
    "needy": "import no_such_library",
    "lazy": "from celery import Celery\napp = Celery('lazy')\napp.config_from_object('lazy_settings')",
    "lazy_settings": "raise RuntimeError('no database')",
    "careless": "from celery import Celery\napp = Celery('careless', include=['careless_tasks'])",
    "careless_tasks": "raise ValueError('no such currency')",
}


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with modules that can be imported, and are forgotten after the test."""
    for name, code in MODULES.items():
        (tmp_path / f"{name}.py").write_text(code)
        monkeypatch.setitem(sys.modules, name, sys)
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.usefixtures("modules")
def test_an_app_is_found() -> None:
    """Deeper down as well."""
    assert load("fine:app").main == "fine"
    assert load("fine:inner.app").main == "fine"


@pytest.mark.usefixtures("modules")
@pytest.mark.parametrize(
    ("name", "sentence", "traceback"),
    [
        ("fine", "FLEET_APP is 'fine', and must be package.module:attribute, such as shop.celery:app.", ""),
        ("fine:", "FLEET_APP is 'fine:', and must be package.module:attribute, such as shop.celery:app.", ""),
        ("nowhere.at:app", "FLEET_APP names the module nowhere.at, but there is no module nowhere.", ""),
        ("fine.at:app", "FLEET_APP names the module fine.at, but there is no module fine.at.", ""),
        ("fine:tasks", "FLEET_APP is fine:tasks, but fine has no tasks.", ""),
        ("fine:number", "FLEET_APP is fine:number, which is a int and not a Celery app.", ""),
        ("broken:app", "broken cannot be imported: ZeroDivisionError: division by zero.", "in fail"),
        (
            "needy:app",
            "needy cannot be imported: ModuleNotFoundError: No module named 'no_such_library'.",
            "needy.py",
        ),
    ],
)
def test_what_is_wrong_is_one_sentence(
    capsys: pytest.CaptureFixture[str], name: str, sentence: str, traceback: str
) -> None:
    """And the app's own fault comes with Python's traceback."""
    with pytest.raises(FleetError) as refused:
        load(name)
    assert str(refused.value) == sentence
    printed = capsys.readouterr().err
    assert ("Traceback" in printed) == bool(traceback)
    assert traceback in printed


@pytest.mark.parametrize(
    ("name", "last", "traceback"),
    [
        ("", "celery: FLEET_APP is not set.", ""),
        ("broken:app", "celery: broken cannot be imported: ZeroDivisionError: division by zero.", "in fail"),
        (
            "lazy:app",
            "celery: The settings of lazy:app cannot be read: RuntimeError: no database.",
            "lazy_settings.py",
        ),
        (
            "careless:app",
            "Error: The app's task modules cannot be imported: ValueError: no such currency.",
            "careless_tasks.py",
        ),
        ("fine:app", "The app is fit to run at the level full.", ""),
    ],
)
def test_the_command_line_says_it_like_that(modules: Path, name: str, last: str, traceback: str) -> None:
    """Celery would print its usage, and a traceback with more lines of its own than of the app's."""
    environment = {"FLEET_APP": name, "FLEET_COMPONENT": "ops", "PYTHONPATH": str(modules)}
    result = run("fleet", "check", environment=environment)
    words = result.stdout + result.stderr
    assert words.splitlines()[-1] == last
    assert result.returncode == (0 if name == "fine:app" else 1)
    assert ("Traceback" in words) == bool(traceback)
    assert traceback in words
    assert "fleet_runtime" not in words
    assert "Usage" not in words


@pytest.mark.parametrize(("words", "is_imported"), [(["--detach"], False), ([], True)])
def test_what_only_starts_a_node_imports_no_app(modules: Path, words: list[str], is_imported: bool) -> None:
    """The node does so itself, a moment later."""
    ran = subprocess.run(
        [sys.executable, "-c", "import fleet_runtime.app, sys; print('fine' in sys.modules)", *words],
        env={"FLEET_APP": "fine:app", "FLEET_COMPONENT": "ops", "PYTHONPATH": str(modules)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.strip() == str(is_imported)
