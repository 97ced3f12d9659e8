"""Compares ways to run a node: `python -m bench --help`."""

from __future__ import annotations

import argparse
import json
import random
import sys
from dataclasses import asdict, fields
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from app.tests.broker import Broker
from bench import drain
from bench.drain import ROOT, Run
from bench.variants import ALL

REPORT = ROOT / ".cache" / "bench"
MEASURES = [field.name for field in fields(Run) if field.name != "variant"]


def main() -> None:
    """Run every variant once in each round, in a new order, and print what a task cost."""
    options = parse()
    variants = [one.with_pool(pool) for pool in options.pool for one in ALL]
    runs: list[Run] = []
    with TemporaryDirectory() as folder:
        broker = Broker(Path(folder))
        try:
            for number in range(options.rounds):
                for variant in random.sample(variants, len(variants)):
                    print(f"round {number + 1} of {options.rounds}: {variant.name}", file=sys.stderr)
                    runs.append(drain.run(broker, variant, tasks=options.tasks, task=options.task))
        finally:
            broker.stop()
    REPORT.mkdir(parents=True, exist_ok=True)
    (REPORT / "throughput.json").write_text(json.dumps([asdict(run) for run in runs], indent=1))
    for pool in options.pool:
        print(table([run for run in runs if run.variant.endswith(f", {pool}")]))


def parse() -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="runs of each variant (default: 5)")
    parser.add_argument("--tasks", type=int, default=5000, help="tasks in a run (default: 5000)")
    parser.add_argument("--task", choices=["noop", "silent"], default="silent", help="noop stores a result")
    parser.add_argument("--pool", action="append", choices=["prefork", "threads", "gevent", "solo"])
    options = parser.parse_args()
    options.pool = options.pool or ["prefork"]
    return options


def table(runs: list[Run]) -> str:
    """Return the medians as a table, with what they are of the first variant's."""
    names = list(dict.fromkeys(run.variant for run in sorted(runs, key=order)))
    medians = {
        name: {
            measure: median(getattr(run, measure) for run in runs if run.variant == name)
            for measure in MEASURES
        }
        for name in names
    }
    base = medians[names[0]]
    head = [
        "variant", "tasks/s", "of the first", "CPU, us a task", "of the first",
        "main", "children", "Redis", "commands",
    ]  # fmt: skip
    rows = [
        [
            name,
            f"{one['tasks_per_second']:.0f}",
            f"{one['tasks_per_second'] / base['tasks_per_second']:.2f}",
            f"{one['cpu']:.0f}",
            f"{one['cpu'] / base['cpu']:.2f}",
            *(f"{one[measure]:.0f}" for measure in ("main", "children", "redis")),
            f"{one['commands']:.1f}",
        ]
        for name, one in medians.items()
    ]
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def order(run: Run) -> int:
    """Return the place of a run's variant."""
    return next(place for place, one in enumerate(ALL) if run.variant.rpartition(",")[0] == one.name)


if __name__ == "__main__":
    main()
