# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A copy of a Redis's append-only files that can be put back, and how many of them are kept.

Redis 7 keeps a manifest, a base (everything, as of the last rewrite) and what was appended since. The base
never changes, so a hard link is a copy of it, which takes no time and no room. The rest is copied.
"""

from __future__ import annotations

import os
import shlex
import shutil
import stat
import subprocess
from pathlib import Path

PARTIAL = ".partial"  # the end of the name of a snapshot that is being made
TRIES = 5  # a rewrite of Redis's own may replace the files meanwhile
BASE, HISTORY = "b", "h"  # types of files in the manifest


class SnapshotError(Exception):
    """There is no snapshot; the message says why."""


def parse_manifest(text: str) -> list[tuple[str, str]]:
    """Return the name and the type of each file that a manifest names, but of those that Redis deletes.

    >>> parse_manifest("file a.1.base.rdb seq 1 type b")
    [('a.1.base.rdb', 'b')]
    """
    found = []
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        fields = dict(zip(words[::2], words[1::2], strict=False))
        if fields and fields["type"] != HISTORY:
            name = fields["file"]
            if Path(name).name != name:
                raise SnapshotError(f"the manifest names {name!r}, which is no plain name of a file")
            found.append((name, fields["type"]))
    return found


def take(source: Path, manifest: str, target: Path) -> None:
    """Copy the append-only files to a directory that appears when all is in it.

    Args:
        source: Redis's directory of append-only files.
        manifest: Name of their manifest.
        target: A directory that does not exist yet, below one that only root may enter.

    Raises:
        SnapshotError: It could not be done.
    """
    partial = target.with_name(f".{target.name}{PARTIAL}")
    for _attempt in range(TRIES):
        shutil.rmtree(partial, ignore_errors=True)
        inner = partial / source.name
        partial.mkdir(mode=0o700, parents=True)
        # Redis's user has to read what is in it: see `check`. The directory around it is root's.
        inner.mkdir(mode=0o755)
        inner.chmod(0o755)
        try:
            if _copy_all(source, manifest, inner):
                partial.rename(target)
                _sync(target.parent)
                return
        except FileNotFoundError:  # replaced by a rewrite
            continue
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise SnapshotError(f"{source} cannot be copied to {target}: {error}") from None
    shutil.rmtree(partial, ignore_errors=True)
    raise SnapshotError(f"{source} was rewritten again and again while it was copied")


def _copy_all(source: Path, manifest: str, inner: Path) -> bool:
    """Copy the manifest, and what it names; return whether it was the same at the end."""
    before = _read(source / manifest)
    for name, kind in parse_manifest(before):
        if not (kind == BASE and _link(source / name, inner / name)):
            _copy(source / name, inner / name)
    _copy(source / manifest, inner / manifest)
    _sync(inner)
    return _read(inner / manifest) == before == _read(source / manifest)


def _link(source: Path, target: Path) -> bool:
    """Link a file; return whether that was possible: not from one file system to another."""
    try:
        os.link(source, target, follow_symlinks=False)
    except FileNotFoundError:
        raise
    except OSError:
        return False
    if not stat.S_ISREG(target.lstat().st_mode):
        raise SnapshotError(f"{source} is no file")
    return True


def _open(path: Path) -> int:
    """Open a file, and nothing that only leads to one: Redis's user owns the directory, and root reads it."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise SnapshotError(f"{path} is no file")
    return handle


def _read(path: Path) -> str:
    """Return the text of a file of Redis's."""
    with os.fdopen(_open(path)) as file:
        return file.read()


def _copy(source: Path, target: Path) -> None:
    """Copy a file as it is, for its owner alone, onto the disk."""
    with os.fdopen(_open(source), "rb") as old, target.open("xb") as new:
        status = os.fstat(old.fileno())
        os.fchmod(new.fileno(), 0o600)
        os.fchown(new.fileno(), status.st_uid, status.st_gid)
        shutil.copyfileobj(old, new)
        new.flush()
        os.fsync(new.fileno())


def _sync(directory: Path) -> None:
    """Have the names in a directory on the disk."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check(files: Path, manifest: str) -> None:
    """Have the redis-check-aof that is installed read a snapshot's files.

    Args:
        files: The directory that they are in.
        manifest: Name of their manifest.

    Raises:
        SnapshotError: It cannot read them.
    """
    argv = ["redis-check-aof", manifest]
    owner = (files / manifest).stat()
    if os.geteuid() == 0:  # what is in them came from clients, and root need not read that
        argv = ["setpriv", f"--reuid={owner.st_uid}", f"--regid={owner.st_gid}", "--clear-groups", *argv]
    # In the directory, since that user cannot come to it by its path.
    done = subprocess.run(
        argv, cwd=files, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-5:])
        raise SnapshotError(f"redis-check-aof cannot read {files}:\n{said}")


def snapshots(directory: Path) -> list[Path]:
    """Return the snapshots that are whole, the oldest first."""
    return sorted(path for path in directory.glob("[0-9]*") if path.is_dir())


def prune(directory: Path, keep: int) -> list[Path]:
    """Remove all snapshots but the newest, and what was never finished; return what was removed."""
    gone = snapshots(directory)[:-keep] + sorted(directory.glob(f".*{PARTIAL}"))
    for path in gone:
        shutil.rmtree(path)
    return gone
