# SPDX-License-Identifier: MIT
"""Writes the results of `make matrix` into the table of docs/compatibility.md.

Usage: python -m tools.matrix_table

A row is a combination of versions, and is written from the report that a whole run of its session has left in
.cache/matrix. Rows of combinations without such a report stay as they are; those of combinations that
noxfile.py no longer has go.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

from junitparser import JUnitXml

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "compatibility.md"
REPORTS = ROOT / ".cache" / "matrix"
BEGIN, END = "<!-- matrix: begin -->", "<!-- matrix: end -->"
HEAD = "| Celery | kombu | redis-py | Python | passed | failed | on |\n|---|---|---|---|---|---|---|\n"
COLUMNS = 4  # those of the versions


def row(report: Path) -> list[str]:
    """Return the cells of a report, whose name has the versions."""
    tests = failed = skipped = 0
    for suite in JUnitXml.fromfile(str(report)):
        tests, skipped = tests + suite.tests, skipped + suite.skipped
        failed += suite.failures + suite.errors
    day = datetime.fromtimestamp(report.stat().st_mtime, UTC).date()
    return [*report.stem.split(" "), str(tests - failed - skipped), str(failed), day.isoformat()]


def merged(page: str, rows: list[list[str]], known: set[tuple[str, ...]]) -> str:
    """Return the page with rows added to its table, or in place of those of the same versions.

    Args:
        page: The text of the page, with both markers.
        rows: The cells of each new row.
        known: The combinations of Celery, kombu and redis-py whose rows stay.
    """
    before, _, rest = page.partition(BEGIN)
    old, _, after = rest.partition(END)
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in old.splitlines() if "|" in line
    ]
    table = {tuple(one[:COLUMNS]): one for one in [*cells[2:], *rows] if tuple(one[: COLUMNS - 1]) in known}
    lines = "".join(f"| {' | '.join(table[key])} |\n" for key in sorted(table, key=_numbers))
    return f"{before}{BEGIN}\n\n{HEAD}{lines}\n{END}{after}"


def _numbers(versions: tuple[str, ...]) -> list[list[int]]:
    """Return versions as numbers, to sort them."""
    return [[int(number) for number in re.findall(r"\d+", version)] for version in versions]


def main() -> None:
    """Write the table."""
    import noxfile

    rows = [row(report) for report in REPORTS.glob("*.xml")]
    PAGE.write_text(merged(PAGE.read_text(), rows, set(noxfile.COMBINATIONS.values())))


if __name__ == "__main__":
    main()
