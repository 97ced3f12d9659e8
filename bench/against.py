# SPDX-License-Identifier: MIT
"""Compares what a task costs here with what it cost at a commit: `python -m bench.against HEAD~1`.

Both trees run in one session, by the same interpreter with the same packages. Each round has the order of the
one before, turned: a load that grows meets both alike. What is told is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from bench import ROOT, report

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    Costs = Mapping[str, Sequence[float]]

BAR = 1.05  # CPU of a task, of the commit's
VARIANTS = ("RUNTIME", "RUNTIME_TLS", "EVENTS")
HEAD = ["variant", "CPU before", "CPU now", "ratio", "bar", "met"]
PATHS = ("", "plugins", ".ansible/collections", "app/runtime/src", "app/demo/src")


def main() -> None:
    """Measure both trees, and fail if a task has become dearer than the bar allows."""
    parser = argparse.ArgumentParser(prog="python -m bench.against", description=__doc__)
    parser.add_argument("commit", help="what to compare with")
    parser.add_argument("--rounds", type=int, default=6, help="runs of each tree (default: 6)")
    parser.add_argument("--tasks", type=int, default=5000, help="tasks in a run (default: 5000)")
    options = parser.parse_args()
    before: dict[str, list[float]] = {}
    now: dict[str, list[float]] = {}
    with tree_of(options.commit) as tree:
        sides = [(tree, before), (ROOT, now)]
        for number in range(options.rounds):
            for root, costs in sides:
                print(f"round {number + 1} of {options.rounds}: {root.name}", file=sys.stderr)
                for row in measured(root, options.tasks):
                    costs.setdefault(row["variant"], []).append(row["cpu"])
            sides.reverse()
    rows = compared(before, now)
    print(report.table(HEAD, rows))
    if dearer := [row[0] for row in rows if row[-1] != "yes"]:
        sys.exit(f"A task costs more than {BAR:g} of what it did at {options.commit}: {', '.join(dearer)}")


@contextmanager
def tree_of(commit: str) -> Iterator[Path]:
    """Yield a folder that has all files as they are in a commit."""
    git = ("git", "-C", str(ROOT), "worktree")
    with TemporaryDirectory() as folder:
        tree = Path(folder) / "before"
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), commit], check=True)
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def measured(root: Path, tasks: int) -> list[dict[str, Any]]:
    """Return what a task costs in a tree, a row for each variant that it has."""
    # -P: not the folder of the script, where this tree's own modules are
    words = [sys.executable, "-P", str(ROOT / "bench" / "tree.py"), str(tasks), *VARIANTS]
    path = os.pathsep.join(str(root / part) for part in PATHS)
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(
        words, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=sys.stderr, text=True, check=True
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def compared(before: Costs, now: Costs) -> list[list[str]]:
    """Return a row for each variant that both trees have.

    Args:
        before: CPU of a task by variant, a figure for each round.
        now: The same of this tree, in the same rounds.
    """
    rows = []
    for name in (name for name in VARIANTS if name in before and name in now):
        ratio = median(new / old for old, new in zip(before[name], now[name], strict=True))
        medians = [f"{median(costs[name]):.0f}" for costs in (before, now)]
        rows.append([name, *medians, f"{ratio:.3f}", f"<= {BAR:g}", "yes" if ratio <= BAR else "NO"])
    return rows


if __name__ == "__main__":
    main()
