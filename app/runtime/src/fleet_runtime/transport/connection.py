# SPDX-License-Identifier: MIT
"""A pipelined connection to Redis that never waits for a reply.

Commands are sent one after another. Their replies come in the same order, whenever they come. Between them,
Redis sends a push message when a list that was looked at has changed (CLIENT TRACKING).
"""

from __future__ import annotations

import select
from collections import deque
from collections.abc import Hashable
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from fleet_runtime.compat import redis_reads

if TYPE_CHECKING:
    from collections.abc import Callable

#: Notify of changes to the keys of each command that follows CLIENT CACHING YES, but not of this connection's
#: own changes. Source: redis.io, "CLIENT TRACKING".
TRACK = ("CLIENT", "TRACKING", "ON", "OPTIN", "NOLOOP")
TRACK_NEXT = ("CLIENT", "CACHING", "YES")

#: Sentinels: no reply yet; a push message.
NOTHING, PUSH = object(), object()


def is_readable(sock: Any) -> bool:
    """Return whether a socket has data to read, without reading it."""
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    return bool(poller.poll(0))


class PendingCommand(NamedTuple):
    """A command, until its reply has come.

    Attributes:
        command: Its name and its arguments.
        on_reply: Is called with the reply.
        on_error: Is called with an error reply. Returns whether the connection can still be used.
        tags: Delivery tags that the command acknowledges.
        is_fetch: Whether the command may fetch messages.
    """

    command: tuple[Any, ...]
    on_reply: Callable[[Any], object] = lambda reply: None
    on_error: Callable[[ResponseError], bool] = lambda error: False
    tags: tuple[str, ...] = ()
    is_fetch: bool = False


class PipelinedConnection(Hashable):
    """A connection with its pending commands.

    Attributes:
        client: The client of redis-py that owns the connection.
        fileno: File descriptor that a poller watches; None while none does.
    """

    def __init__(self, client: Any, on_invalidate: Callable[[], object]) -> None:
        """Create it without connecting.

        Args:
            client: A client of redis-py, for this object alone.
            on_invalidate: Is called when Redis reports that a tracked key has changed.
        """
        self.client = client
        self.fileno: int | None = None
        self._pending: deque[PendingCommand] = deque()
        self._waiting_since = 0.0  # when the oldest pending command was sent, or the last reply came
        self._on_invalidate = on_invalidate
        self._is_reading = False

    def __hash__(self) -> int:
        """Hash by identity."""
        return id(self)

    @property
    def connection(self) -> Any:
        """The connection of redis-py; None before the first one is made."""
        return getattr(self.client, "connection", None)

    @property
    def is_open(self) -> bool:
        """Whether the connection is open, as far as is known."""
        return self.connection is not None and self.connection._sock is not None

    @property
    def is_idle(self) -> bool:
        """Whether no reply is pending."""
        return not self._pending

    @property
    def pending_tags(self) -> list[str]:
        """Delivery tags whose acknowledgement has no reply yet."""
        return [tag for pending in self._pending for tag in pending.tags]

    @property
    def has_pending_fetch(self) -> bool:
        """Whether messages may be under way."""
        return bool(self._pending) and any(pending.is_fetch for pending in self._pending)

    def enable_tracking(self) -> None:
        """Turn on CLIENT TRACKING on a connection that was just made."""
        redis_reads.handle_invalidations(self.connection, self._on_push)
        self.send(PendingCommand(TRACK))

    def send(self, *commands: PendingCommand) -> None:
        """Send commands in one write, without waiting for their replies.

        Raises:
            ConnectionError: The connection is lost.
        """
        packed = self.connection.pack_commands([pending.command for pending in commands])
        if not self._pending:
            self._waiting_since = monotonic()
        self._pending.extend(commands)
        # redis-py's own check of the connection would take the next reply for the one to its PING
        self.connection.send_packed_command(packed, check_health=False)

    def read(self, timeout: float = 0) -> None:
        """Handle the replies that have come.

        Args:
            timeout: Seconds to wait for the first one.

        Raises:
            ConnectionError: The connection is lost, or cannot be used any more. It is closed now.
        """
        self._is_reading = True
        try:
            while (reply := self._next(timeout)) is not NOTHING:
                if isinstance(reply, ResponseError):
                    self._handle_error(reply)
                elif reply is not PUSH and reply is not None:  # None: a push message of another kind
                    if not self._pending:
                        raise self._fail("a reply came to no command")
                    self._waiting_since = monotonic()
                    self._pending.popleft().on_reply(reply)
                if not self._has_buffered():
                    break
                timeout = 0
        finally:
            self._is_reading = False

    def read_pending(self, timeout: float) -> None:
        """Handle the replies that come within some seconds, if any is pending.

        Raises:
            ConnectionError: The connection is lost, or cannot be used any more. It is closed now.
        """
        if self._pending:
            self.read(timeout)

    def wait_for_replies(self, timeout: float) -> None:
        """Wait for all pending replies, unless this is called while one is handled.

        Args:
            timeout: Seconds for each of them.

        Raises:
            ConnectionError: They do not come. The connection is closed now.
        """
        until = monotonic() + timeout
        while self._pending and self.is_open and not self._is_reading:
            if monotonic() > until:
                raise self._fail("no reply came in time")
            self.read_pending(timeout)

    def is_overdue(self, timeout: float) -> bool:
        """Return whether a reply is pending for longer than a timeout in seconds: the connection is dead."""
        if not (self._pending and self.is_open):
            return False
        late = monotonic() - self._waiting_since > timeout
        return late and not is_readable(self.connection._sock)

    def disconnect(self) -> None:
        """Close the connection. The next use makes a new one."""
        if self.connection is not None:
            self.connection.disconnect()

    def close(self) -> None:
        """Close the connection for good: no reply on it is read any more."""
        self.disconnect()
        self.client.connection = None

    def drop_pending(self) -> list[str]:
        """Forget the pending commands of a connection that is gone.

        Returns:
            The delivery tags that they may not have acknowledged.
        """
        tags = self.pending_tags
        self._pending.clear()
        return tags

    def _next(self, timeout: float) -> Any:
        """Return the next reply, which may be an error, PUSH, or NOTHING.

        Raises:
            ConnectionError: The connection is lost. It is closed now.
        """
        connection = self.connection
        if connection is None or connection._sock is None:
            return NOTHING
        try:
            reply = redis_reads.read(connection, timeout)
            return self._on_push(reply) if redis_reads.is_push(reply) else reply
        except ResponseError as error:
            return error
        except (
            RedisTimeoutError
        ):  # nothing yet, or a part of a reply, or a TLS record without application data
            return NOTHING
        except (RedisConnectionError, OSError) as error:
            raise self._fail(error) from error

    def _has_buffered(self) -> bool:
        """Return whether replies are in the parser's buffer. Asking the socket as well would take longer."""
        if not self.is_open:
            return False
        reader = getattr(self.connection._parser, "_reader", None)
        if reader is not None:
            return bool(reader.has_data())
        try:  # redis-py's parser without hiredis
            return bool(self.connection.can_read())
        except RedisConnectionError:
            return True  # the next read raises it

    def _on_push(self, push: Any) -> object:
        """Handle an invalidation push."""
        self._on_invalidate()
        return PUSH

    def _handle_error(self, error: ResponseError) -> None:
        """Let the sender of a command handle an error reply.

        Raises:
            ConnectionError: The connection cannot be used any more. It is closed now.
        """
        try:
            usable = self._pending[0].on_error(error)
        except Exception as another:  # from the attempt to handle the first one
            raise self._fail(another) from another
        if not usable:
            raise self._fail(f"Redis refuses a command: {error}") from error
        self._pending.popleft()

    def _fail(self, reason: object) -> RedisConnectionError:
        """Disconnect, and return the error to raise."""
        self.disconnect()
        return RedisConnectionError(f"The connection that fetches messages cannot be used any more: {reason}")
