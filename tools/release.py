# SPDX-License-Identifier: MIT
"""Make a release of the collection and the wheel: one version in every place, and the changelogs.

Usage: tools/release.py VERSION     (`make release VERSION=0.2.0` does it)
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import yaml
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
# The files that say the version by themselves: galaxy.yml is the first to be read, the others follow it.
PLACES = {
    "galaxy.yml": re.compile(r"(?m)^version: *(\S+) *$"),
    "app/runtime/pyproject.toml": re.compile(r'(?m)^version = "([^"]+)"'),
}
WHEEL_CHANGES = "app/runtime/CHANGELOG.md"
UNRELEASED = "## Unreleased\n"


class RefusedError(Exception):
    """No release can be made; the message says why."""


def versions(root: Path) -> dict[str, str]:
    """Return the version that each file says, the newest release of each changelog included.

    Args:
        root: The project's folder.

    Raises:
        RefusedError: A file says none.
    """
    found = {}
    for name, pattern in PLACES.items():
        match = pattern.search((root / name).read_text())
        if not match:
            raise RefusedError(f"{name} has no line with a version.")
        found[name] = match[1]
    if newest := newest_release(root):
        found["changelogs/changelog.yaml"] = newest
    if match := re.search(r"(?m)^## (\d\S*)$", (root / WHEEL_CHANGES).read_text()):
        found[WHEEL_CHANGES] = match[1]
    return found


def newest_release(root: Path) -> str | None:
    """Return the version of the newest release in the collection's changelog, None if it has no release."""
    file = root / "changelogs" / "changelog.yaml"
    releases = yaml.safe_load(file.read_text())["releases"] if file.exists() else {}
    return max(releases, key=Version, default=None)


def check(root: Path, version: str) -> None:
    """Refuse a version that cannot be the next one.

    Raises:
        RefusedError: It is no semantic version or not above the newest release, or nothing has changed.
    """
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise RefusedError(f"{version!r} is no semantic version, such as 0.2.0.")
    newest = newest_release(root)
    if newest and Version(version) <= Version(newest):
        raise RefusedError(
            f"{version} is not above {newest}, the newest release in changelogs/changelog.yaml."
        )
    if not list((root / "changelogs" / "fragments").glob("*.yml")):
        raise RefusedError("changelogs/fragments has no fragment: there is nothing to release.")


def write(root: Path, version: str) -> None:
    """Write a version into every file that says it by itself, and head the wheel's changes with it."""
    for name, pattern in PLACES.items():
        file = root / name
        text = file.read_text()
        match = pattern.search(text)
        if not match:
            raise RefusedError(f"{name} has no line with a version.")
        file.write_text(text[: match.start(1)] + version + text[match.end(1) :])
    file = root / WHEEL_CHANGES
    text = file.read_text()
    heading = f"## {version}\n"
    if UNRELEASED in text:
        text = text.replace(UNRELEASED, heading, 1)
    elif heading not in text:
        first = re.search(r"(?m)^## ", text)
        place = first.start() if first else len(text)
        text = f"{text[:place]}{heading}\nNo change of the package.\n\n{text[place:]}"
    file.write_text(text)


def main() -> None:
    """Make the release that is asked for."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    version = sys.argv[1]
    try:
        check(ROOT, version)
        write(ROOT, version)
    except RefusedError as error:
        sys.exit(str(error))
    subprocess.run(["antsibull-changelog", "release"], cwd=ROOT, check=True)
    print(f"Commit this as `release: {version}`, and tag the commit {version}.")


if __name__ == "__main__":
    main()
