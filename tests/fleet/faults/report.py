# SPDX-License-Identifier: MIT
"""Tells what became of the tasks of all trials: a table and a plot, both kept as files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure

from tests.fleet.support.inventory import ROOT

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.fleet.faults.trial import Trial

FOLDER = ROOT / ".cache" / "test" / "faults"
COLUMNS = 2
mpl.use("Agg")  # no window, wherever it runs


class Report:
    """All trials so far."""

    def __init__(self, folder: Path = FOLDER) -> None:
        """Begin with none; the folder's name is that of the files as well."""
        self._folder = folder
        self._trials: list[Trial] = []

    def add(self, trial: Trial) -> None:
        """Add a trial, and write the files again, so that an interrupted run has all trials before."""
        self._trials.append(trial)
        self._folder.mkdir(parents=True, exist_ok=True)
        name = self._folder.name
        (self._folder / f"{name}.md").write_text(self.table())
        (self._folder / f"{name}.json").write_text(json.dumps(self._details(), indent=2))
        plot(self._trials).savefig(self._folder / f"{name}.png", dpi=80)

    def table(self) -> str:
        """Return the table, in Markdown."""
        return table([trial.row() for trial in self._trials])

    def _details(self) -> list[dict[str, Any]]:
        """Return the rows, with the names of those tasks that fared ill."""
        return [
            {
                **trial.row(),
                "names": {
                    "run twice": trial.done_twice,
                    "stuck": trial.stuck,
                    "lost": trial.lost,
                },
                "problem": trial.problem,
            }
            for trial in self._trials
        ]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return rows as a table in Markdown, which is read as text, too; the last one has the sums.

    >>> print(table([{"fault": "fire", "lost": 0, "gap, s": 1}, {"fault": "flood", "lost": 2, "gap, s": 9}]))
    | fault | lost | gap, s |
    |-------|-----:|-------:|
    | fire  |    0 |      1 |
    | flood |    2 |      9 |
    | all   |    2 |      9 |
    <BLANKLINE>
    """
    if not rows:
        return ""
    first, *others = rows[0]
    sums = {name: (max if name.endswith(", s") else sum)(row[name] for row in rows) for name in others}
    cells = [[str(row[name]) for name in rows[0]] for row in [*rows, {first: "all", **sums}]]
    widths = [max(map(len, column)) for column in zip(rows[0], *cells, strict=True)]

    def line(words: Sequence[str]) -> str:
        head, *rest = zip(words, widths, strict=True)
        return " | ".join([head[0].ljust(head[1]), *(word.rjust(width) for word, width in rest)])

    rule = "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])])
    return "\n".join([f"| {line(list(rows[0]))} |", f"|{rule}|", *(f"| {line(row)} |" for row in cells), ""])


def plot(trials: Sequence[Trial]) -> Figure:
    """Return a plot of each trial: how many tasks were accepted, and how many were done, as time went by."""
    lines = -(-len(trials) // COLUMNS)
    figure = Figure(figsize=(7 * COLUMNS, 3 * lines), layout="constrained")
    for number, trial in enumerate(trials, start=1):
        axes = figure.add_subplot(lines, COLUMNS, number)
        zero = trial.sent[0].submitted
        accepted = sorted(sent.accepted - zero for sent in trial.sent if sent.accepted)
        done = sorted(end - zero for end in trial.done.values())
        axes.axvspan(trial.began - zero, trial.ended - zero, color="0.9", label="fault")
        axes.plot(accepted, range(1, len(accepted) + 1), label="accepted")
        axes.plot(done, range(1, len(done) + 1), label="done")
        ill = ", ".join(f"{trial.row()[count]} {count}" for count in ("lost", "stuck", "run twice"))
        axes.set_title(f"{trial.name}: {ill}")
        axes.set_xlabel("seconds")
        axes.set_ylabel("tasks")
        axes.legend(loc="upper left")
    return figure
