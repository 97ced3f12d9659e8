# SPDX-License-Identifier: MIT
"""The versions of Celery, kombu, billiard and redis-py that the level `full` supports.

There the runtime replaces functions of these packages. At the level `standard` it replaces none.
"""

from __future__ import annotations

import importlib
import re
from contextlib import suppress

#: The oldest and the newest supported version of each package. The names and hashes of nearly all releases
#: between them were compared with the surface (surface.py). docs/compatibility.md has the combinations with
#: which all tests were run, and what is open with Celery 5.5.
RELEASES = {
    "celery": ("5.5.0", "5.7.0"),
    "kombu": ("5.5.2", "5.7.0"),
    "billiard": ("4.2.1", "4.3.2"),
    "redis": ("5.2.0", "8.1.0"),
}
# With an older one, redis-py cannot tell a notification of Redis from a reply.
OLDEST_HIREDIS = (3, 2)
# How the sentences end that refuse the level `full`.
OR_STANDARD = (
    "or accept Celery's own transport, pool and result backend with celery_app_level: standard "
    "(FLEET_LEVEL=standard)."
)


def supported(package: str) -> str:
    """Return which versions of a package the level `full` supports, as in "kombu 5.5.2 to 5.7.0"."""
    return f"{package} {' to '.join(RELEASES[package])}"


def is_supported(package: str, version: str) -> bool:
    """Return whether a version of a package is a release within the supported range."""
    oldest, newest = map(_numbers, RELEASES[package])
    return bool(re.fullmatch(r"[\d.]+", version)) and oldest <= _numbers(version) <= newest


def is_since(package: str, version: str) -> bool:
    """Return whether the installed version of a package is this one or a later one."""
    return _numbers(importlib.import_module(package).__version__) >= _numbers(version)


def _numbers(version: str) -> tuple[int, ...]:
    """Return the first three numbers of a version, to compare it with another."""
    return tuple(map(int, re.findall(r"\d+", version)[:3]))


def unsupported() -> str:
    """Return which installed versions the level `full` does not support, with the remedy; empty if none."""
    versions = {name: importlib.import_module(name).__version__ for name in RELEASES}
    wrong = {name: supported(name) for name, version in versions.items() if not is_supported(name, version)}
    with suppress(ImportError):  # it is optional
        versions["hiredis"] = importlib.import_module("hiredis").__version__
        if _numbers(versions["hiredis"]) < OLDEST_HIREDIS:
            wrong["hiredis"] = f"hiredis {'.'.join(map(str, OLDEST_HIREDIS))} and later, or none,"
    if not wrong:
        return ""
    installed = " and ".join(f"{name} {versions[name]}" for name in wrong)
    needed = " and ".join(wrong.values())
    return (
        f"This is {installed}, and the level full supports {needed} only: pin one of these in the app's "
        f"lock, {OR_STANDARD}"
    )
