# SPDX-License-Identifier: MIT
"""References to messages that a node has fetched and not acknowledged."""

from __future__ import annotations

from typing import NamedTuple


class UnackedRef(NamedTuple):
    """Where the record of an unacknowledged message is.

    Attributes:
        unacked: Key of the node's hash of delivery tag -> record.
        unacked_index: Key of the node's sorted set of delivery tag -> time of the fetch.
        tag: The delivery tag.
    """

    unacked: str
    unacked_index: str
    tag: str
