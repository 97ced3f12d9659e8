# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Backups of the files and links that a batch changes, until the host is healthy with the new ones.

A backup belongs to the role whose batch made it, in a directory of its own: a batch of one role restores
nothing of another role. Each path is saved once: what an interrupted run saved is older than what the next
run finds, and so it is the state in which the host was healthy. `restore` restores all of it, `drop` removes
it.

Earlier versions saved all roles' paths in one directory. What they left there is taken for the role that the
path belongs to (`legacy_owner`).
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from ansible_collections.fleet.celery.plugins.module_utils.files import copy
from ansible_collections.fleet.celery.plugins.module_utils.paths import CONFIG_DIR, STATE_DIR

if TYPE_CHECKING:
    from collections.abc import Iterable

BACKUPS = Path(STATE_DIR, "kept")

# The prefix of the entry of a path: it existed (the entry is a copy), or it did not (an empty file).
WAS, WAS_NOT = "was:", "was-not:"

# Roles that have backups, with the parts of paths that belong to no other role.
OWNERS = {
    "celery_worker": ("/celery-worker@", f"{CONFIG_DIR}/nodes/", "/celery.target", "/logrotate.d/celery"),
    "celery_beat": ("/celery-beat.service",),
    "flower": (f"{CONFIG_DIR}/flower", "/flower.service", "/etc/nginx/", "/nginx.service.d/"),
}


class Backup:
    """The backup of a role on a host."""

    def __init__(self, owner: str, directory: Path = BACKUPS) -> None:
        """Take the role, and the directory of all roles, which need not exist."""
        self.owner = owner
        self.root = directory
        self.directory = directory / owner

    def paths(self, prefix: str = "") -> list[Path]:
        """Return the saved paths: those that existed (WAS), those that did not (WAS_NOT), or both."""
        kinds = [prefix] if prefix else [WAS, WAS_NOT]
        return sorted(path for kind in kinds for path in self._found(kind))

    def save(self, path: Path) -> None:
        """Save a file or a link, or the fact that there is none, unless the path is saved already."""
        if path in self.paths():
            return
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.directory.mkdir(mode=0o700, exist_ok=True)
        if os.path.lexists(path):
            copy(path, self.directory / _name(WAS, path))
        else:
            (self.directory / _name(WAS_NOT, path)).touch(mode=0o600)

    def restore(self) -> None:
        """Restore all saved paths. An interrupted call can be repeated."""
        for path, entry in self._found(WAS).items():
            path.parent.mkdir(parents=True, exist_ok=True)
            copy(entry, path)
        for path in self._found(WAS_NOT):
            path.unlink(missing_ok=True)
            if path.parent.suffix == ".d" and path.parent.is_dir() and not any(path.parent.iterdir()):
                path.parent.rmdir()  # by an empty one a unit is taken to be there

    def drop(self) -> None:
        """Remove the backup, and the directories that are empty then."""
        for entry in self._legacy():
            entry.unlink()
        if self.directory.is_dir():
            shutil.rmtree(self.directory)
        with suppress(OSError):
            self.root.rmdir()
            self.root.parent.rmdir()

    def target(self, link: Path) -> str:
        """Return the target of a saved link; an empty string if no such link is saved."""
        entry = self._found(WAS).get(link)
        return str(entry.readlink()) if entry and entry.is_symlink() else ""

    def _found(self, kind: str) -> dict[Path, Path]:
        """Return each saved path with its entry; of two entries that of an earlier version is older."""
        own = self.directory.iterdir() if self.directory.is_dir() else ()
        entries = [*own, *self._legacy()]
        return {_path(entry): entry for entry in entries if entry.name.startswith(kind)}

    def _legacy(self) -> list[Path]:
        """Return the entries of this role that an earlier version has left."""
        found = self.root.iterdir() if self.root.is_dir() else ()
        entries = [entry for entry in found if entry.name.startswith((WAS, WAS_NOT))]
        everyone = [_path(entry) for entry in entries]
        return [entry for entry in entries if legacy_owner(_path(entry), everyone) == self.owner]


def all_backups(directory: Path = BACKUPS) -> list[Backup]:
    """Return the backup of each role on a host."""
    return [Backup(owner, directory) for owner in OWNERS]


def legacy_owner(path: Path, everyone: Iterable[Path]) -> str:
    """Return the role for which an earlier version has saved a path.

    Args:
        path: The path. A path that roles share, such as the link `current`, was saved by the batch that came
            first: on a host with nodes that is the batch of the workers.
        everyone: All paths that it has saved.
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
