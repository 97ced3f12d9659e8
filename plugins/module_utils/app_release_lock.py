# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Complete sets of dependencies, each pinned and with its hashes: read, merged, written.

A lock is a requirements file with hashes, a `pylock.toml` (PEP 751), a `poetry.lock`, a `Pipfile.lock`, or,
through `uv export`, a `uv.lock`.
"""

from __future__ import annotations

import contextlib
import re
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ansible_collections.fleet.celery.plugins.module_utils import app_release_foreign
from ansible_collections.fleet.celery.plugins.module_utils.app_release_source import (
    LOCK_NAMES,
    ReleaseError,
    read_project,
)

with contextlib.suppress(ImportError):  # PACKAGING_ERROR of app_release_source has it
    from packaging.markers import InvalidMarker, Marker
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import canonicalize_name

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

HASH = re.compile(r"--hash[= ](\S+)")
COMMENT = re.compile(r"(^|\s)#.*$")
# Other files and editable trees; the options that are left name indexes, which are the fleet's business.
REFUSED_OPTIONS = ("-r", "--requirement", "-c", "--constraint", "-e", "--editable")


@dataclass(frozen=True, order=True)
class Locked:
    """One line of a lock: a package at a version, for the platforms that its marker names."""

    name: str
    pin: str
    marker: str
    hashes: tuple[str, ...]

    def __str__(self) -> str:
        """Return the line of a requirements file, its hashes on lines of their own."""
        first = f"{self.name}{self.pin}" + (f" ; {self.marker}" if self.marker else "")
        return " \\\n    ".join([first, *(f"--hash={value}" for value in self.hashes)])


def find_lock(project: Path) -> Path | None:
    """Return the lock that an app ships, if any.

    A requirements.txt without hashes is no lock: many apps keep one for their developers.
    """
    for name in LOCK_NAMES:
        path = project / name
        if path.is_file() and (name != "requirements.txt" or is_lock(path)):
            return path
    return None


def is_lock(path: Path) -> bool:
    """Return whether a file pins packages with hashes, by its name or because it has one."""
    others = {*LOCK_NAMES} - {"requirements.lock", "requirements.txt"}
    return path.name in others or path.suffix == ".toml" or b"--hash" in path.read_bytes()


def read_lock(path: Path, extras: Iterable[str] = (), pythons: Iterable[str] = ()) -> list[Locked]:
    """Return the lines of a lock, sorted.

    Args:
        path: A requirements file with hashes, a pylock.toml, a poetry.lock or a Pipfile.lock.
        extras: Extras of the app, which a poetry.lock tells apart.
        pythons: The versions of Python on the hosts, as far as they are known.

    Raises:
        ReleaseError: It is not complete, not pinned, or has no hashes.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ReleaseError(f"The lock {path} cannot be read: {error}") from error
    match path.name:
        case "poetry.lock":
            project = read_project(path.parent, "poetry.lock cannot be read")
            return _hashed(app_release_foreign.poetry(text, path.name, project, extras, pythons), path.name)
        case "Pipfile.lock":
            return _hashed(app_release_foreign.pipenv(text, path.name), path.name)
        case name:
            return parse_pylock(text, name) if path.suffix == ".toml" else parse_requirements(text, name)


def fits(app: Iterable[Locked], runtime: Iterable[Locked]) -> bool:
    """Return whether an app's lock and the runtime's can be merged without resolving anything.

    So it is if the app pins all that the runtime needs, or the same version of all that both have: each lock
    was resolved as a whole.
    """
    theirs = {(line.name, line.pin) for line in app}
    names = {name for name, _unused in theirs}
    ours = {(line.name, line.pin) for line in runtime}
    return {name for name, _unused in ours} <= names or all(one in theirs for one in ours if one[0] in names)


def parse_requirements(text: str, origin: str) -> list[Locked]:
    """Return the lines of a requirements file with hashes, sorted.

    Args:
        text: The contents of the file.
        origin: Its name, for messages.
    """
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        words = COMMENT.sub("", line).strip()
        if words.startswith(REFUSED_OPTIONS):
            raise ReleaseError(f"{origin} refers to something outside itself, so it is no lock: {words}")
        if not words or words.startswith("-"):
            continue
        found.append((HASH.sub("", words).strip(), HASH.findall(words)))
    return _hashed(found, origin)


def _hashed(found: Iterable[tuple[str, list[str]]], origin: str) -> list[Locked]:
    """Return lines of a lock, sorted; each must have a hash.

    Args:
        found: Requirements, and the hashes of each.
        origin: Name of the lock, for messages.
    """
    result = [_locked(requirement, hashes, origin) for requirement, hashes in found]
    if unhashed := [f"{line.name}{line.pin}" for line in result if not line.hashes]:
        raise ReleaseError(
            f"{origin} has no hash for {', '.join(unhashed)}. `uv pip compile --generate-hashes` makes a "
            "lock that has them, but only for what comes from an index, not from git or from a path."
        )
    return sorted(result)


def parse_pylock(text: str, origin: str) -> list[Locked]:
    """Return the packages of a pylock.toml, sorted."""
    try:
        packages: list[dict[str, Any]] = tomllib.loads(text)["packages"]
    except (tomllib.TOMLDecodeError, KeyError) as error:
        raise ReleaseError(f"{origin} is not a lock of PEP 751: {error}") from error
    result = []
    for package in packages:
        name, marker = package["name"], package.get("marker", "")
        if "extras" in marker or "dependency_groups" in marker:
            raise ReleaseError(f"{origin} picks {name} by extra or group. Lock only what the app runs with.")
        files = [*package.get("wheels", ()), *filter(None, [package.get("sdist"), package.get("archive")])]
        hashes = sorted(f"{kind}:{value}" for file in files for kind, value in file.get("hashes", {}).items())
        if not hashes:
            raise ReleaseError(f"{origin} has no hash for {name}, which must come from an index.")
        archive = package.get("archive", {}).get("url")
        pin = f" @ {archive}" if archive else f"=={package.get('version')}"
        result.append(_locked(f"{name}{pin}" + (f" ; {marker}" if marker else ""), hashes, origin))
    return sorted(result)


def merge(app: Iterable[Locked], runtime: Iterable[Locked]) -> list[Locked]:
    """Return the app's lock, completed with the packages that only the runtime needs.

    Where both have a package, the app's version and hashes win. A marker that restricts the app's line is
    widened by the runtime's, which may need the package where the app does not. Whether the two fit
    together is for the installer to say: it resolves the whole set on each host.
    """
    theirs: dict[str, list[Locked]] = {}
    for line in app:
        theirs.setdefault(line.name, []).append(line)
    ours: dict[str, list[Locked]] = {}
    for line in runtime:
        ours.setdefault(line.name, []).append(line)
    for name, lines in ours.items():
        present = theirs.setdefault(name, [])
        if not present:
            present += lines
        elif len(present) == 1:  # several lines are a version for every platform
            present[0] = replace(present[0], marker=_either([present[0], *lines]))
    return sorted(line for lines in theirs.values() for line in lines)


def render(lines: Iterable[Locked]) -> str:
    """Return the text of a requirements file with hashes."""
    return "".join(f"{line}\n" for line in lines)


def _locked(requirement: str, hashes: list[str], origin: str) -> Locked:
    """Return a line of a lock, refused unless it names one version or one file."""
    try:
        parsed = Requirement(requirement)
    except (InvalidRequirement, InvalidMarker) as error:
        raise ReleaseError(f"{origin} has a line that is no requirement: {requirement}") from error
    pin = f" @ {parsed.url}" if parsed.url else str(parsed.specifier)
    if not parsed.url and (not pin.startswith("==") or "," in pin or "*" in pin):
        raise ReleaseError(f"{origin} does not pin {parsed.name} to one version: {requirement}")
    return Locked(canonicalize_name(parsed.name), pin, str(parsed.marker or ""), tuple(hashes))


def _either(lines: Iterable[Locked]) -> str:
    """Return the marker that holds where one of the lines' does; a line without one holds everywhere."""
    markers = list(dict.fromkeys(line.marker for line in lines))
    if "" in markers:
        return ""
    return str(Marker(" or ".join(f"({marker})" for marker in markers)))
