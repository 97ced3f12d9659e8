# SPDX-License-Identifier: MIT
"""The errors of a broker that is away, or that refuses a command, and their sentence for an operator."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from fleet_runtime.errors import FleetError

if TYPE_CHECKING:
    from collections.abc import Iterator

BROKER_ERRORS = (OperationalError, RedisError, OSError)
#: Follows the error of a Redis that runs a script without an end.
BUSY = (
    " A script or a function does not end, and no task runs before it does. As the user admin: SCRIPT KILL, "
    "or FUNCTION KILL; if it has written, only a restart of Redis ends it."
)


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn an error of the broker into a FleetError.

    Args:
        what: What failed, as the beginning of a sentence.

    Raises:
        FleetError: The block has raised such an error.
    """
    try:
        yield
    except BROKER_ERRORS as error:
        remedy = BUSY if str(error).startswith("BUSY ") else ""
        raise FleetError(f"{what}: {error}{remedy}") from error
