# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which Debian packages a host has, in which versions, and which it could have."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

# Its answers are parsed, so they must not be in the host's language.
PLAIN = {"LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}


@dataclass(frozen=True)
class Package:
    """A package, as dpkg has it and as the host's archive offers it.

    Attributes:
        installed: The version that the host has; empty if it has none.
        whole: Whether dpkg has done with it. A run that was interrupted leaves one that is not.
        candidate: The version that apt would install.
        available: Every version that the archive has, the newest first.
        security: Those of them that are in the distribution's archive of security updates.
    """

    name: str
    installed: str
    whole: bool
    candidate: str
    available: list[str]
    security: tuple[str, ...] = ()


def missing(packages: list[str]) -> list[str]:
    """Return those of the Debian packages that are not installed.

    To ask dpkg takes a tenth of the time of the module apt, which loads the whole index first.
    """
    if not packages:
        return []
    argv = ["dpkg-query", "--show", "--showformat=${db:Status-Status} ${Package}\n", *packages]
    result = subprocess.run(
        argv, capture_output=True, text=True, check=False
    )  # 1: it does not know one of them
    return [name for name in packages if f"installed {name}" not in result.stdout.splitlines()]


def look(names: list[str]) -> list[Package]:
    """Return what the host has, and could have, of some packages."""
    form = "--showformat=${Package}\t${Version}\t${db:Status-Status}\n"
    known = parse_status(_said("dpkg-query", "--show", form, *names))
    candidates = parse_policy(_said("apt-cache", "policy", *names))
    said = _said("apt-cache", "madison", *names)
    offered, security = parse_madison(said), parse_madison(said, pocket="-security/")
    return [
        Package(
            name,
            known.get(name, ("", ""))[0],
            known.get(name, ("", ""))[1] == "installed",
            candidates.get(name, ""),
            offered.get(name, []),
            tuple(security.get(name, ())),
        )
        for name in names
    ]


def parse_status(text: str) -> dict[str, tuple[str, str]]:
    """Return the version and the state of each package that dpkg has files of."""
    rows = [line.split("\t") for line in text.splitlines()]
    return {
        name: (version, state)
        for name, version, state in rows
        if state not in {"not-installed", "config-files"}
    }


def parse_policy(text: str) -> dict[str, str]:
    """Return the candidate of each package, of what `apt-cache policy` prints."""
    found, name = {}, ""
    for line in text.splitlines():
        if not line.startswith(" "):
            name = line.strip().removesuffix(":")
        elif line.strip().startswith("Candidate: ") and "(none)" not in line:
            found[name] = line.split(": ", 1)[1].strip()
    return found


def parse_madison(text: str, pocket: str = "") -> dict[str, list[str]]:
    """Return the versions that the archive has of each package, of what `apt-cache madison` prints.

    Args:
        text: What it prints.
        pocket: A part of the name of the archive, such as `-security/`; all archives if empty.
    """
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        name, version, place = (part.strip() for part in line.split("|"))
        if place.endswith("Packages") and pocket in place and version not in found.setdefault(name, []):
            found[name].append(version)
    return found


def upstream(version: str) -> str:
    """Return the part of a version that the program's authors gave it.

    >>> upstream("5:7.0.15-1~deb12u7"), upstream("8.0"), upstream("1:2-rc1-3")
    ('7.0.15', '8.0', '2-rc1')
    """
    without_epoch = version.partition(":")[2] if ":" in version else version
    return without_epoch.rpartition("-")[0] or without_epoch


def is_older(one: str, other: str) -> bool:
    """Whether a version is older than another one, as dpkg counts."""
    argv = ["dpkg", "--compare-versions", one, "lt", other]
    return subprocess.run(argv, check=False, env=PLAIN).returncode == 0


class VersionError(Exception):
    """The packages cannot be as they should; the message says why."""


def decide(packages: Sequence[Package], version: str) -> dict[str, Any]:
    """Return which versions packages of one source have and should have, as redis_upgrade returns it.

    Raises:
        VersionError: A package is not there, or not to be had.
    """
    wanted = {package.name: version or package.candidate for package in packages}
    for package in packages:
        if not package.installed:
            raise VersionError(f"{package.name} is not installed. Run site.yml first.")
        if version and version not in [*package.available, package.installed]:
            raise VersionError(
                f"the archive has no {package.name} {version}. It has: "
                f"{', '.join(package.available) or 'none'}."
            )
    first = packages[0]
    return {
        "changed": False,
        "installed": first.installed,
        "wanted": wanted[first.name],
        "due": any(wanted[package.name] != package.installed or not package.whole for package in packages),
        "newest": first.candidate,
        "newer": any(is_older(package.installed, package.candidate) for package in packages),
        "security": any(
            is_older(package.installed, version) for package in packages for version in package.security
        ),
        "unfinished": not all(package.whole for package in packages),
        "older": age(wanted[first.name], first.installed),
        "targets": [f"{name}={version}" for name, version in wanted.items()],
        "returns": [f"{package.name}={package.installed}" for package in packages]
        if all(package.installed in package.available for package in packages)
        else [],
    }


def news(result: dict[str, Any], name: str, version: str, playbook: str) -> str:
    """Return what an operator is to know; nothing if there is no newer version, and all is as it should be.

    Args:
        result: The module's.
        name: Of the first package.
        version: The version that is asked for, if one is.
        playbook: The one that installs a newer version.
    """
    if not result["newer"]:
        if not result["due"]:
            return ""
        return (
            f"{name} {result['installed']} is not as it should be, {result['wanted']}. {playbook} mends it."
        )
    what = "the security update" if result["security"] else "version"
    remedy = (
        f"{version} is asked for, so {playbook} does not install it: name another version, or none."
        if version and version != result["newest"]
        else f"{playbook} installs it."
    )
    return f"{name} {result['installed']} is on hold, and the archive has {what} {result['newest']}. {remedy}"


def age(wanted: str, installed: str) -> str:
    """Return whether one version is older than another, and in which part."""
    if not is_older(wanted, installed):
        return "no"
    return "revision" if upstream(wanted) == upstream(installed) else "upstream"


def _said(*argv: str) -> str:
    """Return what a command prints; one that does not know a package fails, and tells of the others."""
    return subprocess.run(argv, capture_output=True, text=True, check=False, env=PLAIN).stdout
