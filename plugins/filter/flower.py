# SPDX-License-Identifier: MIT
"""The filter of the role flower: the hash of a password for nginx."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

from ansible.errors import AnsibleFilterError

if TYPE_CHECKING:
    from collections.abc import Callable

MOST_BYTES = 256  # of a password; openssl would cut the rest off, and nginx would not


def password_hash(password: str, salt: str, rounds: int) -> str:
    """Return the SHA-512 hash of a password, as crypt(5) writes it.

    The program openssl makes it: Ansible's own `password_hash` needs passlib, which Ansible does not install.

    Args:
        password: The password, which no command line shows.
        salt: At most 16 characters.
        rounds: How often the hash is computed, at least 1000.

    Raises:
        AnsibleFilterError: The password is too long, or the controller has no openssl.
    """
    if len(password.encode()) > MOST_BYTES:
        raise AnsibleFilterError(f"The password has more than {MOST_BYTES} bytes. Use a shorter one.")
    command = ["openssl", "passwd", "-6", "-salt", f"rounds={rounds}${salt}", "-stdin"]
    try:
        done = subprocess.run(command, input=f"{password}\n", text=True, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise AnsibleFilterError(
            f"The controller cannot hash a password, and needs the program openssl for it: {error}"
        ) from error
    return done.stdout.strip()


class FilterModule:
    """Filters `flower_*`."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"flower_password_hash": password_hash}
