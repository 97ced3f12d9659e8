# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Calls one hook of a build backend (PEP 517). It runs in a sandbox, with the standard library only."""

from __future__ import annotations

import importlib
import json
import site
import sys
from pathlib import Path


def call(request: dict[str, str], paths: list[str]) -> object:
    """Call a hook in the current directory, and return its answer.

    Args:
        request: `hook`, its name; `backend`, as in pyproject.toml; `site`, the directory with what was
            installed for it; `out`, where what is built goes.
        paths: Directories of the project that the backend is imported from.
    """
    site.addsitedir(request["site"])
    sys.path[:0] = [str(Path(path).resolve()) for path in paths]
    module, _separator, attributes = request["backend"].partition(":")
    backend = importlib.import_module(module)
    for name in filter(None, attributes.split(".")):
        backend = getattr(backend, name)
    hook = getattr(backend, request["hook"], None)
    if request["hook"].startswith("get_requires_"):  # the only ones that a backend need not have
        return list(hook()) if hook else []
    if hook is None:
        raise SystemExit(f"{request['backend']} has no {request['hook']}")
    return hook(request["out"])


if __name__ == "__main__":
    answer = call(json.loads(sys.argv[1]), sys.argv[3:])
    Path(sys.argv[2]).write_text(json.dumps(answer), encoding="utf-8")  # what is printed is the backend's
