# SPDX-License-Identifier: MIT
"""What the linters, the workflow and the matrix name is there, and they agree with each other."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

import noxfile

ROOT = Path(__file__).resolve().parents[2]
MOST_EXCEPTIONS = 15


def load(name: str) -> Any:
    """Return the content of a YAML file of the project."""
    return yaml.safe_load((ROOT / name).read_text())


@cache
def hooks() -> dict[str, dict[str, Any]]:
    """Return the hooks of pre-commit by id."""
    return {hook["id"]: hook for repo in load(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]}


@cache
def files() -> list[str]:
    """Return the paths of the project's files, as git has them."""
    listing = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True)
    return listing.splitlines()


def jobs() -> dict[str, Any]:
    """Return the jobs of the workflow."""
    return dict(load(".github/workflows/tests.yml")["jobs"])


def test_exceptions_from_the_linters_are_few_and_have_reasons() -> None:
    """An exception that holds for a folder, or for a library, belongs into pyproject.toml."""
    # Written in pieces, or this line would be one.
    exception = re.compile(r"#\s*(?:no" r"qa: [A-Z]+[0-9]+|type: " r"ignore\[[a-z-]+\])(.*)")
    found = {
        f"{name}:{number}": match[1]
        for name in files()
        if name.endswith(".py") and (ROOT / name).is_file()
        for number, line in enumerate((ROOT / name).read_text().splitlines(), 1)
        if (match := exception.search(line))
    }
    assert len(found) <= MOST_EXCEPTIONS
    assert not [place for place, reason in found.items() if not re.search(r"\w{2}", reason)]


def test_each_inventory_has_a_syntax_check() -> None:
    """A new inventory needs a hook of its own."""
    checked = {
        hook["entry"].rsplit("/", 1)[-1] for name, hook in hooks().items() if name.startswith("syntax-")
    }
    assert checked == {path.name for path in ROOT.glob("inventories/*/")}


@pytest.mark.parametrize("name", [name for name, hook in hooks().items() if "files" in hook])
def test_linter_has_files(name: str) -> None:
    """A pattern that matches no file any more would make its linter pass for ever."""
    pattern = re.compile(hooks()[name]["files"])
    assert any(pattern.search(file) for file in files())


def test_workflow_has_the_matrix() -> None:
    """The workflow names each version that the sessions of nox have."""
    assert jobs()["ansible"]["strategy"]["matrix"]["ansible"] == list(noxfile.ANSIBLE)
    assert jobs()["celery"]["strategy"]["matrix"]["versions"] == noxfile.PAIRWISE


def test_workflow_has_each_python() -> None:
    """Each supported Python runs the fast tests, and the tests of each Celery."""
    images = jobs()["python"]["strategy"]["matrix"]["image"]
    assert [image.split(":")[1].split("-")[0] for image in images] == ["3.11", "3.12", "3.13"]
    assert jobs()["celery"]["strategy"]["matrix"]["image"] == images


def test_no_ansible_of_the_workflow_is_skipped() -> None:
    """A session that needs a later Python than it has is skipped, and its job would be green."""
    python = jobs()["ansible"]["container"]["image"].split(":")[1].split("-")[0]
    assert tuple(map(int, python.split("."))) >= max(noxfile.ANSIBLE.values())


def test_workflow_calls_targets_that_exist() -> None:
    """Each job ends in a command that this checkout has."""
    targets = set(re.findall(r"^([a-z -]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    known = {name for line in targets for name in line.split()}
    for name, job in jobs().items():
        commands = [step["run"] for step in job["steps"] if "run" in step]
        last = commands[-1].split()
        if last[0] == "make":
            assert {word for word in last[1:] if "=" not in word and word.isalpha()} <= known, name
        else:
            assert (ROOT / last[0]).is_file(), name


def test_ansible_of_the_matrix_is_the_pinned_one() -> None:
    """The first version of the matrix is that of requirements/dev.in."""
    pinned = re.search(r"^ansible==(\d+)\.\*", (ROOT / "requirements" / "dev.in").read_text(), re.MULTILINE)
    assert pinned and pinned[1] == next(iter(noxfile.ANSIBLE))


def test_dependabot_knows_each_folder_of_pins() -> None:
    """A lock file in another folder would never be updated."""
    folders = {
        f"/{path.parent.relative_to(ROOT)}"
        for pattern in ("requirements/*.txt", "app/*/requirements.lock")
        for path in ROOT.glob(pattern)
    }
    assert set(load(".github/dependabot.yml")["updates"][0]["directories"]) == folders
