"""Which Debian packages a host has."""

from __future__ import annotations

import subprocess


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
