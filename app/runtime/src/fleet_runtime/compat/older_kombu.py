# SPDX-License-Identifier: MIT
"""kombu's transport for Redis as it is since version 5.7, for kombu 5.5 and 5.6 as well.

With kombu 5.7 as the oldest supported version this module can go, and kombu's own classes take the place of
those at its end.
"""

from __future__ import annotations

import logging
from queue import Empty
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from kombu.transport import redis as stock

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

#: Seconds between two calls of the poller's `maybe_restore_messages`.
RESTORE_INTERVAL_S = 10
#: After this many PINGs without an answer, a subscribed connection is taken to be dead.
MISSED_PINGS = 2

# What polls at each turn of a loop. That of a lost connection goes when the next one is made.
_polling: WeakKeyDictionary[Any, Callable[[], None]] = WeakKeyDictionary()


def deliver_fanout(channel: Any, message: Any, exchange: str) -> Any:
    """Deliver a message that was published to an exchange of the type fanout."""
    if IS_OLDER:
        return channel.connection._deliver(message, channel._fanout_to_queue[exchange]) or True
    return channel._deliver_fanout_message(message, exchange)


class OlderPoller(stock.MultiChannelPoller):
    """kombu's poller, which drops dead connections, and ignores events of files that it has forgotten."""

    def get(self, callback: Any, timeout: float | None = None) -> None:
        """Wait for an event, without a loop. kombu's own uses BRPOP in place of `on_poll_start`.

        Raises:
            Empty: Nothing was delivered.
        """
        self._in_protected_read = True
        try:
            self.on_poll_start()
            events = self.poller.poll(timeout) or ()
            if any(self.handle_event(fileno, event) for fileno, event in events):
                return
            if not events:
                self.maybe_check_brpop_health()
            self.maybe_restore_messages()
            raise Empty
        finally:
            self._in_protected_read = False
            while self.after_read:
                self.after_read.pop()()

    def handle_event(self, fileno: int, event: int) -> Any:
        """Handle an event."""
        return super().handle_event(fileno, event) if fileno in self._fd_to_chan else None

    def on_readable(self, fileno: int) -> Any:
        """Read a connection."""
        return super().on_readable(fileno) if fileno in self._fd_to_chan else None

    def maybe_restore_messages(self) -> None:
        """Requeue messages beyond their visibility timeout, unless the connection is lost."""
        try:
            super().maybe_restore_messages()
        except stock.Transport.connection_errors:
            logger.debug("Messages beyond their visibility timeout stay for now.", exc_info=True)

    def maybe_check_subclient_health(self) -> None:
        """Send PING on subscribed connections, and drop one that has not answered the last two."""
        for channel in self._channels:
            client = vars(channel).get("subclient")
            if client is None:
                continue
            try:
                if client.health_check_response_counter < MISSED_PINGS:
                    client.check_health()
                    continue
            except channel.connection_errors:
                logger.debug("A subscribed connection is lost.", exc_info=True)
                return
            logger.warning("A subscribed connection has not answered %d PINGs, and is dropped.", MISSED_PINGS)
            client.health_check_response_counter = 0
            if client.connection is not None:
                client.connection.disconnect()


class OlderChannel(stock.Channel):
    """kombu's channel, with an order of its queues."""

    @property
    def active_queues(self) -> list[str]:
        """The queues that are consumed."""
        return [queue for queue in self._active_queues if queue not in self.active_fanout_queues]

    def maybe_refresh_binding_expiry(self) -> None:
        """Do nothing: no queue of this kombu expires."""

    def _get_publish_topics(self, exchange: str, routing_key: str) -> list[str]:
        """Return the channels of Redis to which messages of an exchange are published."""
        return [self._get_publish_topic(exchange, routing_key)]

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:
        """Return the parameters of connections. Those that a poller watches can be used by each redis-py."""
        parameters: dict[str, Any] = super()._connparams(asynchronous)
        if asynchronous:
            parameters["connection_class"] = watched(parameters["connection_class"])
        return parameters


def watched(original: Any) -> Any:
    """Return kombu's class of the connections that a poller watches, with two repairs."""

    class Connection(original):
        health_check_interval: Any

        def disconnect(self, *args: Any, **_: Any) -> None:
            """Disconnect. redis-py 7 names its arguments, and kombu's method takes none with names."""
            super().disconnect(*args)

        def on_connect(self) -> None:
            """Log in. redis-py 5 sends PING before, with RESP 3, and Redis refuses that."""
            interval = self.health_check_interval
            self.health_check_interval = 0
            try:
                super().on_connect()
            finally:
                self.health_check_interval = interval

    return Connection


class OlderTransport(stock.Transport):
    """kombu's transport, which goes on to poll after one of its connections was dropped."""

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Let a loop poll."""
        cycle = self.cycle
        cycle.on_poll_init(loop.poller)

        def on_disconnect(connection: Any) -> None:
            found = [key for key in cycle._chan_to_sock if key[1].connection is connection]
            for key in found:
                del cycle._chan_to_sock[key]
            gone = {(channel, kind) for channel, _, kind in found}
            for fileno in [fileno for fileno, owner in cycle._fd_to_chan.items() if owner in gone]:
                loop.remove(fileno)
                del cycle._fd_to_chan[fileno]

        def on_poll_start() -> None:
            cycle.on_poll_start()
            for fileno in list(cycle.fds):
                loop.add_reader(fileno, self.on_readable, fileno)

        cycle._on_connection_disconnect = on_disconnect
        loop.on_tick.discard(_polling.get(loop))
        loop.on_tick.add(on_poll_start)
        _polling[loop] = on_poll_start
        options = connection.client.transport_options
        check_interval = options.get("health_check_interval", stock.DEFAULT_HEALTH_CHECK_INTERVAL)
        # Celery before 5.7 forgets all timers as a connection is lost.
        loop.call_repeatedly(RESTORE_INTERVAL_S, cycle.maybe_restore_messages)
        loop.call_repeatedly(check_interval, cycle.maybe_check_subclient_health)
        loop.call_repeatedly(check_interval, cycle.maybe_check_brpop_health)


IS_OLDER = not hasattr(stock.MultiChannelPoller, "maybe_check_brpop_health")
MultiChannelPoller: Any = OlderPoller if IS_OLDER else stock.MultiChannelPoller
Channel: Any = OlderChannel if IS_OLDER else stock.Channel
Transport: Any = OlderTransport if IS_OLDER else stock.Transport
