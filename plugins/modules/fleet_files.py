#!/usr/bin/python
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write a set of small text files, and remove those of the set that are no longer in it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: fleet_files
short_description: Write a set of small text files in one call
version_added: 0.1.0
description:
  - Makes directories and text files with exactly the given content, owner and mode, and removes the files
    that a glob of I(purge) finds and I(files) does not name.
  - A role whose units, drop-ins and environment files follow from the inventory needs one task for all of
    them, not one round trip for each.
  - A file is replaced in one step. It is never seen half written, nor with a wider mode than it shall have.
  - If a file below C(/etc/systemd/system) changes, systemd reads its units again.
  - In check mode an owner or a group that the host does not have yet is taken as one that a task before this
    one would have made.
options:
  directories:
    description: Directories, made in this order. A parent is not made unless it is named too.
    type: list
    elements: dict
    default: []
    suboptions:
      path: {description: Absolute path., type: path, required: true}
      mode: {description: Octal mode as a string., type: str, default: "0755"}
      owner: {description: Name of the owner., type: str, default: root}
      group: {description: Name of the group., type: str, default: root}
  files:
    description: Files. Their directory must exist, or be one of I(directories).
    type: list
    elements: dict
    default: []
    suboptions:
      path: {description: Absolute path., type: path, required: true}
      content: {description: The whole text of the file., type: str, required: true}
      mode: {description: Octal mode as a string., type: str, default: "0644"}
      owner: {description: Name of the owner., type: str, default: root}
      group: {description: Name of the group., type: str, default: root}
      secret:
        description: Keep the content out of the diff. The task still needs C(no_log), which keeps it out of
          the host's journal and of Ansible's output.
        type: bool
        default: false
      backup:
        description: >-
          With I(backup_for), save this file, too. False for a file that must fit another host, as one with a
          password does.
        type: bool
        default: true
      validate:
        description: >-
          Command that ends well if the file may be written; %s is a file with its content. If it does not,
          nothing of the whole set is changed. Not run in check mode.
        type: str
  purge:
    description:
      - Globs of absolute paths. A file that one of them finds is removed, unless I(files) names it.
      - A unit's drop-in directory (C(*.d)) that is empty after that is removed too.
    type: list
    elements: str
    default: []
  backup_for:
    description: >-
      Save each file before it is written, for M(fleet.celery.fleet_backup) and the role of this name. Files
      that I(purge) removes are not saved.
    type: str
    default: ""
  empty:
    description: Absolute paths of directories that are removed, in this order, if nothing is in them at last.
    type: list
    elements: str
    default: []
  kernel:
    description:
      - Values under C(/proc/sys) and C(/sys) to set now. Files of sysctl.d and tmpfiles.d, which I(files) may
        have, set them at boot.
      - One that is not there or cannot be written, as in most containers, is left alone with a warning.
    type: list
    elements: dict
    default: []
    suboptions:
      path: {description: "A file under C(/proc/sys) or C(/sys).", type: path, required: true}
      value: {description: The text to write., type: str, required: true}
      accept: {description: Other values that are as good., type: list, elements: str, default: []}
      reason: {description: "What it is good for, for the warning.", type: str, required: true}
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
    details: The content of a file with O(files[].secret) is left out.
extends_documentation_fragment:
  - fleet.celery.attributes
author: The celery-fleet contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Write the environment file of each node
  fleet.celery.fleet_files:
    directories:
      - {path: /etc/celery/nodes}
    files:
      - {path: /etc/celery/nodes/default-1.env, content: "FLEET_NODE_QUEUES=default\n"}
    purge: [/etc/celery/nodes/*.env]
"""

RETURN = r"""
unchanged: {description: Whether the host had all of it already., returned: always, type: bool}
changed_files:
  description: Paths that were written, or would be in check mode.
  returned: always
  type: list
  elements: str
removed_files:
  description: Paths that were removed, or would be in check mode.
  returned: always
  type: list
  elements: str
refused: {description: Paths of I(kernel) that were left alone., returned: always, type: list, elements: str}
"""

import grp
import os
import pwd
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.fleet.celery.plugins.module_utils.files import replace_file
from ansible_collections.fleet.celery.plugins.module_utils.fleet_backup import Backup
from ansible_collections.fleet.celery.plugins.module_utils.fleet_systemd import SystemdError, reload_for
from ansible_collections.fleet.celery.plugins.module_utils.kernel_values import set_values

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from ansible_collections.fleet.celery.plugins.module_utils.fleet_systemd import Run


class FilesError(Exception):
    """What was asked for cannot be done; the message says why."""


@dataclass(frozen=True)
class Access:
    """Owner, group and mode of a path."""

    uid: int | None  # None: does not exist yet, which is possible in check mode only
    gid: int | None
    mode: int

    @classmethod
    def asked(cls, item: dict[str, Any], *, check: bool) -> Access:
        """Return the access that an item of the module's arguments asks for."""
        try:
            mode = int(item["mode"], 8)
        except ValueError:
            raise FilesError(f"{item['path']}: mode {item['mode']!r} is not an octal number") from None
        return cls(_uid(item["owner"], check=check), _gid(item["group"], check=check), mode)

    @classmethod
    def found(cls, status: os.stat_result) -> Access:
        """Return the access that a path has."""
        return cls(status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode))


def _uid(name: str, *, check: bool) -> int | None:
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        if check:
            return None
        raise FilesError(f"the host has no user {name!r}") from None


def _gid(name: str, *, check: bool) -> int | None:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        if check:
            return None
        raise FilesError(f"the host has no group {name!r}") from None


def _lstat(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None


def make_directory(item: dict[str, Any], *, check: bool) -> bool:
    """Make a directory, or correct its owner and mode.

    Returns:
        Whether anything was, or in check mode would be, changed.
    """
    path = Path(item["path"])
    access = Access.asked(item, check=check)
    status = _lstat(path)
    if status and not stat.S_ISDIR(status.st_mode):
        raise FilesError(f"{path} exists and is not a directory")
    if status and Access.found(status) == access:
        return False
    if not check:
        if not status:
            path.mkdir(mode=0o700)
        os.chown(path, access.uid or 0, access.gid or 0)
        path.chmod(access.mode)
    return True


def write_file(item: dict[str, Any], *, check: bool, backup: Backup | None = None) -> dict[str, str] | None:
    """Write a file, unless it is already as asked for, and save what was there before.

    Returns:
        The two sides of a diff, or None where nothing was to be done.
    """
    path = Path(item["path"])
    access = Access.asked(item, check=check)
    status = _lstat(path)
    if status and stat.S_ISDIR(status.st_mode):
        raise FilesError(f"{path} exists and is a directory")
    regular = status is not None and stat.S_ISREG(status.st_mode)  # a symbolic link is replaced, not followed
    before = path.read_bytes() if regular else b""
    after = item["content"].encode()
    if status and regular and before == after and Access.found(status) == access:
        return None
    if not check:
        if backup and item.get("backup", True):
            backup.save(path)
        replace_file(path, after, mode=access.mode, uid=access.uid, gid=access.gid)
    texts = (before.decode(errors="replace"), item["content"])
    if item["secret"]:
        texts = ("(secret)\n", "(secret)\n" if before == after else "(another secret)\n")
    access_header = f"{path} ({item['owner']}:{item['group']} {item['mode']})"
    return {"before_header": str(path), "after_header": access_header, "before": texts[0], "after": texts[1]}


def require_valid(items: Iterable[dict[str, Any]], run: Run) -> None:
    """Refuse a file whose command does not end well, before any is written.

    Raises:
        FilesError: There is one.
    """
    for item in items:
        path = Path(item["path"])
        if not item.get("validate") or _has(item):
            continue
        # of root alone (0700): the command may write beside the file, where nobody has laid a link
        with tempfile.TemporaryDirectory(prefix="fleet-") as private:
            file = Path(private, path.name)
            file.touch(0o600)
            file.write_bytes(item["content"].encode())
            code, out, err = run(item["validate"] % file)
        if code:
            raise FilesError(f"{item['path']} was not written, for it is not valid: {(err or out).strip()}")


def _has(item: dict[str, Any]) -> bool:
    """Return whether a file has its content already."""
    path = Path(item["path"])
    return path.is_file() and path.read_bytes() == item["content"].encode()


def purge(globs: Iterable[str], keep: set[str], kept_directories: set[str], *, check: bool) -> list[str]:
    """Remove the files that the globs find, and drop-in directories that are empty after it.

    Returns:
        The paths that were, or in check mode would be, removed.
    """
    removed: list[str] = []
    for pattern in globs:
        found = [path for path in sorted(Path("/").glob(pattern.lstrip("/"))) if str(path) not in keep]
        for path in found:
            if not check:
                path.unlink()
            removed.append(str(path))
        for parent in sorted({path.parent for path in found}):
            left = {str(path) for path in parent.iterdir()} - set(removed)
            if parent.suffix == ".d" and str(parent) not in kept_directories and not left:
                if not check:
                    parent.rmdir()
                removed.append(str(parent))
    return removed


def remove_empty(directories: Iterable[str], gone: Iterable[str], *, check: bool) -> list[str]:
    """Remove directories in which nothing is left.

    Args:
        directories: Their paths.
        gone: What was removed, or in check mode would have been.
        check: Whether to remove none.

    Returns:
        Those that were, or in check mode would be, removed.
    """
    removed: list[str] = []
    for path in map(Path, directories):
        status = _lstat(path)
        if not status or not stat.S_ISDIR(status.st_mode):
            continue
        if not {str(inner) for inner in path.iterdir()} - {*gone, *removed}:
            if not check:
                path.rmdir()
            removed.append(str(path))
    return removed


def refuse_bad_arguments(params: dict[str, Any]) -> None:
    """Refuse paths that are not absolute, and two entries for one path."""
    paths = [item["path"] for item in params["files"] + params["directories"]]
    for path in [*paths, *params["purge"], *params["empty"]]:
        if not path.startswith("/"):
            raise FilesError(f"{path!r} is not an absolute path")
    for path in paths:
        if paths.count(path) > 1:
            raise FilesError(f"{path} is named twice")


def apply(
    params: dict[str, Any], *, check: bool, backup: Backup | None = None, run: Run | None = None
) -> dict[str, Any]:
    """Do what the arguments ask for, and return the module's result."""
    refuse_bad_arguments(params)
    if run and not check:
        require_valid(params["files"], run)
    made = [item["path"] for item in params["directories"] if make_directory(item, check=check)]
    diffs = {item["path"]: write_file(item, check=check, backup=backup) for item in params["files"]}
    written = {path: diff for path, diff in diffs.items() if diff}
    directories = {item["path"] for item in params["directories"]}
    removed = purge(params["purge"], set(diffs), directories, check=check)
    removed += remove_empty(params["empty"], removed, check=check)
    if run and not check:
        reload_for(run, [*written, *removed])
    return {
        "changed": bool(made or written or removed),
        "unchanged": not (made or written or removed),
        "changed_files": list(written),
        "removed_files": removed,
        "diff": [
            *written.values(),
            *({"prepared": f"make {path}\n"} for path in made),
            *({"prepared": f"remove {path}\n"} for path in removed),
        ],
    }


def main() -> None:
    """Run the module."""
    place: dict[str, Any] = {
        "path": {"type": "path", "required": True},
        "owner": {"type": "str", "default": "root"},
        "group": {"type": "str", "default": "root"},
    }
    directory = {**place, "mode": {"type": "str", "default": "0755"}}
    file = {
        **place,
        "content": {"type": "str", "required": True},
        "mode": {"type": "str", "default": "0644"},
        "secret": {"type": "bool", "default": False, "no_log": False},
        "backup": {"type": "bool", "default": True},
        "validate": {"type": "str"},
    }
    value = {
        "path": {"type": "path", "required": True},
        "value": {"type": "str", "required": True},
        "accept": {"type": "list", "elements": "str", "default": []},
        "reason": {"type": "str", "required": True},
    }
    module = AnsibleModule(
        argument_spec={
            "directories": {"type": "list", "elements": "dict", "default": [], "options": directory},
            "files": {"type": "list", "elements": "dict", "default": [], "options": file},
            "purge": {"type": "list", "elements": "str", "default": []},
            "backup_for": {"type": "str", "default": ""},
            "empty": {"type": "list", "elements": "str", "default": []},
            "kernel": {"type": "list", "elements": "dict", "default": [], "options": value},
        },
        supports_check_mode=True,
    )
    try:
        backup = Backup(module.params["backup_for"]) if module.params["backup_for"] else None
        result = apply(module.params, check=module.check_mode, backup=backup, run=module.run_command)
    except (FilesError, SystemdError, OSError) as error:
        module.fail_json(msg=str(error))
    values, refused = set_values(module.params["kernel"], check=module.check_mode)
    for path, why in refused.items():
        module.warn(f"{path} was left as it is: {why}")
    result["changed"] |= bool(values)
    result["unchanged"] &= not values
    result["diff"] += [{"prepared": f"set {path}\n"} for path in values]
    module.exit_json(**result, refused=list(refused))


if __name__ == "__main__":
    main()
