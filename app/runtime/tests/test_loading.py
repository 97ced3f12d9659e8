"""Loading the app, through the entry that every process of the fleet uses."""

from __future__ import annotations

from pathlib import Path

import pytest
from app.support.celery import run

APPS = {
    "fine": "from celery import Celery\napp = Celery('fine')\nnumber = 7",
    "broken": "def load():\n    return 1 / 0\n\nload()",
    "needy": "import no_such_library",
    "lazy": "from celery import Celery\napp = Celery('lazy')\napp.config_from_object('lazy_settings')",
    "lazy_settings": "raise RuntimeError('no database')",
    "careless": "from celery import Celery\napp = Celery('careless', include=['careless_tasks'])",
    "careless_tasks": "import sys\nraise ValueError('no such currency')",
    "pickler": "from celery import Celery\napp = Celery('pickler')\napp.conf.task_serializer = 'pickle'",
}


@pytest.mark.parametrize(
    ("name", "sentence", "traceback"),
    [
        ("", "celery: FLEET_APP is not set.", ""),
        ("fine", "celery: FLEET_APP is 'fine', and must be package.module:attribute, such as", ""),
        (
            "nowhere.at.all:app",
            "celery: FLEET_APP names the module nowhere.at.all, but there is no module nowhere.",
            "",
        ),
        ("fine:tasks", "celery: FLEET_APP is fine:tasks, but fine has no tasks.", ""),
        ("fine:number", "celery: FLEET_APP is fine:number, which is a int and not a Celery app.", ""),
        ("broken:app", "celery: broken cannot be imported: ZeroDivisionError: division by zero.", "in load"),
        ("needy:app", "celery: needy cannot be imported: ModuleNotFoundError: No module named", "needy.py"),
        (
            "lazy:app",
            "celery: The settings of lazy:app cannot be read: RuntimeError: no database.",
            "lazy_settings.py",
        ),
        (
            "careless:app",
            "Error: The app's task modules cannot be imported: ValueError: no such curr",
            "careless_tasks.py",
        ),
        ("pickler:app", "celery: The app's task_serializer is pickle, and the fleet accepts json.", ""),
        ("fine:app", "The app is fit to run.", ""),
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path: Path, name: str, sentence: str, traceback: str) -> None:
    """And the app's own fault comes with Python's traceback, which begins in the app."""
    for module, code in APPS.items():
        (tmp_path / f"{module}.py").write_text(code)
    environment = {"FLEET_APP": name, "FLEET_COMPONENT": "ops", "PYTHONPATH": str(tmp_path)}
    result = run("fleet", "check", environment=environment)
    words = result.stdout + result.stderr
    assert words.splitlines()[-1].startswith(sentence)
    assert result.returncode == (0 if name == "fine:app" else 1)
    assert ("Traceback" in words) == bool(traceback)
    assert traceback in words
    assert "fleet_runtime" not in words, "the runtime's own frames explain nothing"
