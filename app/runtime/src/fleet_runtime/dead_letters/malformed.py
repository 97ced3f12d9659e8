# SPDX-License-Identifier: MIT
"""Moves items of queues that are not messages to the dead letters."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from fleet_runtime.dead_letters import store
from fleet_runtime.dead_letters.model import End, Reason
from fleet_runtime.logging import redact

if TYPE_CHECKING:
    from fleet_runtime.broker.unacked import UnackedRef

logger = logging.getLogger(__name__)

# Transport option with the retention of dead letters, so that each channel of a node's app has it.
RETENTION_OPTION = "dead_letter_retention"


def dead_letter_malformed(
    channel: Any, item: bytes, queue: str, ref: UnackedRef | None, error: Exception
) -> None:
    """Move an item to the dead letters. An item that cannot be moved is logged.

    Args:
        channel: The channel that fetched it.
        item: The item.
        queue: The queue that it was in.
        ref: Its record; None if it has none.
        error: What is wrong with it.
    """
    reason = redact.described(error)  # without its text, which may quote the item
    logger.error("An item in the queue %s is not a message, and goes to the dead letters: %s", queue, reason)
    node = os.environ.get("FLEET_NODE", "")
    try:
        with channel.conn_or_acquire() as client:
            end = End.of(Reason.MALFORMED, error)
            retention = store.Retention(*channel.connection.client.transport_options[RETENTION_OPTION])
            store.dead_letter_raw(client, item, end, node=node, retention=retention, queue=queue, held=ref)
    except Exception:
        fate = "stays with this node" if ref else "is lost"
        shown = f"{len(item)} bytes" if redact.are_hidden() else repr(item)
        logger.critical("It cannot be moved there, and %s: %s", fate, shown, exc_info=True)
