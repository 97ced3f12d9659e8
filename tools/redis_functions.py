# SPDX-License-Identifier: MIT
"""Write what the collection takes from the runtime: functions of Redis, names of keys, figures.

A host of Redis does not have the runtime. Each script that the fleet's processes run on Redis becomes a
library of functions, for the role redis. The names of keys, the script that removes a node, and what
preflight says as `fleet check` does, become module utilities.

Usage: tools/redis_functions.py [--check]     --check: write nothing, and fail if a file is not up to date.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fleet_runtime import settings
from fleet_runtime.broker import keys, scripts
from fleet_runtime.broker.libraries import libraries
from fleet_runtime.inspect import app_check

PROJECT = Path(__file__).resolve().parents[1]
FOLDER = PROJECT / "roles" / "redis" / "files" / "functions"
KEYS = PROJECT / "plugins" / "module_utils" / "runtime_keys.py"
FIGURES = PROJECT / "plugins" / "module_utils" / "runtime_figures.py"
HEAD = """\
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Written by `make functions` from the runtime. Do not edit it.
"""


def names_of_keys() -> str:
    """Return the text of the module utility."""
    source = Path(keys.__file__).read_text(encoding="utf-8")
    _, _, text = source.partition('"""')  # after the line of the licence
    script = f'# broker/scripts/forget_node.lua\nFORGET_NODE = """\\\n{scripts.FORGET_NODE}"""'
    return f'{HEAD}"""{text.rstrip()}\n\n\n{script}\n'


def figures() -> str:
    """Return the text of the module utility with what preflight says as `fleet check` does."""
    lines = [
        f"SOFT_TIME_LIMIT_SHARE = {settings.SOFT_TIME_LIMIT_SHARE}  # of the time limit",
        f"LEAST_TASKS_PER_CHILD = {app_check.LEAST_TASKS_PER_CHILD}  # fewer cost much",
        "# What settings cost, with tasks that do nothing.",
        f'TRACK_STARTED_COST = (\n    "{app_check.TRACK_STARTED_COST}"\n)',
        f'CHILD_COST = (\n    "{app_check.CHILD_COST}"\n)',
    ]
    about = '"""Figures of fleet_runtime.settings and fleet_runtime.inspect.app_check, for preflight."""'
    return "\n".join([f"{HEAD}{about}", "", "from __future__ import annotations", "", *lines, ""])


def files() -> dict[Path, str]:
    """Return the path and the text of each file."""
    functions = {FOLDER / f"{name}.lua": text for name, text in libraries().items()}
    return {KEYS: names_of_keys(), FIGURES: figures(), **functions}


def main() -> int:
    """Write the files, or compare them."""
    wanted = files()
    found = [path for path in (*FOLDER.glob("*.lua"), KEYS, FIGURES) if path.exists()]
    there = {path: path.read_text(encoding="utf-8") for path in found}
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
