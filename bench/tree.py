# SPDX-License-Identifier: MIT
"""Measures the tree that PYTHONPATH names, a line of JSON for each variant: see `bench.against`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

from bench import drain, variants
from bench.servers import servers


def main(tasks: int, names: list[str]) -> None:
    """Run each variant that this tree has once."""
    with servers() as running:
        for name in names:
            if variant := getattr(variants, name, None):
                row = asdict(drain.run(running[variant.server], variant, tasks=tasks))
                print(json.dumps({**row, "variant": name}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
