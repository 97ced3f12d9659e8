# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Packages that an app takes from beside it: members of its uv workspace, and directories.

`[tool.uv.sources]` of a pyproject.toml names them, with `{ workspace = true }` or `{ path = "../core" }`. No
index has them, so a release carries their wheels beside the app's.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ansible_collections.fleet.celery.plugins.module_utils.app_release_source import (
    Directory,
    ReleaseError,
    is_package,
    is_static,
    read_project,
)

with contextlib.suppress(ImportError):  # PACKAGING_ERROR of app_release_source has it
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path
    from typing import Any

FAILURE = "The app cannot be resolved"


@dataclass
class Siblings:
    """What an app takes from beside it, directly or not.

    Attributes:
        places: The directories by the names of the packages.
        required: What the app and these require of an index.
    """

    places: dict[str, Path] = field(default_factory=dict)
    required: list[str] = field(default_factory=list)


def find(project: Path, extras: Iterable[str] = ()) -> Siblings:
    """Return what a project takes from beside it.

    Args:
        project: The project.
        extras: Extras of it that are asked for.

    Raises:
        ReleaseError: One is not there, is no package, or does not say what it requires.
    """
    found = Siblings()
    todo: list[tuple[Path, frozenset[str]]] = [(project, frozenset(extras))]
    seen = set()
    while todo:
        place, wanted = todo.pop()
        if (place, wanted) in seen:
            continue
        seen.add((place, wanted))
        table = read_project(place, FAILURE)
        origins = sources(place, table)
        if not origins:
            found.required += required(table.get("project", {}), wanted)
            continue
        if not is_static(table):
            raise ReleaseError(
                f"{place.name} takes packages from beside it, so its dependencies must be static."
            )
        for text in required(table["project"], wanted):
            requirement = Requirement(text)
            name = canonicalize_name(requirement.name)
            if name not in origins:
                found.required.append(text)
                continue
            sibling = origins[name]
            if not is_package(sibling) or not is_static(read_project(sibling, FAILURE)):
                raise ReleaseError(
                    f"{table['project']['name']} takes {name} from {sibling}, which is not a package whose "
                    "pyproject.toml says what it requires."
                )
            found.places[name] = sibling
            todo.append((sibling, frozenset(requirement.extras)))
    return found


def complete(source: Directory, extras: Iterable[str]) -> Directory:
    """Return a directory of the controller with what it takes from beside it."""
    path = source.path.resolve()
    try:
        static = is_static(read_project(path, FAILURE))
    except ReleaseError:  # whoever resolves it tells
        return source
    places = [*find(path, extras).places.values()] if static else []
    root = workspace(path)
    if root and root != path:
        places += [file for name in ("pyproject.toml", "uv.lock") if (file := root / name).is_file()]
    return replace(source, path=path, beside=tuple(sorted(places))) if places else source


def workspace(project: Path) -> Path | None:
    """Return the root of the uv workspace that a project is in, or None."""
    for path in (project, *project.parents):
        if "workspace" in read_project(path, FAILURE).get("tool", {}).get("uv", {}):
            return path
    return None


def sources(project: Path, table: Mapping[str, Any]) -> dict[str, Path]:
    """Return the directories of packages that a project takes from beside it, by their names.

    Raises:
        ReleaseError: The workspace has no such member, or there is no such directory.
    """
    root = workspace(project)
    tables = [(project, table)]
    if root and root != project:  # members inherit the sources of the root
        tables.insert(0, (root, read_project(root, FAILURE)))
    own = table.get("project", {}).get("name", project.name)
    found: dict[str, Path] = {}
    for place, one in tables:
        for name, said in one.get("tool", {}).get("uv", {}).get("sources", {}).items():
            for origin in said if isinstance(said, list) else [said]:
                if origin.get("workspace"):
                    found[canonicalize_name(name)] = _member(root, name, own)
                elif "path" in origin:
                    sibling = (place / origin["path"]).resolve()
                    if not sibling.is_dir():
                        raise ReleaseError(f"{own} takes {name} from {sibling}, which is no directory.")
                    found[canonicalize_name(name)] = sibling
    return found


def required(project: Mapping[str, Any], extras: Iterable[str]) -> Iterator[str]:
    """Yield what a project requires, with some of its extras, of which one may be a list of others."""
    yield from project.get("dependencies", ())
    known = {
        canonicalize_name(name): texts for name, texts in project.get("optional-dependencies", {}).items()
    }
    for extra in extras:
        for text in known.get(canonicalize_name(extra), ()):
            wanted = Requirement(text)
            if canonicalize_name(wanted.name) == canonicalize_name(project["name"]):
                yield from required({**project, "dependencies": ()}, sorted(wanted.extras))
            else:
                yield text


def _member(root: Path | None, name: str, asked_by: str) -> Path:
    """Return the directory of a member of a workspace."""
    table = read_project(root, FAILURE).get("tool", {}).get("uv", {})["workspace"] if root else {}
    for pattern in table.get("members", ()) if root else ():
        for path in sorted(root.glob(pattern)) if root else ():
            own = read_project(path, FAILURE).get("project", {})
            if canonicalize_name(own.get("name", "-")) == canonicalize_name(name):
                return path.resolve()
    raise ReleaseError(f"{asked_by} takes {name} from its uv workspace, which has no such member.")
