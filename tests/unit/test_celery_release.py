# SPDX-License-Identifier: MIT
"""The module celery_release: what the check of an app comes to."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.fleet.celery.plugins.module_utils import hashed_venv
from ansible_collections.fleet.celery.plugins.module_utils.app_release_tree import ReleaseTree, TreeError
from ansible_collections.fleet.celery.plugins.modules import celery_release


class Module(SimpleNamespace):
    """The module, with what it warned of."""

    def __init__(self) -> None:
        """Set the parameters of a release with one queue; nothing has been warned of."""
        super().__init__(warned=[], params={"queues": ["a"], "environment": "", "timeout": 9, "sandbox": ""})

    def warn(self, sentence: str) -> None:
        """Remember a warning."""
        self.warned.append(sentence)


RELEASE = Path("/opt/celery/demo/releases/1")


def said(**lists: Any) -> str:
    """Return what `fleet check --json` prints."""
    found: dict[str, Any] = {"level": "full", "faults": [], "renamed": [], "overridden": [], "costs": []}
    return json.dumps({**found, **lists}) + "\n"


OLD_TEXT = "own words\nThis does not hold: this.\nThis costs much: that.\nThe app is fit to run.\n"


@pytest.mark.parametrize(
    ("status", "stdout", "stderr", "fault", "warned"),
    [
        (0, said(app={"format": 1}), "", "", []),
        (
            0,
            "own words\n" + said(app={"format": 1}, costs=["That."], overridden=["This."]) + "more\n",
            "",
            "",
            ["This does not hold: This.", "This costs much: That."],
        ),
        (1, said(faults=["No node consumes it."], costs=["This."]), "", "No node consumes it.", []),
        (1, "own words\n", "celery: no module\n", "own words\ncelery: no module", []),
    ],
)
def test_a_check_refuses_warns_or_describes(
    monkeypatch: pytest.MonkeyPatch, status: int, stdout: str, stderr: str, fault: str, warned: list[str]
) -> None:
    """By what `celery fleet check --json` says, between lines of the app."""

    def ran(argv: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert argv[-3:] == ["--json", "--queues", "a"]
        return subprocess.CompletedProcess(argv, status, stdout, stderr)

    monkeypatch.setattr(subprocess, "run", ran)
    module = Module()
    assert celery_release.app_fault(module, RELEASE) == (fault, {} if fault else {"format": 1})
    assert module.warned == warned


@pytest.mark.parametrize(
    ("status", "stdout", "fault", "warned"),
    [
        (0, OLD_TEXT, "", ["This does not hold: this.", "This costs much: that."]),
        (
            1,
            "This costs much: this.\nNo node consumes it.\n",
            "This costs much: this.\nNo node consumes it.",
            [],
        ),
    ],
)
def test_a_release_of_an_older_version_is_checked_by_its_words(
    monkeypatch: pytest.MonkeyPatch, status: int, stdout: str, fault: str, warned: list[str]
) -> None:
    """Its runtime knows no --json, so a rollback to it has no description."""

    def ran(argv: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        if "--json" in argv:
            return subprocess.CompletedProcess(argv, 2, "", "Error: No such option: --json\n")
        return subprocess.CompletedProcess(argv, status, stdout, "")

    monkeypatch.setattr(subprocess, "run", ran)
    module = Module()
    assert celery_release.app_fault(module, RELEASE) == (fault, {})
    assert module.warned == warned


def test_the_description_is_kept_beside_the_release(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Everyone may read it; what has not changed is not written again; what an older version left stays."""
    about: dict[str, Any] = {"format": 1, "name": "shop"}
    monkeypatch.setattr(celery_release, "packages_fault", lambda *_: "")
    monkeypatch.setattr(celery_release, "app_fault", lambda *_: ("", about))
    module, tree = Module(), ReleaseTree(tmp_path)
    module.params["id"] = "3fa9c1d2e4b5"
    module.check_mode = False
    file = tmp_path / "releases" / "3fa9c1d2e4b5" / "fleet-app.json"
    file.parent.mkdir(parents=True)
    for _ in range(2):
        assert celery_release.checked(module, tree) is False
        assert json.loads(file.read_text()) == about
        assert file.stat().st_mode & 0o777 == 0o644
    written = file.stat().st_ino
    celery_release.checked(module, tree)
    assert file.stat().st_ino == written
    about["name"] = "other"
    celery_release.checked(module, tree)
    assert json.loads(file.read_text())["name"] == "other"
    about.clear()
    celery_release.checked(module, tree)
    assert file.exists()


def test_uv_is_installed_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And a fault of pip is told of."""
    asked: list[dict[str, str]] = []

    def install(path: Path, requirements: str, env: dict[str, str]) -> str:
        asked.append(env)
        path.mkdir()
        (path / "requirements.txt").write_text(requirements)
        return "no such index" if len(asked) > 1 else ""

    monkeypatch.setattr(hashed_venv, "install", install)
    celery_release.install_uv(tmp_path / "uv", "", "", {})
    for _ in range(2):
        celery_release.install_uv(tmp_path / "uv", "uv==1\n", "https://index", {"SSL_CERT_FILE": "/ca"})
    assert asked == [{"PIP_INDEX_URL": "https://index", "SSL_CERT_FILE": "/ca"}]
    with pytest.raises(TreeError, match=r"cannot be installed\.\nno such index"):
        celery_release.install_uv(tmp_path / "other", "uv==1\n", "", {})


@pytest.mark.parametrize(
    ("words", "step", "advice"),
    [
        (
            "celery: shop.tasks cannot be imported: ModuleNotFoundError: No module named 'boto3'.",
            "import",
            "boto3",
        ),
        ("celery: FLEET_APP names the module shop, but there is no module shop.", "import", ""),
        ("Error:\nUnable to load celery application.\nNo module named 'packaging'", "import", "packaging"),
        ("This is celery 5.3.1, and the level full supports celery 5.7.0 only.", "check", ""),
        ("No node consumes the queue a.", "check", ""),
    ],
)
def test_a_refusal_names_its_step(
    monkeypatch: pytest.MonkeyPatch, words: str, step: str, advice: str
) -> None:
    """An app that does not load is told apart from one that should not run."""
    monkeypatch.setattr(celery_release, "packages_fault", lambda *_: "")
    monkeypatch.setattr(celery_release, "app_fault", lambda *_: (words, {}))
    module, tree = Module(), ReleaseTree(Path("/opt/celery/shop"))
    module.params["id"], module.check_mode = "one", False
    with pytest.raises(TreeError, match=f"Release one fails at {step}, so nothing") as caught:
        celery_release.checked(module, tree)
    assert words in str(caught.value)
    assert ("celery_app_environment" in str(caught.value)) == bool(advice)
    assert advice in str(caught.value)
    monkeypatch.setattr(celery_release, "packages_fault", lambda *_: "a needs b")
    with pytest.raises(TreeError, match=r"fails at resolve, [\s\S]*a needs b"):
        celery_release.checked(module, tree)


def test_a_failed_installation_names_its_step() -> None:
    """By what uv says."""
    assert celery_release.step_of_install("error: No solution found when resolving dependencies") == "resolve"
    assert celery_release.step_of_install("error: Failed to build `borgbackup==1.4`") == "build"
    assert (
        celery_release.step_of_install("error: Failed to fetch: `https://index.example/simple/dep/`")
        == "install"
    )
