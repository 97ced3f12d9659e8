# SPDX-License-Identifier: MIT
"""The versions of Celery, kombu, billiard and redis-py that the level `full` supports.

There the runtime replaces functions of these packages. At the level `standard` it replaces none.
"""

from __future__ import annotations

import importlib

RELEASES = {
    "celery": frozenset({"5.7.0"}),
    "kombu": frozenset({"5.7.0"}),
    "billiard": frozenset({"4.3.2"}),
    "redis": frozenset({"8.1.0"}),
}
# How the sentences end that refuse the level `full`.
OR_STANDARD = (
    "or accept Celery's own transport, pool and result backend with celery_app_level: standard "
    "(FLEET_LEVEL=standard)."
)


def unsupported() -> str:
    """Return which installed versions the level `full` does not support, with the remedy; empty if none."""
    versions = {name: importlib.import_module(name).__version__ for name in RELEASES}
    wrong = [name for name, version in versions.items() if version not in RELEASES[name]]
    if not wrong:
        return ""
    installed = " and ".join(f"{name} {versions[name]}" for name in wrong)
    supported = " and ".join(f"{name} {' or '.join(sorted(RELEASES[name]))}" for name in wrong)
    return (
        f"This is {installed}, and the level full supports {supported} only: pin {supported} in the app's "
        f"lock, {OR_STANDARD}"
    )
