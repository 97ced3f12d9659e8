# SPDX-License-Identifier: MIT
"""Counts what is lost when consumers are killed at any instant: `python -m bench.kills --help`."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from bench import ROOT
from bench.servers import PLAIN, servers
from fleet_testing import kills

REPORT = ROOT / ".cache" / "bench" / "kills.json"


def main() -> None:
    """Count for each transport, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m bench.kills", description=kills.__doc__)
    parser.add_argument("--kills", type=int, default=400, help="for each transport (default: 400)")
    parser.add_argument("--seed", type=int, default=0, help="of the instants (default: 0)")
    options = parser.parse_args()
    counts = []
    with servers() as running, tempfile.TemporaryDirectory() as folder:
        for place, name in enumerate(kills.CONSUMERS):
            print(f"{options.kills} kills: {name}", file=sys.stderr)
            # A consumer would spend most of its time on TLS.
            counts.append(
                kills.run(running[PLAIN], name, options.kills, options.seed, Path(folder, str(place)))
            )
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(json.dumps([asdict(count) for count in counts], indent=1))
    print(
        "| transport | kills | messages | held | done | lost | doubled |\n|---|---:|---:|---:|---:|---:|---:|"
    )
    for count in counts:
        print(f"| {' | '.join(str(value) for value in asdict(count).values())} |")


if __name__ == "__main__":
    main()
