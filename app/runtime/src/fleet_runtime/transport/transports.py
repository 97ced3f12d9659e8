# SPDX-License-Identifier: MIT
"""kombu's transports for Redis and Sentinel, with the runtime's channel and poller."""

from __future__ import annotations

from typing import Any

from kombu.transport import redis as stock

from fleet_runtime.broker.schemes import without_prefix
from fleet_runtime.compat import older_kombu
from fleet_runtime.transport.channel import FETCH_LIMIT_OPTION, Channel
from fleet_runtime.transport.poller import Poller


class Transport(older_kombu.Transport):
    """kombu's transport for Redis."""

    Channel = Channel

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Create it without connecting."""
        super().__init__(*args, **kwargs)
        self.cycle = Poller()

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Let a node's event loop poll."""
        self.cycle.loop, self.cycle.reader = loop, self.on_readable
        super().register_with_event_loop(connection, loop)


class SentinelChannel(Channel, stock.SentinelChannel):
    """kombu's channel to the master that Sentinel names."""

    from_transport_options = (*stock.SentinelChannel.from_transport_options, FETCH_LIMIT_OPTION)

    def _sentinel_managed_pool(self, asynchronous: bool = False) -> Any:
        """Return a pool of connections to the master. kombu looks only for URLs of its own scheme."""
        client = self.connection.client
        urls, client.alt = client.alt, [without_prefix(url) for url in client.alt]
        try:
            return super()._sentinel_managed_pool(asynchronous)
        finally:
            client.alt = urls


class SentinelTransport(Transport):
    """kombu's transport for Sentinel."""

    default_port = stock.SentinelTransport.default_port
    Channel = SentinelChannel
