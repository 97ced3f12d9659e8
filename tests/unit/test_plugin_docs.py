# SPDX-License-Identifier: MIT
"""The documentation of filters and actions says what the code takes."""

from __future__ import annotations

import importlib
import inspect
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PLUGINS = Path(__file__).parents[2] / "plugins"
COLLECTION = "ansible_collections.fleet.celery.plugins"


def filters() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yield each filter, by its name."""
    for path in sorted((PLUGINS / "filter").glob("*.py")):
        module = importlib.import_module(f"{COLLECTION}.filter.{path.stem}")
        yield from module.FilterModule().filters().items()


@pytest.mark.parametrize(("name", "function"), list(filters()))
def test_filter_documentation_has_the_parameters_of_the_function(
    name: str, function: Callable[..., Any]
) -> None:
    described = yaml.safe_load((PLUGINS / "filter" / f"{name}.yml").read_text())
    documentation, example = described["DOCUMENTATION"], yaml.safe_load(described["EXAMPLES"])
    first, *others = inspect.signature(function).parameters.values()
    options = documentation["options"]
    assert documentation["name"] == name
    assert list(options) == ["_input", *(parameter.name for parameter in others)]
    for option, parameter in zip(options.values(), [first, *others], strict=True):
        assert option.get("required", False) is (parameter.default is parameter.empty)
    positional = [parameter.name for parameter in others if parameter.kind is not parameter.KEYWORD_ONLY]
    assert documentation.get("positional", "").split(", ") == (positional or [""])
    assert f"fleet.celery.{name}" in str(example)


def test_filter_documentation_is_of_a_filter() -> None:
    assert {path.stem for path in (PLUGINS / "filter").glob("*.yml")} == {name for name, _ in filters()}


def test_each_action_is_documented_as_a_module() -> None:
    """ansible-doc finds the documentation of an action in the module of its name."""
    actions = {path.stem for path in (PLUGINS / "action").glob("*.py")}
    assert actions <= {path.stem for path in (PLUGINS / "modules").glob("*.py")}


@pytest.mark.parametrize(("kind", "pattern"), [("filter", "filter/*.yml"), ("module", "modules/*.py")])
def test_ansible_doc_shows_each(kind: str, pattern: str) -> None:
    """And warns of none: a colon in a description, for example, makes it a dictionary."""
    names = [f"fleet.celery.{path.stem}" for path in sorted(PLUGINS.glob(pattern))]
    command = ["ansible-doc", "--type", kind, *names]
    done = subprocess.run(command, cwd=PLUGINS.parent, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert not [name for name in names if name not in done.stdout]


def test_there_are_few_modules() -> None:
    """A module that does the work of another, or of a well-kept collection, is not wanted."""
    programs = [path for path in (PLUGINS / "modules").glob("*.py") if "def main(" in path.read_text()]
    assert len(programs) <= 16
