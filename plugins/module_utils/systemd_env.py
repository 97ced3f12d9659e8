# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The text of a systemd EnvironmentFile."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
ESCAPED = re.compile(r'([\\"`$])')


def env_file(variables: Mapping[str, Any]) -> str:
    """Return the text of a systemd EnvironmentFile, sorted by name.

    Every value is in double quotes with the four characters escaped that systemd treats specially there
    (systemd.exec(5), EnvironmentFile=); no specifier or variable is expanded in such a file. Within the
    quotes a line break is part of the value, so a PEM key is carried as it is.

    Raises:
        ValueError: A name or a value cannot be in such a file; the message is `env_fault`'s.
    """
    lines = []
    for name, value in sorted(variables.items()):
        if fault := env_fault(name, value):
            raise ValueError(fault)
        escaped = ESCAPED.sub(r"\\\1", env_value(value))
        lines.append(f'{name}="{escaped}"\n')
    return "".join(lines)


def env_fault(name: str, value: Any) -> str:
    """Return why a variable cannot be in a systemd EnvironmentFile, without its value, or nothing."""
    if not NAME.match(name):
        return f"{name!r} is not the name of an environment variable"
    if "\0" in env_value(value):
        return f"the value of {name} has the character NUL, which no environment can carry"
    return ""


def env_value(value: Any) -> str:
    """Return a YAML value as text: true and false in lower case, a list with commas."""
    if isinstance(value, (list, tuple)):
        return ",".join(env_value(one) for one in value)
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)
