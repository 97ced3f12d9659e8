# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host had before a batch changed it, kept until the host is well with what it has now.

What is kept belongs to the role whose batch it was, in a directory of its own: a batch of one role puts back
nothing of another's. Each path is kept once, as it was at first: what an interrupted run kept is older, and
so better, than what the next run finds. `restore` puts all of it back, `drop` forgets it.

Earlier versions kept all in one directory. What a run of theirs left there is taken for the role whose paths
they are (`legacy_owner`).
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from ansible_collections.fleet.celery.plugins.module_utils.files import copy

if TYPE_CHECKING:
    from collections.abc import Iterable

KEPT = Path("/var/lib/fleet/kept")

# A kept path is a file, or a link, of this name; of one that was not there, an empty file.
WAS, WAS_NOT = "was:", "was-not:"

# Roles that keep something, with what is in their paths and in nobody else's.
OWNERS = {
    "celery_worker": ("/celery-worker@", "/etc/celery/nodes/", "/celery.target", "/logrotate.d/celery"),
    "celery_beat": ("/celery-beat.service",),
    "flower": ("/etc/celery/flower", "/flower.service", "/etc/nginx/", "/nginx.service.d/"),
}


class Kept:
    """What the batches of a role have kept on a host."""

    def __init__(self, owner: str, directory: Path = KEPT) -> None:
        """Take the role, and the directory of all roles, which need not exist."""
        self.owner = owner
        self.root = directory
        self.directory = directory / owner

    def paths(self, prefix: str = "") -> list[Path]:
        """Return the paths that are kept, of those that were there or were not (WAS, WAS_NOT), or of both."""
        kinds = [prefix] if prefix else [WAS, WAS_NOT]
        return sorted(path for kind in kinds for path in self._found(kind))

    def keep(self, path: Path) -> None:
        """Keep a file or a link as it is, or that there is none, unless that was done before."""
        if path in self.paths():
            return
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.directory.mkdir(mode=0o700, exist_ok=True)
        if os.path.lexists(path):
            copy(path, self.directory / _name(WAS, path))
        else:
            (self.directory / _name(WAS_NOT, path)).touch(mode=0o600)

    def restore(self) -> None:
        """Put all back as it was. What was interrupted can be done again."""
        for path, entry in self._found(WAS).items():
            path.parent.mkdir(parents=True, exist_ok=True)
            copy(entry, path)
        for path in self._found(WAS_NOT):
            path.unlink(missing_ok=True)
            if path.parent.suffix == ".d" and path.parent.is_dir() and not any(path.parent.iterdir()):
                path.parent.rmdir()  # by an empty one a unit is taken to be there

    def drop(self) -> None:
        """Forget all of it, and leave no folder behind in which nobody else has anything."""
        for entry in self._legacy():
            entry.unlink()
        if self.directory.is_dir():
            shutil.rmtree(self.directory)
        with suppress(OSError):
            self.root.rmdir()
            self.root.parent.rmdir()

    def target(self, link: Path) -> str:
        """Return where a link that is kept led; nothing if there is none."""
        entry = self._found(WAS).get(link)
        return str(entry.readlink()) if entry and entry.is_symlink() else ""

    def _found(self, kind: str) -> dict[Path, Path]:
        """Return each path that is kept, with its entry; of two that of an earlier version is older."""
        own = self.directory.iterdir() if self.directory.is_dir() else ()
        entries = [*own, *self._legacy()]
        return {_path(entry): entry for entry in entries if entry.name.startswith(kind)}

    def _legacy(self) -> list[Path]:
        """Return the entries that an earlier version has left for this role."""
        found = self.root.iterdir() if self.root.is_dir() else ()
        entries = [entry for entry in found if entry.name.startswith((WAS, WAS_NOT))]
        everyone = [_path(entry) for entry in entries]
        return [entry for entry in entries if legacy_owner(_path(entry), everyone) == self.owner]


def everyones(directory: Path = KEPT) -> list[Kept]:
    """Return what the batches of each role have kept on a host."""
    return [Kept(owner, directory) for owner in OWNERS]


def legacy_owner(path: Path, everyone: Iterable[Path]) -> str:
    """Return the role for which an earlier version has kept a path.

    Args:
        path: The path. What the roles share, as the link `current` and app.env, was kept by the batch that
            came first: of a host with nodes that of the workers.
        everyone: All paths that it has kept.
    """
    for owner, parts in OWNERS.items():
        if any(part in str(path) for part in parts):
            return owner
    for owner, parts in OWNERS.items():
        if any(part in str(other) for other in everyone for part in parts):
            return owner
    return next(iter(OWNERS))


def _name(kind: str, path: Path) -> str:
    """Return the name of the entry of a path."""
    return f"{kind}{quote(str(path), safe='')}"


def _path(entry: Path) -> Path:
    """Return the path of an entry."""
    return Path(unquote(entry.name.removeprefix(WAS).removeprefix(WAS_NOT)))
