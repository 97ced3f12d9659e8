# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which values Ansible blots out of what a module returns."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Iterable

LOGIN = re.compile(r"://[^/@:\s]*:(?P<password>[^/@\s]+)@")
SHORTEST_SECRET = 8  # shorter values, such as "1" or "prod", would blot out half of every message


def passwords_in(settings: Iterable[object]) -> set[str]:
    """Return the passwords in URLs, as they are written and as they are sent.

    >>> sorted(passwords_in(["https://me:s%20cret@index.example.org/simple", "fast=https://example.org"]))
    ['s cret', 's%20cret']
    """
    found = {part["password"] for value in settings for part in LOGIN.finditer(str(value))}
    return found | set(map(unquote, found))


def secrets_among(values: Iterable[str], settings: Iterable[object] = ()) -> set[str]:
    """Return the values that may be secrets.

    Args:
        values: All that Ansible would blot out.
        settings: Those that come from the environment of uv and pip. A path among them is none, and a message
            about a directory or a certificate that is not there is of no use without it.
    """
    paths = {str(value) for value in settings if str(value).startswith("/")}
    return {value for value in values if len(value) >= SHORTEST_SECRET and value not in paths}
