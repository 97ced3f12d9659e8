#!/usr/bin/env python3
"""Write each script that the fleet's processes run on Redis as a library of functions, for the role redis.

Usage: tools/redis_functions.py [--check]     --check: write nothing, and fail if a file is not up to date.

A library has one function, named by the SHA-1 of the script, as fleet_runtime.broker.functions calls it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import celery.backends.redis
import kombu.transport.redis
import redbeat.schedulers
import redis.lock
from fleet_runtime.broker import functions, scripts

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER = Path(__file__).resolve().parents[1] / "roles" / "redis" / "files" / "functions"
LIBRARIES = {
    "kombu": (kombu.transport.redis, "BSD-3-Clause"),
    "celery": (celery.backends.redis, "BSD-3-Clause"),
    "redbeat": (redbeat.schedulers, "Apache-2.0"),
    "redis-py": (redis.lock.Lock, "MIT"),
}
CALL = "redis.call("
# Those of the libraries that only take away, or set when something ends. As scripts they run on a Redis at
# its memory limit; a function needs to say so.
FREEING = {"SWEEP_BINDINGS", "LUA_EXTEND_TO_SCRIPT", "CHORD_CLEANUP_LUA"}
FREEING |= {"LUA_RELEASE_SCRIPT", "LUA_EXTEND_SCRIPT", "LUA_REACQUIRE_SCRIPT"}

LIBRARY = """\
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


def found() -> Iterator[tuple[str, str, str]]:
    """Yield each script: its name, its origin, and its text."""
    for name in scripts.names():
        yield f"fleet.{name}", f"fleet_runtime/broker/scripts/{name}.lua", scripts.text(name)
    for library, (holder, licence) in LIBRARIES.items():
        for name, value in vars(holder).items():
            if isinstance(value, str) and CALL in value:
                yield f"{library}.{name}", f"{library}, {name} ({licence})", value


def library(name: str, origin: str, text: str) -> str:
    """Return the library of a script, as Redis loads it."""
    script = text.removeprefix(scripts.ALLOW_OOM)
    allowed = script != text or name.rpartition(".")[2] in FREEING
    return LIBRARY.format(
        name=functions.PREFIX + functions.sha(text),
        origin=origin,
        script=script.strip("\n"),
        flags=", flags={'allow-oom'}" if allowed else "",
        present=functions.PRESENT,
    )


def files() -> dict[str, str]:
    """Return the name and the text of each file."""
    return {f"{name}.lua": library(name, origin, text) for name, origin, text in found()}


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
