# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Replace files and links in one step: a reader finds the old content or the new one, and never a part.

AnsibleModule.atomic_move does not fit: it does not wait for the disk, takes over the mode of the file before,
and needs a module, which neither actions nor the builder of releases have.
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path


def replace_file(
    path: Path, content: str | bytes, *, mode: int = 0o600, uid: int | None = None, gid: int | None = None
) -> None:
    """Put a file in place, on the disk. It has its owner and mode before it has its name.

    A symbolic link at the path is replaced, not followed. If this fails, the file is as it was.

    Args:
        path: Where to put it; its directory exists.
        content: What is in it.
        mode: Its permission bits.
        uid: Its owner; the user of this process if it is None.
        gid: Its group; that of this process if it is None.
    """
    data = content.encode() if isinstance(content, str) else content
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            if uid is not None or gid is not None:
                os.fchown(handle, -1 if uid is None else uid, -1 if gid is None else gid)
            os.fchmod(handle, mode)
            os.fsync(handle)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def replace_link(path: Path, target: str | Path) -> None:
    """Let a path be a symbolic link to a target."""
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    new.symlink_to(target)
    new.replace(path)


def copy(source: Path, target: Path) -> None:
    """Copy a file with its owner and mode, or a symbolic link as it is."""
    status = source.lstat()
    if stat.S_ISLNK(status.st_mode):
        replace_link(target, source.readlink())
    else:
        mode = stat.S_IMODE(status.st_mode)
        replace_file(target, source.read_bytes(), mode=mode, uid=status.st_uid, gid=status.st_gid)
