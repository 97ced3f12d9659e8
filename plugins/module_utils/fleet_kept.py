"""What a host had before a batch changed it, kept until the host is well with what it has now.

Each path is kept once, as it was at first: what an interrupted run kept is older, and so better, than what
the next run finds. `restore` puts all of it back, `drop` forgets it.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote, unquote

KEPT = Path("/var/lib/fleet/kept")

# A kept path is a file, or a link, of this name; of one that was not there, an empty file.
WAS, WAS_NOT = "was:", "was-not:"


class Kept:
    """What is kept on a host."""

    def __init__(self, directory: Path = KEPT) -> None:
        """Take the directory, which need not exist."""
        self.directory = directory

    def paths(self, prefix: str = "") -> list[Path]:
        """Return the paths that are kept, of those that were there or were not (WAS, WAS_NOT), or of both."""
        names = [entry.name for entry in self.directory.iterdir()] if self.directory.is_dir() else []
        kinds = [prefix] if prefix else [WAS, WAS_NOT]
        return sorted(
            Path(unquote(name.removeprefix(kind)))
            for name in names
            for kind in kinds
            if name.startswith(kind)
        )

    def keep(self, path: Path) -> None:
        """Keep a file or a link as it is, or that there is none, unless that was done before."""
        was, was_not = self._entry(WAS, path), self._entry(WAS_NOT, path)
        if os.path.lexists(was) or was_not.exists():
            return
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.path.lexists(path):
            _copy(path, was)
        else:
            was_not.touch(mode=0o600)

    def restore(self) -> None:
        """Put all back as it was. What was interrupted can be done again."""
        for path in self.paths(WAS):
            path.parent.mkdir(parents=True, exist_ok=True)
            _copy(self._entry(WAS, path), path)
        for path in self.paths(WAS_NOT):
            path.unlink(missing_ok=True)
            if path.parent.suffix == ".d" and path.parent.is_dir() and not any(path.parent.iterdir()):
                path.parent.rmdir()  # by an empty one a unit is taken to be there

    def drop(self) -> None:
        """Forget all of it, and leave no folder behind in which nobody else has anything."""
        if self.directory.is_dir():
            shutil.rmtree(self.directory)
        with suppress(OSError):
            self.directory.parent.rmdir()

    def target(self, link: Path) -> str:
        """Return where a link that is kept led; nothing if there is none."""
        entry = self._entry(WAS, link)
        return str(entry.readlink()) if entry.is_symlink() else ""

    def _entry(self, kind: str, path: Path) -> Path:
        """Return where a path is kept."""
        return self.directory / f"{kind}{quote(str(path), safe='')}"


def _copy(source: Path, target: Path) -> None:
    """Copy a file or a link with its owner and mode, in one step: nobody sees it half written, or wider."""
    new = target.with_name(f".{target.name}.kept")
    new.unlink(missing_ok=True)
    status = source.lstat()
    if source.is_symlink():
        new.symlink_to(source.readlink())
    else:
        # Nobody else may read it, not even while it is written.
        handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with source.open("rb") as given, os.fdopen(handle, "wb") as copy:
            shutil.copyfileobj(given, copy)
            copy.flush()
            os.fchown(copy.fileno(), status.st_uid, status.st_gid)
            os.fchmod(copy.fileno(), status.st_mode & 0o7777)
            os.fsync(copy.fileno())
    new.replace(target)
