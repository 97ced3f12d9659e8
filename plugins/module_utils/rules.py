# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rules that preflight holds an inventory against, and a role its variables.

Each returns nothing for a value that is right, else a `Fault`. Roles use them by the filter fleet_fault.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

SHORTEST_SECRET = 16  # characters; playbooks/secrets.yml makes 40
LONGEST_QUEUE = 100  # characters
# Nothing that the command line (comma), Celery (% is expanded) or Redis's ACL (a glob) could misread.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]*\Z")


class Fault(NamedTuple):
    """What is wrong with a value, and what to do, a sentence each."""

    reason: str
    remedy: str


def secret(value: Any) -> Fault | None:
    """Hold a password against what files of a host can carry, and against guessing."""
    text = "" if value is None else str(value)
    if any(character in text for character in "\r\n\0"):
        return Fault("It has a line break, which no file of a host could carry.", "Choose another.")
    if len(text) < SHORTEST_SECRET:
        return Fault(
            f"It is too weak: {len(text)} characters.", f"Set one of at least {SHORTEST_SECRET} characters."
        )
    return None


def port(value: Any) -> Fault | None:
    """Hold a number against those of TCP's ports."""
    if 1 <= int(value) <= 65535:
        return None
    return Fault(f"{value} is no port.", "Choose one from 1 to 65535.")


def database(value: Any) -> Fault | None:
    """Hold a number against those of Redis's databases."""
    if 0 <= int(value) <= 15:
        return None
    return Fault(f"{value} is no database of Redis.", "Choose one from 0 to 15.")


def renewal(value: Sequence[Any]) -> Fault | None:
    """Hold the days before its end in which a certificate is renewed against the days that it is valid."""
    renew, days = map(int, value)
    if 0 < renew < days:
        return None
    return Fault(
        f"{renew} days before the end of a certificate of {days} days is before it begins.",
        "Make pki_renew_days less than pki_days, and more than 0.",
    )


def all_or_none(value: Sequence[Any]) -> Fault | None:
    """Require values that belong together: of an operator's own certificate, for instance."""
    if all(value) or not any(value):
        return None
    return Fault("It is empty, but others of its kind are set.", "Set all, or none.")


def name(value: Any) -> Fault | None:
    """Hold the name of a queue or an exchange against what a pattern of Redis's ACL can carry."""
    if NAME.match(str(value)):
        return None
    return Fault(
        f"{str(value)!r} is no name that can be a key of Redis.",
        "Use letters, digits and . _ : - only, with a letter or a digit first.",
    )


def queue(value: Any) -> Fault | None:
    """Hold the name of a queue against what a key, and a line of a unit, can carry."""
    if len(str(value)) > LONGEST_QUEUE:
        return Fault(f"{str(value)!r} is too long.", f"Use at most {LONGEST_QUEUE} characters.")
    return name(value)


RULES = {rule.__name__: rule for rule in (secret, port, database, renewal, all_or_none, name, queue)}


def fault(value: Any, rule: str) -> str:
    """Return what is wrong with a value, and what to do; nothing if it is right.

    Args:
        value: The value; for `renewal` and `all_or_none` a list.
        rule: Name of a rule.

    >>> fault(70000, "port"), fault("5555", "port")
    ('70000 is no port. Choose one from 1 to 65535.', '')
    """
    return " ".join(RULES[rule](value) or ())
