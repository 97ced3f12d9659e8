# SPDX-License-Identifier: MIT
"""UPSTREAM.md has a row for each patch of the runtime, and for nothing else."""

from __future__ import annotations

import re
from pathlib import Path

from fleet_runtime.compat.surface import SURFACE, Kind

PAGE = (Path(__file__).resolve().parents[2] / "UPSTREAM.md").read_text(encoding="utf-8")
ROWS = [line.strip("|").split("|") for line in PAGE.splitlines() if re.match(r"\| `", line)]
SECTIONS = {
    "Replaced for the whole process": Kind.REPLACE,
    "Copied": Kind.COPIED,
}


def named_in(section: str) -> list[str]:
    """Return the names in the first column of a section's table."""
    text = PAGE.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    cells = (line.split("|")[1] for line in text.splitlines() if line.startswith("| `"))
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


def test_each_replaced_or_copied_name_has_a_row() -> None:
    for section, kind in SECTIONS.items():
        expected = sorted(str(name) for name in SURFACE if name.kind is kind)
        assert sorted(named_in(section)) == expected, section


def test_each_class_that_is_overridden_has_a_row() -> None:
    expected = {name.owner for name in SURFACE if name.kind is Kind.OVERRIDE}
    assert set(named_in("Overridden")) == expected


def test_each_row_says_why_what_is_known_and_when_it_can_go() -> None:
    assert ROWS
    assert not [cells[0] for cells in ROWS if len(cells) != 4 or not all(map(str.strip, cells))]
