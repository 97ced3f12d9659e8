# SPDX-License-Identifier: MIT
"""The transports of a node: items of queues that are not messages go to the dead letters."""

from __future__ import annotations

from functools import wraps

from kombu.transport.redis import Channel as KombuChannel

from fleet_runtime.compat.surface import may_replace
from fleet_runtime.dead_letters.malformed import dead_letter_malformed
from fleet_runtime.transport.channel import Channel
from fleet_runtime.transport.decode import brpop_reader
from fleet_runtime.transport.transports import SentinelChannel, SentinelTransport, Transport


class NodeChannel(Channel):
    """A channel to Redis."""

    on_malformed = dead_letter_malformed


class NodeSentinelChannel(SentinelChannel):
    """A channel to the master that Sentinel names."""

    on_malformed = dead_letter_malformed


class NodeTransport(Transport):
    """The transport for Redis."""

    Channel = NodeChannel


class NodeSentinelTransport(SentinelTransport):
    """The transport for Sentinel."""

    Channel = NodeSentinelChannel


def patch_brpop() -> None:
    """Let kombu's own channels, which a node at the level `standard` has, do the same.

    There, an item that is not a message ends the node, and is lost (kombu 5.7, Channel._brpop_read).
    """
    otherwise = "An item in a queue that is not a message ends this node."
    original = may_replace("kombu.transport.redis:Channel", "_brpop_read", otherwise)
    if original is not None:
        KombuChannel._brpop_read = wraps(original)(brpop_reader(dead_letter_malformed))
