# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An app that is no package, such as a folder with `app.py` and a requirements.txt.

Its files are made into a wheel as they are, so nothing of the app runs for it. They are installed into the
directory `source` of the release, which comes first in the path of modules, as the current directory does for
`celery -A tasks worker` and `python manage.py`.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import re
import zipfile
from typing import TYPE_CHECKING

from ansible_collections.fleet.celery.plugins.module_utils.app_release_source import (
    REQUIREMENT_NAMES,
    ReleaseError,
    tree_files,
)

with contextlib.suppress(ImportError):  # PACKAGING_ERROR of app_release_source has it
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.version import InvalidVersion, Version

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from typing import Any

NAME = (
    "celery_fleet_app"  # of the wheel: no name of the app's own can then be that of something it depends on
)
SOURCE = "source"  # the directory in the release
# These at its top would be imported in place of the packages that have the name.
TAKEN = frozenset({"amqp", "billiard", "celery", "fleet_runtime", "kombu", "redis", "vine"})
PTH = f"import os, sys; sys.path[:0] = [os.path.join(sys.prefix, '{SOURCE}')]\n"
PTH_SRC = f"import os, sys; sys.path[:0] = [os.path.join(sys.prefix, '{SOURCE}', 'src')]\n"


def pack(project: Path, out: Path, table: Mapping[str, Any]) -> Path:
    """Write the wheel of an app's files, the same bytes for the same files, and return it.

    Args:
        project: The app.
        out: A directory.
        table: The project's pyproject.toml, from which the version is taken if it names one.

    Raises:
        ReleaseError: A module at the top has the name of a package that the runtime needs.
    """
    version = str(table.get("project", {}).get("version", "0"))
    try:
        version = str(Version(version))
    except InvalidVersion:
        version = "0"
    about, data = f"{NAME}-{version}.dist-info", f"{NAME}-{version}.data/data/{SOURCE}"
    contents = {f"{data}/{name}": path.read_bytes() for path, name in tree_files(project, plain=True)}
    for name in TAKEN:
        if found := {f"{data}/{name}.py", f"{data}/{name}/__init__.py"} & {*contents}:
            file = min(found).removeprefix(f"{data}/")
            raise ReleaseError(
                f"The app has {file} at its top, which would be imported in place of the package {name}. "
                "Rename it."
            )
    contents[f"{NAME}.pth"] = PTH.encode()
    if (project / "src").is_dir() and not (project / "src" / "__init__.py").exists():
        contents[f"{NAME}.pth"] += PTH_SRC.encode()
    contents[f"{about}/METADATA"] = f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {version}\n".encode()
    contents[f"{about}/WHEEL"] = b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = "".join(f"{name},sha256={_digest(text)},{len(text)}\n" for name, text in contents.items())
    contents[f"{about}/RECORD"] = f"{record}{about}/RECORD,,\n".encode()
    wheel = out / f"{NAME}-{version}-py3-none-any.whl"
    out.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in contents.items():
            archive.writestr(zipfile.ZipInfo(name), text, zipfile.ZIP_DEFLATED)
    return wheel


def left_behind(project: Path) -> list[str]:
    """Return the files with settings, which may be secrets, that are not shipped."""
    return sorted(path.name for path in project.glob(".env*") if path.is_file())


def requirements(project: Path) -> Path:
    """Return the file that says what an app without a lock and a pyproject.toml depends on.

    Raises:
        ReleaseError: There is none.
    """
    for name in REQUIREMENT_NAMES:
        if (project / name).is_file():
            return project / name
    raise ReleaseError(
        "The app does not say what it depends on. Write a requirements.txt with celery and what else the app "
        "imports, or let celery_app_lock name the file that says it."
    )


def named(project: Path) -> Iterator[Requirement]:
    """Yield the requirements of an app's requirements file, if it has one. Other lines are uv's business."""
    files = [project / name for name in REQUIREMENT_NAMES if (project / name).is_file()]
    for line in files[0].read_text(encoding="utf-8").splitlines() if files else ():
        try:
            yield Requirement(line.split(" #")[0].split(" --hash")[0].rstrip(" \\"))
        except InvalidRequirement:
            continue


def names_index(file: Path) -> bool:
    """Return whether a requirements file names an index of its own."""
    return bool(re.search(r"^\s*(-i|-f|--(extra-)?index-url|--find-links)\b", file.read_text("utf-8"), re.M))


def _digest(text: bytes) -> str:
    """Return a digest as RECORD has it."""
    return base64.urlsafe_b64encode(hashlib.sha256(text).digest()).rstrip(b"=").decode()
