# SPDX-License-Identifier: MIT
"""Draws what was measured: a bar for each variant, and a dot for each run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    Figures = Mapping[str, Mapping[str, float]]  # variant -> column -> median
    Rows = Sequence[Mapping[str, Any]]

mpl.use("Agg")  # no window, wherever it runs
mpl.rcParams["svg.hashsalt"] = "bench"  # the same figures give the same file
WIDEST = 3.0  # of the first variant's bar: a longer one is cut off, and has its number


@dataclass(frozen=True)
class Panel:
    """One diagram of a plot.

    Attributes:
        title: What its axis shows.
        parts: The figures whose sum is the length of a bar.
        form: How the sum is written.
    """

    title: str
    parts: tuple[str, ...]
    form: str = ".0f"


# The plots, by measure, and so by file.
PLOTS = {
    "throughput": (
        Panel("CPU of a task, microseconds", ("main", "children", "redis")),
        Panel("tasks a second", ("tasks_per_second",)),
    ),
    "publish": (Panel("CPU of a message, microseconds", ("cpu",)),),
    "latency": (Panel("p50, milliseconds", ("p50",), ".2f"), Panel("p99, milliseconds", ("p99",), ".2f")),
    "memory": (Panel("PSS of a node, MiB", ("total",)),),
    "idle": (
        Panel("Redis commands a second, each node", ("sent",), ".2f"),
        Panel("connections, each node", ("connections",), ".1f"),
    ),
}


def draw(
    medians: Mapping[str, Figures], runs: Mapping[str, Rows], machine: Mapping[str, str], folder: Path
) -> None:
    """Write a plot for each measure that there is."""
    for measure, panels in PLOTS.items():
        if found := medians.get(measure):
            figure = plot(found, runs[measure], panels)
            figure.supxlabel(caption(machine), fontsize="x-small", color="0.4")
            figure.savefig(folder / f"{measure}.svg", metadata={"Date": None})


def plot(found: Figures, rows: Rows, panels: Sequence[Panel]) -> Figure:
    """Return a plot with a line for each variant, the first one on top."""
    size = (3 + 3.5 * len(panels), 1.2 + 0.28 * len(found))
    figure = Figure(figsize=size, layout="constrained")
    for number, panel in enumerate(panels, start=1):
        axes = figure.add_subplot(1, len(panels), number)
        fill(axes, found, rows, panel)
        axes.set_yticks(range(len(found)), list(found) if number == 1 else [])
        axes.invert_yaxis()
        axes.set_xlabel(panel.title)
    return figure


def fill(axes: Axes, found: Figures, rows: Rows, panel: Panel) -> None:
    """Draw the bars of a panel, the dots, and the numbers."""
    places = {variant: place for place, variant in enumerate(found)}
    starts = [0.0] * len(found)
    for part in panel.parts:
        lengths = [figures[part] for figures in found.values()]
        axes.barh(list(places.values()), lengths, left=starts, height=0.6, label=part)
        starts = [start + length for start, length in zip(starts, lengths, strict=True)]
    sums = [sum(row[part] for part in panel.parts) for row in rows]
    axes.plot(sums, [places[row["variant"]] for row in rows], ".", color="0.2", markersize=3)
    right = min(max(starts), WIDEST * starts[0]) * 1.2
    for place, end in enumerate(starts):
        cut = end > right / 1.2
        where = (right, "right") if cut else (end, "left")
        axes.text(where[0], place, f" {end:{panel.form}} ", ha=where[1], va="center", fontsize="x-small")
    axes.set_xlim(0, right)
    if len(panel.parts) > 1:
        axes.legend(loc="lower right", fontsize="x-small")


def caption(machine: Mapping[str, str]) -> str:
    """Return what was measured on, in one line; the peers' versions are in the tables."""
    named = [
        f"{name} {machine[name]}"
        for name in ("Python", "Celery", "kombu", "redis-py", "Redis")
        if name in machine
    ]
    return ", ".join([machine.get("CPU", ""), f"{machine.get('cores', '?')} cores", *named])
