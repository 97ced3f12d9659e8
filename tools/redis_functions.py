#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Write what the collection takes from the runtime: functions of Redis, and names of keys.

A host of Redis does not have the runtime. Each script that the fleet's processes run on Redis becomes a
library of functions, for the role redis. The names of keys, and the script that removes a node, become a
module utility.

Usage: tools/redis_functions.py [--check]     --check: write nothing, and fail if a file is not up to date.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fleet_runtime.broker import keys, scripts
from fleet_runtime.broker.libraries import libraries

PROJECT = Path(__file__).resolve().parents[1]
FOLDER = PROJECT / "roles" / "redis" / "files" / "functions"
KEYS = PROJECT / "plugins" / "module_utils" / "runtime_keys.py"
HEAD = """\
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Written by `make functions` from fleet_runtime.broker.keys. Do not edit it.
"""


def names_of_keys() -> str:
    """Return the text of the module utility."""
    source = Path(keys.__file__).read_text(encoding="utf-8")
    _, _, text = source.partition('"""')  # after the line of the licence
    script = f'# broker/scripts/forget_node.lua\nFORGET_NODE = """\\\n{scripts.FORGET_NODE}"""'
    return f'{HEAD}"""{text.rstrip()}\n\n\n{script}\n'


def files() -> dict[Path, str]:
    """Return the path and the text of each file."""
    return {KEYS: names_of_keys()} | {FOLDER / f"{name}.lua": text for name, text in libraries().items()}


def main() -> int:
    """Write the files, or compare them."""
    wanted = files()
    there = {
        path: path.read_text(encoding="utf-8") for path in (*FOLDER.glob("*.lua"), KEYS) if path.exists()
    }
    if "--check" in sys.argv[1:]:
        if wanted != there:
            print("run `make functions`", file=sys.stderr)
        return int(wanted != there)
    FOLDER.mkdir(exist_ok=True)
    for path in there.keys() - wanted.keys():
        path.unlink()
    for path, text in wanted.items():
        if there.get(path) != text:
            path.write_text(text, encoding="utf-8")
            print(f"Written: {path.relative_to(PROJECT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
