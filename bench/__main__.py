# SPDX-License-Identifier: MIT
"""Compares ways to run a node: `python -m bench --help`."""

from __future__ import annotations

import argparse
import random
import signal
import sys
from dataclasses import asdict, dataclass
from functools import partial
from subprocess import CalledProcessError
from typing import TYPE_CHECKING, Any

from bench import bars, drain, idle, latency, machine, memory, peers, publish, report, variants
from bench.servers import servers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from bench.servers import Server

LATENCY_TASKS = 600
PUBLISH_TASKS = 2000


@dataclass(frozen=True)
class Measure:
    """What is run in each round: each variant once, in a new order."""

    variants: Sequence[Any]
    run: Callable[[Server, Any], Any]


def main() -> None:
    """Run every variant once in each round, tell what each costs, and fail if a run or a bar has failed."""
    options = parse()
    # Who stops this stops the nodes as well. They have sessions of their own, and would go on.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    measures = {name: measure for name, measure in plan(options).items() if name in options.only}
    failures = []
    with servers() as running:
        results = report.begin(machine.describe(next(iter(running.values())).client("admin")), measures)
        for number in range(options.rounds):
            for name, measure in measures.items():
                for variant in random.sample(measure.variants, len(measure.variants)):
                    print(f"round {number + 1} of {options.rounds}: {name}: {variant.name}", file=sys.stderr)
                    try:
                        row = measure.run(running[variant.server], variant)
                    except (RuntimeError, CalledProcessError) as error:  # the others took an hour
                        failures.append(f"{name}: {variant.name}: {error}")
                        continue
                    results["runs"][name].append(asdict(row))
                in_order(results["runs"][name], measure)
            text = report.write(results)
    print(text, end="")
    if failures := [*failures, *bars.unmet(report.of_measures(results), measures)]:
        sys.exit("\n".join(failures))


def in_order(rows: list[dict[str, Any]], measure: Measure) -> None:
    """Sort rows as the variants are."""
    places = {variant.name: place for place, variant in enumerate(measure.variants)}
    rows.sort(key=lambda row: places[row["variant"]])


def plan(options: argparse.Namespace) -> Mapping[str, Measure]:
    """Return what there is to measure."""
    compared = [one.with_pool(pool) for pool in options.pool for one in variants.COMPARED]
    others = [*variants.SECURED, *variants.PROFILES, *variants.COSTLY]
    fleets = [one for variant in variants.IDLE for one in idle.fleets(variant)]
    return {
        "throughput": Measure(
            [*compared, *others, *([] if options.no_peers else peers.PEERS)],
            partial(drain.run, tasks=options.tasks),
        ),
        "publish": Measure(publish.WAYS, partial(publish.run, tasks=min(options.tasks, PUBLISH_TASKS))),
        "latency": Measure(
            [*compared, *variants.SECURED], partial(latency.run, tasks=min(options.tasks, LATENCY_TASKS))
        ),
        "memory": Measure([variants.STOCK, variants.RUNTIME], memory.run),
        "idle": Measure(fleets, idle.run),
    }


MEASURES = ("throughput", "publish", "latency", "memory", "idle")


def parse() -> argparse.Namespace:
    """Return what was asked for; with peers that are not installed, say how to install them."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="runs of each variant (default: 5)")
    parser.add_argument("--tasks", type=int, default=5000, help="tasks in a run (default: 5000)")
    parser.add_argument("--only", action="append", choices=MEASURES, help="may be given more than once")
    parser.add_argument("--pool", action="append", choices=["prefork", "threads", "gevent", "solo"])
    parser.add_argument("--no-peers", action="store_true", help="leave out the other task queues")
    options = parser.parse_args()
    options.pool = options.pool or ["prefork"]
    options.only = options.only or MEASURES
    if "throughput" in options.only and not options.no_peers and (missing := list(peers.missing())):
        parser.error(
            f"not installed: {', '.join(missing)}. Run `lab/bootstrap bench`, or leave them out: --no-peers"
        )
    return options


if __name__ == "__main__":
    main()
