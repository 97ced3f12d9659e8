"""README.md says what the code does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery import Celery
from fleet_runtime.laying import KEY_OPTIONS
from fleet_runtime.settings import PREFIX, FleetSettings
from pydantic_core import PydanticUndefinedType

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic.fields import FieldInfo

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_table_of_variables_is_that_of_the_settings() -> None:
    """To bring it up to date, put what this test prints between the two marks."""
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in FleetSettings.model_fields.items():
        variable = field.validation_alias or f"{PREFIX}{name.upper()}"
        rows.append(f"| `{variable}` | {default(field)} | {field.description} |")
    print("\n".join(rows))
    found = re.search(r"<!-- BEGIN variables -->\n(.*)\n<!-- END variables -->", README, re.DOTALL)
    assert found
    assert found[1].splitlines() == rows


def test_each_setting_that_is_laid_is_explained(lay: Callable[..., Any]) -> None:
    """And no other is."""
    laid, options = set(), set()
    for component in ("worker", "beat"):
        app = Celery("shop", set_as_current=False)
        before = set(app.conf.finalize().changes)
        conf = lay(app, component, FLEET_TRACK_STARTED="true")
        laid |= set(conf.changes) - before
        options |= {*conf.broker_transport_options, *conf.result_backend_transport_options}
    table = README.partition("## What is laid on an app")[2].partition("Not laid, on purpose")[0]
    cells = [row.split("|")[1] for row in table.splitlines() if row.startswith("| ")]
    names = {part: set() for part in ("settings", "options")}  # type: dict[str, set[str]]
    for cell in cells:
        names["options" if "…" in cell else "settings"] |= set(re.findall(r"`([a-z_]+)`", cell))
    assert names == {"settings": laid, "options": options | KEY_OPTIONS}


def default(field: FieldInfo) -> str:
    """Return what a variable is if it is not set, as it would be set."""
    if field.is_required():
        return "required"
    match field.get_default():
        case bool(value):
            return str(value).lower()
        case tuple(values):
            return ",".join(values)
        case None | PydanticUndefinedType():
            return ""
        case value:
            return str(value)
