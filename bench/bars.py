# SPDX-License-Identifier: MIT
"""What the fleet's figures must not exceed, each as a share of another figure of the same session."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench import peers, variants

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from bench.variants import Celery

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
        found, met = self.measured(medians), self.is_met(medians)
        bar = f"{'>=' if self.at_least else '<='} {self.bar:g}"
        if found is None:
            return [self.what, "-", bar, "not measured"]
        return [self.what, f"{found:.3g}", bar, "yes" if met else "NO"]

    def is_met(self, medians: Medians) -> bool | None:
        """Return whether it is what it must be, if all of it was measured."""
        found = self.measured(medians)
        if found is None:
            return None
        return found >= self.bar if self.at_least else found <= self.bar


HEAD = ["what", "measured", "bar", "met"]


def _cpu(variant: str) -> Figure:
    """Return where the CPU of a task is."""
    return Figure("throughput", variant, "cpu")


def _of(variant: Celery, what: str, measure: str, column: str, bar: float, **options: bool) -> Bar:
    """Return a bar for a variant of the fleet, as a share of STOCK."""
    figure, base = (Figure(measure, one.name, column) for one in (variant, variants.STOCK))
    return Bar(f"{what}, {said(variant)}, of Celery's with the same settings", figure, bar, base, **options)


def said(variant: Celery) -> str:
    """Return in words which variant of the fleet a bar is about."""
    return {
        variants.RUNTIME.name: "no events",
        variants.EVENTS.name: "events",
        variants.RESULTS.name: "no events, results stored",
        variants.RUNTIME_TLS.name: "no events, TLS + ACL + AOF",
    }[variant.name]


FLEET, EVENTS = variants.RUNTIME, variants.EVENTS
# The figures of docs/performance.md and 10 %. `events` is the default where the inventory has a Flower; the
# others are for nodes that send none.
BARS = (
    *(
        bar
        for variant, cpu, rate, p50, p99 in ((FLEET, 0.27, 4.8, 0.95, 0.96), (EVENTS, 0.36, 3.4, 1, 1))
        for bar in (
            _of(variant, "CPU of a task without a result", "throughput", "cpu", cpu),
            _of(variant, "tasks a second", "throughput", "tasks_per_second", rate, at_least=True),
            _of(variant, "latency at 60 tasks a second, p50", "latency", "p50", p50),
            _of(variant, "latency at 60 tasks a second, p99", "latency", "p99", p99),
        )
    ),
    *(
        Bar(f"CPU of a task, {said(variant)}, of {whose}", _cpu(variant.name), bar, _cpu(base.name))
        for variant, whose, base, bar in (
            (FLEET, "a tutorial's settings with events", variants.TUTORIAL, 0.104),
            (EVENTS, "a tutorial's settings with events", variants.TUTORIAL, 0.139),
            (variants.RESULTS, "a tutorial's settings with events", variants.TUTORIAL, 0.21),
            (variants.RUNTIME_TLS, "plain, no events", FLEET, 1.23),
            (FLEET, "taskiq's on streams", peers.TASKIQ, 0.99),
            (FLEET, "arq's", peers.ARQ, 0.33),
            (FLEET, "rq's with SimpleWorker", peers.RQ_SIMPLE, 0.095),
        )
    ),
    _of(FLEET, "memory of a node with 8 children and 60 MB of imports", "memory", "total", 0.45),
    *(
        bar
        for variant in (FLEET, EVENTS)
        for bar in (
            Bar(
                f"Redis commands a second that an idle node sends, {said(variant)}, of 20",
                Figure("idle", f"{variant.name} x 20", "sent"),
                0.44,
            ),
            Bar(
                f"connections of an idle node, {said(variant)}, of 20",
                Figure("idle", f"{variant.name} x 20", "connections"),
                6,
            ),
        )
    ),
    Bar(
        "Redis commands to start 20 nodes, no events, of one",
        Figure("idle", f"{FLEET.name} x 20", "start"),
        20,
        Figure("idle", f"{FLEET.name} x 1", "start"),
    ),
)


def unmet(medians: Medians, measures: Collection[str]) -> list[str]:
    """Return a line for each bar of these measures that is not met."""
    return [
        "{} is {}, and must be {}".format(*bar.row(medians))
        for bar in BARS
        if bar.figure.measure in measures and bar.is_met(medians) is False
    ]
