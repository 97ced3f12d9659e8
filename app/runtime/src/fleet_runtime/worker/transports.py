# SPDX-License-Identifier: MIT
"""The transports of a node, whose channels lose no message with their connection, and no malformed item."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from fleet_runtime.dead_letters import store
from fleet_runtime.dead_letters.model import End, Reason
from fleet_runtime.logging import redact
from fleet_runtime.recovery.inflight import InFlightQoS
from fleet_runtime.transport.channel import Channel
from fleet_runtime.transport.transports import SentinelChannel, SentinelTransport, Transport

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fleet_runtime.broker.unacked import UnackedRef

logger = logging.getLogger(__name__)

# Transport options, so that each channel of a node's app has them, and not only the one that consumes.
OPTIONS = ("node", "dead_letter_retention")


class NodeChannel(Channel):
    """A channel to Redis.

    Attributes:
        node: Name of the node.
        dead_letter_retention: A `store.Retention`.
    """

    QoS = InFlightQoS
    from_transport_options = (*Channel.from_transport_options, *OPTIONS)
    node: str = ""
    dead_letter_retention: Sequence[int] = (0, 0)

    def on_malformed(self, item: bytes, queue: str, ref: UnackedRef | None, error: Exception) -> None:
        """Move an item that is no message to the dead letters. An item that cannot be moved is logged.

        Args:
            item: The item.
            queue: The queue that it was in.
            ref: Its record; None if it has none.
            error: What is wrong with it.
        """
        logger.error(
            "An item in the queue %s is not a message, and goes to the dead letters: %s",
            queue, redact.described(error),
        )  # fmt: skip
        end, retention = End.of(Reason.MALFORMED, error), store.Retention(*self.dead_letter_retention)
        try:
            with self.conn_or_acquire() as client:
                store.move_item(client, item, end, node=self.node, retention=retention, queue=queue, held=ref)
        except Exception:
            fate = "stays with this node" if ref else "is lost"
            shown = f"{len(item)} bytes" if redact.are_hidden() else repr(item)
            logger.critical("It cannot be moved there, and %s: %s", fate, shown, exc_info=True)


class NodeSentinelChannel(NodeChannel, SentinelChannel):
    """A channel to the master that Sentinel names."""

    from_transport_options = (*SentinelChannel.from_transport_options, *OPTIONS)


class NodeTransport(Transport):
    """The transport for Redis."""

    Channel = NodeChannel


class NodeSentinelTransport(SentinelTransport):
    """The transport for Sentinel."""

    Channel = NodeSentinelChannel
