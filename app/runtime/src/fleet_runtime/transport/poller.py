# SPDX-License-Identifier: MIT
"""kombu's poller, for channels that fetch messages by the script."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from math import inf
from queue import Empty
from time import monotonic
from typing import Any
from weakref import finalize

from kombu.transport import redis as stock
from redis.exceptions import ConnectionError as RedisConnectionError

from fleet_runtime.compat import older_kombu
from fleet_runtime.transport import tuning
from fleet_runtime.transport.connection import PipelinedConnection


def turn() -> None:
    """Do nothing: with a callback to run, a loop makes a turn, in which it calls `on_poll_start`."""


class Poller(older_kombu.MultiChannelPoller):
    """Lets channels send what they have to send, and read what comes.

    Attributes:
        loop: The event loop of the node; None without one.
        reader: The callback by which the loop reads a connection.
        thread: The thread, or greenlet, that polls.
        polls: Whether it does now.
        delivered: Whether a message was delivered since this was last set to False.
    """

    loop: Any = None
    reader: Any = None

    def __init__(self) -> None:
        """Start without a loop."""
        super().__init__()
        self.thread: int | None = None
        self.polls = False
        self.delivered = False
        self._alarm_fd: int | None = None  # wakes `get`, without a loop
        self._nudge_fd: int | None = None  # wakes the loop
        self._restored_at, self._checked_at = -inf, -inf
        self._unread: set[Any] = set()  # channels that have read broadcast messages and not delivered them

    def wake(self) -> None:
        """Wake the poller, from any thread.

        By itself it would look again when something else happens, or at its timeout: after two seconds, if
        tasks end in greenlets and the node runs as many as it may.
        """
        if self.loop is not None:
            self.loop.call_soon(turn)
        elif self._alarm_fd is not None:
            os.eventfd_write(self._alarm_fd, 1)

    def wake_in(self, seconds: float) -> None:
        """Wake the loop in some seconds. Without a loop, `get` asks each channel for its timeout."""
        if self.loop is not None:
            self.loop.call_later(seconds, turn)

    def go_on(self) -> None:
        """Keep the loop from waiting, if the messages delivered in on_poll_start have left it work.

        It has set its timeout before on_poll_start (kombu 5.7, Hub.create_loop).
        """
        if not self.loop._ready:
            return
        if self._nudge_fd is None:
            self._nudge_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            finalize(self, os.close, self._nudge_fd)
            self.loop.add_reader(self._nudge_fd, os.eventfd_read, self._nudge_fd)
        os.eventfd_write(self._nudge_fd, 1)

    # --- polling ---

    def get(self, callback: Any, timeout: float | None = None) -> Any:
        """Wait for an event, without a loop."""
        if self._alarm_fd is None:
            self._alarm_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            finalize(self, os.close, self._alarm_fd)
            self.poller.register(self._alarm_fd, stock.READ)
        self._check_subscriptions()
        waits = [channel.next_poll_in() for channel in self._channels if channel.queues]
        if timeout is not None:
            waits.append(timeout)
        return super().get(callback, min(waits, default=tuning.POLL_INTERVAL_S))

    @property
    def fds(self) -> Any:
        """The files that a loop does not watch yet. kombu's has all, and adds them in each turn."""
        if self.loop is None:
            return self._fd_to_chan
        readers = self.loop.readers
        return [fileno for fileno in self._fd_to_chan if readers.get(fileno, (None,))[0] != self.reader]

    def on_poll_start(self) -> None:
        """Let each channel send its next command, if it has one."""
        self.thread = threading.get_ident()
        for channel in self._channels:
            if channel.queues:
                channel.on_poll_start(self._register_fetcher)
            else:
                channel.prefetcher.release_stale()
            if channel.active_fanout_queues:
                self._register_LISTEN(channel)
        self.polls = True

    def handle_event(self, fileno: int, event: int) -> Any:
        """Handle an event, without a loop."""
        self.polls = False
        if fileno == self._alarm_fd:
            os.eventfd_read(fileno)
            for channel in tuple(self._unread):
                self._receive_rest(channel)
            return None
        if isinstance(self._fd_to_chan.get(fileno, (None, None))[1], PipelinedConnection):
            return self.on_readable(fileno), self  # an error event, too: kombu looks at its own connection
        return super().handle_event(fileno, event)

    def on_readable(self, fileno: int) -> Any:
        """Read a connection.

        Raises:
            Empty: No message was delivered.
            ConnectionError: The connection is lost.
        """
        channel, kind = self._fd_to_chan.get(fileno, (None, None))
        if not isinstance(kind, PipelinedConnection):
            return super().on_readable(fileno)
        self.delivered = False
        try:
            kind.read()
            if not self.delivered and channel.is_notified:
                # In this turn: a notification has no message, so a turn of the loop would be added to a
                # round trip. kombu's BRPOP gets the message itself.
                channel.on_poll_start(self._register_fetcher)
                kind.read_pending(tuning.NOTIFY_GRACE_S)
        except RedisConnectionError:
            channel.lost_fetch = False  # this error tells the node
            raise
        if not self.delivered:
            raise Empty
        return True

    # --- broadcast messages ---

    def receive_later(self, channel: Any) -> None:
        """Let a channel deliver the broadcast messages that it has read, in the next turn."""
        if channel not in self._unread:
            self._unread.add(channel)
            if self.loop is not None:
                self.loop.call_soon(self._receive_rest, channel)
            else:
                self.wake()

    def _receive_rest(self, channel: Any) -> None:
        """Deliver what a channel has read, unless it did so, or was closed, meanwhile."""
        self._unread.discard(channel)
        if channel.connection is None or not channel._in_listen:
            return
        connection = channel.subclient.connection
        if connection is not None and connection.can_read(timeout=0):
            channel._receive()

    # --- checks, now and then ---

    def maybe_restore_messages(self) -> None:
        """Requeue messages that are unacknowledged for longer than the visibility timeout."""
        now = monotonic()
        if now > self._restored_at + tuning.RESTORE_INTERVAL_S:
            self._restored_at = now
            super().maybe_restore_messages()

    def maybe_check_brpop_health(self) -> None:
        """Drop connections on which a reply is overdue. kombu calls it now and then, and has a BRPOP there.

        Raises:
            ConnectionError: There was one. Messages may have been under way: they are unacknowledged, and the
                node requeues them as it connects again.
        """
        for channel in self._channels:
            fetcher, timeout = channel.fetcher, channel.health_check_interval
            if fetcher is not None and timeout and fetcher.is_overdue(timeout):
                fetcher.disconnect()
                channel.lost_fetch = False
                raise RedisConnectionError("Redis does not answer on a connection, which was dropped.")

    def _check_subscriptions(self) -> None:
        """Check the connections of broadcast messages. kombu does so only with a loop."""
        now = monotonic()
        seconds = min((channel.health_check_interval or inf for channel in self._channels), default=inf)
        if now > self._checked_at + seconds:
            self._checked_at = now
            self.maybe_check_subclient_health()

    # --- which connections are watched ---

    def forget(self, channel: Any) -> None:
        """Stop watching a channel's connection that is closed: its descriptor may soon be another's."""
        fetcher = channel.fetcher
        self._chan_to_sock.pop((channel, fetcher.client, fetcher), None)
        fileno, fetcher.fileno = fetcher.fileno, None
        if fileno is not None and self._fd_to_chan.get(fileno) == (channel, fetcher):
            del self._fd_to_chan[fileno]
            with suppress(OSError):  # epoll has dropped a closed file by itself
                (self.loop.remove if self.loop is not None else self.poller.unregister)(fileno)

    def _register_fetcher(self, channel: Any) -> None:
        """Connect a channel, and watch its connection."""
        fetcher = channel.fetcher
        if not self._client_registered(channel, fetcher.client, fetcher):
            self._register(channel, fetcher.client, fetcher)
            fetcher.fileno = fetcher.connection._sock.fileno()
            fetcher.enable_tracking()

    def _register_LISTEN(self, channel: Any) -> None:  # noqa: N802 (kombu's name)
        """Watch a channel's connection of broadcast messages. kombu registers it in each turn."""
        channel.listened_at = monotonic()
        client = vars(channel).get("subclient")
        connection = getattr(client, "connection", None)
        is_open = connection is not None and connection._sock is not None
        if not (is_open and channel._in_listen and (channel, client, "LISTEN") in self._chan_to_sock):
            super()._register_LISTEN(channel)
