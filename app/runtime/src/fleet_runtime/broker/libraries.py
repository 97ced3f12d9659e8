# SPDX-License-Identifier: MIT
"""The scripts that the fleet's processes run on Redis, as libraries of functions that an administrator loads.

A library has one function, which is named by the SHA-1 of its script: `functions` calls it. The scripts are
those of the runtime, and those of kombu, Celery, RedBeat and redis-py.
"""

from __future__ import annotations

import importlib
import re
from typing import TYPE_CHECKING

from fleet_runtime.broker import functions, scripts

if TYPE_CHECKING:
    from collections.abc import Iterator

# By library: where its scripts are constants, as module:attribute, and its licence.
_HOLDERS = {
    "kombu": ("kombu.transport.redis", "BSD-3-Clause"),
    "celery": ("celery.backends.redis", "BSD-3-Clause"),
    "redbeat": ("redbeat.schedulers", "Apache-2.0"),
    "redis-py": ("redis.lock:Lock", "MIT"),
}
_OPTIONAL = {"redbeat"}
_CALL = re.compile(r"\bredis\.call\(")
# Scripts of the libraries that only remove, or set a time to expire. As scripts they run on a Redis at its
# memory limit; a function needs a flag for that.
_FREEING = {"SWEEP_BINDINGS", "LUA_EXTEND_TO_SCRIPT", "CHORD_CLEANUP_LUA"}
_FREEING |= {"LUA_RELEASE_SCRIPT", "LUA_EXTEND_SCRIPT", "LUA_REACQUIRE_SCRIPT"}

_LIBRARY = """\
#!lua name={name}
-- {origin}. Written by tools/redis_functions.py.
local function body(KEYS, ARGV)
{script}
end
redis.register_function{{function_name='{name}', callback=body{flags}}}
redis.register_function{{
  function_name='{name}{present}', callback=function() return 1 end, flags={{'no-writes'}}
}}
"""


def libraries() -> dict[str, str]:
    """Return the text of each library, as FUNCTION LOAD takes it, by the name of its script.

    The script of RedBeat is left out where RedBeat is not installed.
    """
    return {name: _library(name, origin, text) for name, origin, text in _scripts()}


def _scripts() -> Iterator[tuple[str, str, str]]:
    """Yield each script: its name, its origin, and its text."""
    for name in scripts.names():
        yield f"fleet.{name}", f"fleet_runtime/broker/scripts/{name}.lua", scripts.text(name)
    for library, (place, licence) in _HOLDERS.items():
        module, _, attribute = place.partition(":")
        try:
            holder = importlib.import_module(module)
        except ModuleNotFoundError:
            if library in _OPTIONAL:
                continue
            raise
        for name, value in vars(getattr(holder, attribute) if attribute else holder).items():
            if isinstance(value, str) and _CALL.search(value):
                yield f"{library}.{name}", f"{library}, {name} ({licence})", value


def _library(name: str, origin: str, text: str) -> str:
    """Return the library of a script."""
    script = text.removeprefix(scripts.ALLOW_OOM)
    is_allowed = script != text or name.rpartition(".")[2] in _FREEING
    return _LIBRARY.format(
        name=functions.PREFIX + functions.sha(text),
        origin=origin,
        script=script.strip("\n"),
        flags=", flags={'allow-oom'}" if is_allowed else "",
        present=functions.PRESENT,
    )
