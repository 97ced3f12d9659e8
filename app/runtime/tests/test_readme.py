# SPDX-License-Identifier: MIT
"""README.md says what the code does."""

from __future__ import annotations

import inspect
import re
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

import fleet_runtime
from fleet_runtime.settings import FleetSettings, required, variable

UNLISTED = {"errors", "functions", "give_back"}  # one class, and old names

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_table_of_variables_is_that_of_the_settings() -> None:
    """To bring it up to date, put what this test prints between the two marks."""
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    rows += [
        f"| `{variable(field)}` | {default(field)} | {descriptions()[field.name]} |"
        for field in fields(FleetSettings)
    ]
    print("\n".join(rows))
    found = re.search(r"<!-- BEGIN variables -->\n(.*)\n<!-- END variables -->", README, re.DOTALL)
    assert found
    assert found[1].splitlines() == rows


def test_the_table_of_modules_is_complete() -> None:
    """Each module is in the table of README.md, in the row of its room."""
    rows = re.findall(r"^\| (?:`(\w+)`)? ?\| (`[^|]+`) \|", README, re.MULTILINE)
    listed, room = set(), ""
    for named, modules in rows:
        room = named or room
        listed |= {f"{room}/{module}".lstrip("/") for module in re.findall(r"`(\w+)`", modules)}
    package = Path(fleet_runtime.__file__).parent
    modules = {str(path.relative_to(package).with_suffix("")) for path in package.rglob("*.py")}
    assert listed == {name for name in modules if not name.endswith("__init__")} - UNLISTED


def descriptions() -> dict[str, str]:
    """Return the descriptions of the settings, from the docstring of their class."""
    attributes = (inspect.getdoc(FleetSettings) or "").partition("Attributes:\n")[2]
    found = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", attributes, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


def default(field: Field[Any]) -> str:
    """Return what a variable is if it is not set, as it would be set."""
    if required(field):
        return "required"
    match field.default:
        case bool(value):
            return str(value).lower()
        case tuple(values):
            return ",".join(values)
        case value if value in {None, MISSING}:
            return ""
        case value:
            return str(value)
