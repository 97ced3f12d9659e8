#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Write each script that the fleet's processes run on Redis as a library of functions, for the role redis.

Usage: tools/redis_functions.py [--check]     --check: write nothing, and fail if a file is not up to date.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fleet_runtime.broker.libraries import libraries

FOLDER = Path(__file__).resolve().parents[1] / "roles" / "redis" / "files" / "functions"


def files() -> dict[str, str]:
    """Return the name and the text of each file."""
    return {f"{name}.lua": text for name, text in libraries().items()}


def main() -> int:
    """Write the files, or compare them."""
    wanted = files()
    there = {path.name: path.read_text() for path in FOLDER.glob("*.lua")}
    if "--check" in sys.argv[1:]:
        if wanted != there:
            print("run `make functions`", file=sys.stderr)
        return int(wanted != there)
    FOLDER.mkdir(exist_ok=True)
    for name in there.keys() - wanted.keys():
        (FOLDER / name).unlink()
    for name, text in wanted.items():
        if there.get(name) != text:
            (FOLDER / name).write_text(text)
            print(f"Written: {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
