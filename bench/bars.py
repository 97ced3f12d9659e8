"""What the fleet's figures must not exceed, each as a share of another figure of the same session."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench import peers, variants

if TYPE_CHECKING:
    from collections.abc import Mapping

    # measure -> variant -> column -> median
    Medians = Mapping[str, Mapping[str, Mapping[str, float]]]


@dataclass(frozen=True)
class Figure:
    """Where a figure is among the medians."""

    measure: str
    variant: str
    column: str

    def of(self, medians: Medians) -> float | None:
        """Return it, if it was measured."""
        return medians.get(self.measure, {}).get(self.variant, {}).get(self.column)


@dataclass(frozen=True)
class Bar:
    """A figure, or its ratio to another one, and what that must be.

    Attributes:
        what: In words.
        figure: Of the fleet.
        bar: What it must be: at most, or at least.
        base: What it is divided by.
        at_least: Whether more is better.
    """

    what: str
    figure: Figure
    bar: float
    base: Figure | None = None
    at_least: bool = False

    def measured(self, medians: Medians) -> float | None:
        """Return what it is, if all of it was measured."""
        value = self.figure.of(medians)
        if value is None or self.base is None:
            return value
        base = self.base.of(medians)
        return value / base if base else None

    def row(self, medians: Medians) -> list[str]:
        """Return what it is, what it must be, and whether it is."""
        found = self.measured(medians)
        bar = f"{'>=' if self.at_least else '<='} {self.bar:g}"
        if found is None:
            return [self.what, "-", bar, "not measured"]
        met = found >= self.bar if self.at_least else found <= self.bar
        return [self.what, f"{found:.3g}", bar, "yes" if met else "NO"]


HEAD = ["what", "measured", "bar", "met"]


def _cpu(variant: str) -> Figure:
    """Return where the CPU of a task is."""
    return Figure("throughput", variant, "cpu")


def _ratio(what: str, measure: str, column: str, bar: float, **options: bool) -> Bar:
    """Return a bar for RUNTIME, as a share of STOCK."""
    figure, base = (Figure(measure, one.name, column) for one in (variants.RUNTIME, variants.STOCK))
    return Bar(f"{what}, of Celery's with the same settings", figure, bar, base, **options)


FLEET = variants.RUNTIME.name
BARS = (
    _ratio("CPU of a task without a result", "throughput", "cpu", 0.55),
    _ratio("tasks a second", "throughput", "tasks_per_second", 1.7, at_least=True),
    Bar(
        "CPU of a task, of a tutorial's settings with events", _cpu(FLEET), 0.3, _cpu(variants.TUTORIAL.name)
    ),
    Bar(
        "CPU of a task, of the same, when results are stored here, too",
        _cpu(variants.RESULTS.name),
        0.3,
        _cpu(variants.TUTORIAL.name),
    ),
    Bar("CPU of a task, of taskiq's on streams", _cpu(FLEET), 1.5, _cpu(peers.TASKIQ.name)),
    Bar("CPU of a task, of arq's", _cpu(FLEET), 0.4, _cpu(peers.ARQ.name)),
    Bar("CPU of a task, of rq's with SimpleWorker", _cpu(FLEET), 0.2, _cpu(peers.RQ_SIMPLE.name)),
    Bar("CPU of a task with TLS, ACL and AOF, of plain", _cpu(variants.RUNTIME_TLS.name), 1.2, _cpu(FLEET)),
    _ratio("latency at 60 tasks a second, p50", "latency", "p50", 1),
    _ratio("latency at 60 tasks a second, p99", "latency", "p99", 1),
    _ratio("memory of a node with 8 children and 60 MB of imports", "memory", "total", 0.45),
    Bar(
        "Redis commands a second that an idle node sends, of 20", Figure("idle", f"{FLEET} x 20", "sent"), 0.5
    ),
    Bar("connections of an idle node, of 20", Figure("idle", f"{FLEET} x 20", "connections"), 6),
    Bar(
        "Redis commands to start 20 nodes, of one",
        Figure("idle", f"{FLEET} x 20", "start"),
        20,
        Figure("idle", f"{FLEET} x 1", "start"),
    ),
)
