# SPDX-License-Identifier: MIT
"""Writes what was measured: as JSON, as tables, and as plots. `python -m bench.report` does it again."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from bench import ROOT, bars, plots

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


FOLDER, FILE = ROOT / ".cache" / "bench", "results.json"


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: Its head.
        name: The figure's.
        form: How the figure is written.
        of_first: Whether it is written as a share of the first variant's, too.
    """

    title: str
    name: str
    form: str = ".0f"
    of_first: bool = False


# The tables, by measure.
TABLES: dict[str, tuple[str, tuple[Column, ...]]] = {
    "throughput": (
        "Throughput: what a task costs, in microseconds of CPU",
        (
            Column("tasks/s", "tasks_per_second", of_first=True),
            Column("CPU", "cpu", of_first=True),
            Column("main", "main"),
            Column("children", "children"),
            Column("Redis", "redis"),
            Column("commands", "commands", ".1f"),
            Column("requests", "requests", ".1f"),
        ),
    ),
    "publish": (
        "Publishing: the cost of a message for its sender, in microseconds of CPU",
        (
            Column("messages/s", "messages_per_second"),
            Column("CPU", "cpu", of_first=True),
            Column("Redis", "redis"),
        ),
    ),
    "latency": (
        "Latency at 60 tasks a second, in milliseconds",
        (
            Column("p50", "p50", ".2f", of_first=True),
            Column("p90", "p90", ".2f"),
            Column("p99", "p99", ".2f", of_first=True),
            Column("longest", "longest", ".1f"),
        ),
    ),
    "memory": (
        "Memory of a node with 8 children and 60 MB of imports, in MiB",
        (
            Column("all", "total", of_first=True),
            Column("main", "main"),
            Column("each child", "child"),
        ),
    ),
    "idle": (
        "Idle nodes; all but the first two columns are for each node",
        (
            Column("commands to start all", "start"),
            Column("CPU of Redis, %", "redis", ".2f"),
            Column("commands sent/s", "sent", ".2f"),
            Column("with scripts'", "commands", ".2f"),
            Column("requests/s", "requests", ".2f"),
            Column("connections", "connections", ".1f"),
            Column("CPU, %", "cpu", ".2f"),
        ),
    ),
}


def begin(machine: Mapping[str, str], measures: Iterable[str]) -> dict[str, Any]:
    """Return results to add to: none of these measures, and of others those of an earlier session."""
    found: dict[str, Any] = {"machine": machine, "runs": {}}
    with suppress(FileNotFoundError):
        before = json.loads((FOLDER / FILE).read_text())
        if before["machine"] == machine:
            found = before
    found["runs"] |= {measure: [] for measure in measures}
    return found


def write(results: Mapping[str, Any]) -> str:
    """Write all files, and return the tables.

    Args:
        results: `machine`, and `runs`: the rows of each measure.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / FILE).write_text(json.dumps(results, indent=1))
    found = of_measures(results)
    parts = [
        "# Benchmark",
        f"Rounds: {rounds(results['runs'])}. The figures are medians.",
        table(["machine", ""], [[name, value] for name, value in results["machine"].items()]),
    ]
    for measure, (title, columns) in TABLES.items():
        if found.get(measure):
            parts += [f"## {title}", of_medians(found[measure], columns)]
    parts += [in_detail(row) for row in latest(results)]
    parts += ["## Bars", table(bars.HEAD, [bar.row(found) for bar in bars.BARS])]
    text = "\n\n".join(parts) + "\n"
    (FOLDER / "results.md").write_text(text)
    plots.draw(found, results["runs"], results["machine"], FOLDER)
    return text


def of_measures(results: Mapping[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """Return the medians of each measure."""
    return {measure: medians(rows) for measure, rows in results["runs"].items()}


def medians(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the median of each figure, by variant."""
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        for name, value in row.items():
            if isinstance(value, int | float):
                values[row["variant"]][name].append(value)
    return {
        variant: {name: median(many) for name, many in figures.items()} for variant, figures in values.items()
    }


def of_medians(found: Mapping[str, Mapping[str, float]], columns: Sequence[Column]) -> str:
    """Return medians as a table, with a row for each variant."""
    base = next(iter(found.values()))
    head, rows = ["variant"], [[variant] for variant in found]
    for column in columns:
        head += [column.title, "of the first"][: 1 + column.of_first]
        for row, figures in zip(rows, found.values(), strict=True):
            value = figures[column.name]
            row.append(f"{value:{column.form}}")
            if column.of_first:
                row.append(f"{value / base[column.name]:.2f}")
    return table(head, rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown, which is read as text, too.

    >>> print(table(["variant", "CPU"], [["one", "950"], ["the other", "5"]]))
    | variant   | CPU |
    |-----------|----:|
    | one       | 950 |
    | the other |   5 |
    """
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]

    def line(words: Sequence[str]) -> str:
        first, *rest = zip(words, widths, strict=True)
        return " | ".join([first[0].ljust(first[1]), *(word.rjust(width) for word, width in rest)])

    rule = "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])])
    return "\n".join([f"| {line(head)} |", f"|{rule}|", *(f"| {line(row)} |" for row in rows)])


def in_detail(row: Mapping[str, Any]) -> str:
    """Return what an idle node asks and keeps open, by name."""
    commands, connections = map(spelled, (row["kinds"], row["names"]))
    return f"{row['variant']}, each node: commands a second: {commands}; connections: {connections}"


def latest(results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the last round's rows of idle nodes."""
    return list({row["variant"]: row for row in results["runs"].get("idle", ())}.values())


def spelled(rates: Mapping[str, float]) -> str:
    """Return the rates of what has names, the largest first.

    >>> spelled({"evalsha": 0.2, "(ping)": 1, "info": 0.0})
    'evalsha 0.20, (ping) 1.00'
    """
    return ", ".join(f"{name} {rate:.2f}" for name, rate in rates.items() if rate >= 0.01)


def rounds(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Return how many rounds each measure had; what has failed in one has fewer rows.

    >>> rounds({"memory": [{"variant": "one"}, {"variant": "two"}, {"variant": "one"}], "idle": []})
    'memory 2, idle 0'
    """
    counts = {measure: Counter(row["variant"] for row in rows) for measure, rows in runs.items()}
    return ", ".join(f"{measure} {max(of.values(), default=0)}" for measure, of in counts.items())


def main() -> None:
    """Write the files anew from the figures of the last session."""
    print(write(json.loads((FOLDER / FILE).read_text())), end="")


if __name__ == "__main__":
    main()
