# SPDX-License-Identifier: MIT
"""The connection by which a node takes messages.

Nothing here waits for an answer: commands are sent one after another, and their answers come in that order,
when they come. Between them Redis tells by itself that a list which was looked at has changed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from kombu.transport import redis as stock
from redis.exceptions import ConnectionError as NoConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as NotYet

if TYPE_CHECKING:
    from collections.abc import Callable

# Tells of changes to the keys of those commands that come right after CLIENT CACHING YES, except one's own.
# Source: redis.io, "CLIENT TRACKING".
TRACK = ("CLIENT", "TRACKING", "ON", "OPTIN", "NOLOOP")
TRACK_NEXT = ("CLIENT", "CACHING", "YES")


# What stands for no answer, and for what Redis tells by itself.
NOTHING, PUSH = object(), object()


class Asked(NamedTuple):
    """A command that was sent, and not answered.

    Attributes:
        command: Its words.
        answered: Gets the answer.
        refused: Gets an error that is the answer; returns whether the connection can be of use still.
        tags: Of messages that it acknowledges.
        takes: Whether it may take messages.
    """

    command: tuple[Any, ...]
    answered: Callable[[Any], object] = lambda answer: None
    refused: Callable[[ResponseError], bool] = lambda error: False
    tags: tuple[str, ...] = ()
    takes: bool = False


class Lane(Hashable):
    """A connection to ask on.

    Attributes:
        client: Of Redis, for this connection.
        fileno: Of the connection that a poller watches.
    """

    def __init__(self, client: Any, told: Callable[[], object]) -> None:
        """Make no connection yet.

        Args:
            client: Of Redis; it is this lane's alone.
            told: Is called when Redis tells that something has changed.
        """
        self.client = client
        self.fileno: int | None = None
        self._asked: deque[Asked] = deque()
        self._asked_at = 0.0
        self._told = told
        self._reads = False

    def __hash__(self) -> int:
        """Each is one of its own."""
        return id(self)

    @property
    def connection(self) -> Any:
        """The connection, if it was ever made."""
        return getattr(self.client, "connection", None)

    @property
    def is_open(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return self.connection is not None and self.connection._sock is not None

    @property
    def is_idle(self) -> bool:
        """Whether no answer is to come."""
        return not self._asked

    @property
    def tags(self) -> list[str]:
        """The tags of what was acknowledged, without an answer yet."""
        return [tag for one in self._asked for tag in one.tags]

    @property
    def takes(self) -> bool:
        """Whether messages may be under way."""
        return bool(self._asked) and any(one.takes for one in self._asked)

    def begin(self) -> None:
        """Let Redis tell of changes, on a connection that was just made."""
        self.connection._parser.set_invalidation_push_handler(self._on_push)
        self.ask(Asked(TRACK))

    def ask(self, *asked: Asked) -> None:
        """Send commands in one write, and return before they are answered."""
        packed = self.connection.pack_commands([one.command for one in asked])
        if not self._asked:
            self._asked_at = monotonic()
        self._asked.extend(asked)
        # without redis-py's own check of the connection, which would take the next answer for its own
        self.connection.send_packed_command(packed, check_health=False)

    def read(self, seconds: float = 0) -> None:
        """Read what is there, or what is next to come if it comes in so many seconds.

        Raises:
            NoConnectionError: The connection is lost, or of no use any more.
        """
        self._reads = True
        try:
            while (answer := self._next(seconds)) is not NOTHING:
                if isinstance(answer, ResponseError):
                    self._refuse(answer)
                elif answer is not PUSH and answer is not None:  # None is a push that nobody here asked for
                    if not self._asked:
                        raise self._lose("it answers what was not asked")
                    self._asked_at = monotonic()
                    self._asked.popleft().answered(answer)
                if not self._has_read_more():
                    break
                seconds = 0
        finally:
            self._reads = False

    def read_within(self, seconds: float) -> None:
        """Read what comes in so many seconds, if anything is to come.

        Raises:
            NoConnectionError: The connection is lost, or of no use any more.
        """
        if self._asked:
            self.read(seconds)

    def finish(self, seconds: float) -> None:
        """Read the answers that are under way, and wait for them; unless this is called while they are read.

        Args:
            seconds: For each.

        Raises:
            NoConnectionError: They do not come.
        """
        until = monotonic() + seconds
        while self._asked and self.is_open and not self._reads:
            if monotonic() > until:
                raise self._lose("it does not answer")
            self.read_within(seconds)

    def is_overdue(self, seconds: float) -> bool:
        """Return whether an answer should have come, so that the connection is dead."""
        if not (self._asked and self.is_open):
            return False
        late = monotonic() - self._asked_at > seconds
        return late and not stock._socket_readable(self.connection._sock)

    def drop(self) -> None:
        """Give the connection up."""
        if self.connection is not None:
            self.connection.disconnect()

    def close(self) -> None:
        """Close the connection, and forget it, so that no answer on it is read any more."""
        self.drop()
        self.client.connection = None

    def forget(self) -> list[str]:
        """Forget what was asked on a connection that is gone; return the tags that it did not acknowledge."""
        tags = self.tags
        self._asked.clear()
        return tags

    def _next(self, seconds: float) -> Any:
        """Return the next answer, which may be an error, or what Redis tells by itself."""
        connection = self.connection
        if connection is None or connection._sock is None:
            return NOTHING
        try:
            return connection.read_response(push_request=True, disconnect_on_error=False, timeout=seconds)
        except ResponseError as error:
            return error
        except NotYet:  # and there may be a part of it, or what was to be read was TLS's own
            return NOTHING
        except (NoConnectionError, OSError) as error:
            raise self._lose(error) from error

    def _has_read_more(self) -> bool:
        """Return whether more has been read than what was handled. To ask the socket, too, takes longer."""
        if not self.is_open:
            return False
        reader = getattr(self.connection._parser, "_reader", None)
        if reader is not None:
            return bool(reader.has_data())
        try:  # without hiredis
            return bool(self.connection.can_read())
        except NoConnectionError:
            return True  # as is found next

    def _on_push(self, push: Any) -> object:
        """Take what Redis tells by itself, and pass it on; return the mark that it is no answer."""
        self._told()
        return PUSH

    def _refuse(self, error: ResponseError) -> None:
        """Ask whoever sent the command whether the connection can be of use.

        Raises:
            NoConnectionError: It cannot; it is closed now.
        """
        asked = self._asked[0]
        try:
            usable = asked.refused(error)
        except Exception as another:  # in whatever was tried about it
            raise self._lose(another) from another
        if not usable:
            raise self._lose(f"it refuses: {error}") from error
        self._asked.popleft()

    def _lose(self, reason: object) -> NoConnectionError:
        """Give the connection up, and return what to raise."""
        self.drop()
        return NoConnectionError(f"A node's connection to Redis is of no use any more: {reason}")
