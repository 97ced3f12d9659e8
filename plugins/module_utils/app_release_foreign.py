# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the locks of Poetry and of Pipenv pin for an app's run time, as lines of a requirements file.

Both are read as they are: neither tool is needed, and nothing is resolved.
"""

from __future__ import annotations

import contextlib
import json
import tomllib
from typing import TYPE_CHECKING

from ansible_collections.fleet.celery.plugins.module_utils.app_release_source import ReleaseError

with contextlib.suppress(ImportError):  # PACKAGING_ERROR of app_release_source has it
    from packaging.markers import Marker
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping
    from typing import Any

LINUX = {
    "os_name": "posix", "platform_system": "Linux", "sys_platform": "linux",
    "implementation_name": "cpython", "platform_python_implementation": "CPython",
}  # fmt: skip
PYTHONS = [f"3.{minor}" for minor in range(11, 20)]  # where those of the hosts are not known
Line = tuple[str, list[str]]  # a requirement, and its hashes
Edge = tuple[str, tuple[str, ...], str]  # a package, extras of it, and the marker under which it is needed


def pipenv(text: str, origin: str) -> Iterator[Line]:
    """Yield what a Pipfile.lock pins, but for its development packages.

    Raises:
        ReleaseError: It is none, or has something that no index has.
    """
    try:
        packages: Mapping[str, Mapping[str, Any]] = json.loads(text)["default"]
    except (ValueError, KeyError, TypeError) as error:
        raise ReleaseError(f"{origin} is no lock of Pipenv: {error}") from error
    for name, package in packages.items():
        if package.get("path") == ".":  # the app itself
            continue
        _require_index(name, package.get("version"), origin)
        marker = f" ; {package['markers']}" if package.get("markers") else ""
        yield f"{name}{package['version']}{marker}", list(package.get("hashes", ()))


def poetry(
    text: str, origin: str, project: Mapping[str, Any], extras: Iterable[str], pythons: Iterable[str]
) -> Iterator[Line]:
    """Yield what a poetry.lock pins for the main group, with some of the app's extras.

    From version 2 on, Poetry writes into the lock which package belongs to which group. For an older lock the
    dependencies are followed from those of the app.

    Args:
        text: The lock.
        origin: Its name, for messages.
        project: The app's pyproject.toml.
        extras: The app's extras.
        pythons: The versions of Python on the hosts, as far as they are known.

    Raises:
        ReleaseError: It is none, or has something that no index has.
    """
    try:
        lock = tomllib.loads(text)
        packages: list[dict[str, Any]] = lock["package"]
    except (tomllib.TOMLDecodeError, KeyError) as error:
        raise ReleaseError(f"{origin} is no lock of Poetry: {error}") from error
    chosen = [canonicalize_name(extra) for extra in extras]
    known = list(pythons) or PYTHONS
    if any("groups" in package for package in packages):
        main = [package["name"] for package in packages if "main" in package.get("groups", ())]
        wanted = {str(canonicalize_name(name)) for name in main}
    else:
        wanted = _reached(packages, _direct(project, chosen), known)
    for package in packages:
        name = canonicalize_name(package["name"])
        said = package.get("markers", "")
        marker = said.get("main", "") if isinstance(said, dict) else said
        if name not in wanted or not _holds(marker, known, chosen):
            continue
        source = package.get("source", {}).get("type", "legacy")
        _require_index(name, package.get("version") if source == "legacy" else None, origin)
        files = package.get("files") or lock.get("metadata", {}).get("files", {}).get(package["name"], ())
        kept = f" ; {marker}" if marker and "extra" not in marker else ""
        yield f"{name}=={package['version']}{kept}", sorted({file["hash"] for file in files})


def _direct(
    project: Mapping[str, Any], extras: Collection[str]
) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """Yield what the app itself depends on: name, extras of that, marker."""
    own = project.get("project", {})
    texts = list(own.get("dependencies", ()))
    for extra, more in own.get("optional-dependencies", {}).items():
        texts += more if canonicalize_name(extra) in extras else ()
    for text in texts:
        wanted = Requirement(text)
        yield canonicalize_name(wanted.name), tuple(wanted.extras), str(wanted.marker or "")
    table = project.get("tool", {}).get("poetry", {})
    optional = {
        canonicalize_name(name)
        for extra, names in table.get("extras", {}).items()
        if canonicalize_name(extra) in extras
        for name in names
    }
    for name, said in table.get("dependencies", {}).items():
        for one in said if isinstance(said, list) else [said]:
            about = one if isinstance(one, dict) else {}
            key = canonicalize_name(name)
            if key != "python" and (key in optional or not about.get("optional")):
                yield key, tuple(about.get("extras", ())), about.get("markers", "")


def _reached(
    packages: Iterable[Mapping[str, Any]],
    start: Iterable[Edge],
    pythons: list[str],
) -> set[str]:
    """Return the names of all packages that the app's dependencies lead to, on Linux."""
    known: dict[str, list[Mapping[str, Any]]] = {}
    for package in packages:
        known.setdefault(canonicalize_name(package["name"]), []).append(package)
    todo = [(name, extras) for name, extras, marker in start if _holds(marker, pythons, [])]
    seen: set[tuple[str, tuple[str, ...]]] = set()
    while todo:
        one = todo.pop()
        if one in seen:
            continue
        seen.add(one)
        for package in known.get(one[0], ()):
            optional = {
                canonicalize_name(Requirement(text.split(" (")[0]).name)
                for extra in one[1]
                for text in package.get("extras", {}).get(extra, ())
            }
            for name, said in package.get("dependencies", {}).items():
                for edge in said if isinstance(said, list) else [said]:
                    about = edge if isinstance(edge, dict) else {}
                    key = canonicalize_name(name)
                    if about.get("optional") and key not in optional:
                        continue
                    marker = about.get("markers", "")
                    if _holds(marker, pythons, list(one[1])):
                        todo.append((key, tuple(about.get("extras", ()))))
    return {name for name, _unused in seen}


def _holds(marker: str, pythons: Iterable[str], extras: Iterable[str]) -> bool:
    """Return whether a marker holds on Linux, with one of the Pythons, and with one of the extras or none."""
    if not marker:
        return True
    parsed = Marker(marker)
    return any(
        parsed.evaluate({
            **LINUX, "python_version": python, "python_full_version": f"{python}.{patch}", "extra": extra
        })
        for python in pythons
        for patch in (0, 99)
        for extra in ("", *extras)
    )  # fmt: skip


def _require_index(name: str, version: str | None, origin: str) -> None:
    """Refuse a package from git or from a path."""
    if not version:
        raise ReleaseError(
            f"{origin} takes {name} from git or from a path, so it has no hash of it. Publish {name} to "
            "your index, or let the app contain it."
        )
