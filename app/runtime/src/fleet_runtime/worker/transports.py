# SPDX-License-Identifier: MIT
"""The transports of a node: items of queues that are not messages go to the dead letters."""

from __future__ import annotations

from fleet_runtime.dead_letters.malformed import dead_letter_malformed
from fleet_runtime.transport.channel import Channel
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
