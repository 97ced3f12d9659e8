# SPDX-License-Identifier: MIT
"""Reads one reply from a connection of redis-py within a time limit, in each supported version.

redis-py 8 does so itself. With redis-py 8 as the oldest supported version, this module can go.
"""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any

from redis._parsers.hiredis import NOT_ENOUGH_DATA
from redis.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable

try:
    PUSHES: tuple[Any, ...] = (importlib.import_module("hiredis").PushNotification,)
except (ImportError, AttributeError):  # none, or one that is too old (versions.py)
    PUSHES = ()
HAS_TIMEOUT = "timeout" in inspect.signature(AbstractConnection.read_response).parameters


def read(connection: Any, timeout: float) -> Any:
    """Return the next reply, which may be a push.

    Without hiredis, redis-py before 8 waits for the rest of a reply of which a part has come, up to its
    socket timeout.

    Args:
        connection: A connection of redis-py, which is open.
        timeout: Seconds to wait.

    Raises:
        TimeoutError: There is no whole reply.
        ConnectionError: The connection is lost.
        ResponseError: The reply is an error.
    """
    if HAS_TIMEOUT:
        return connection.read_response(push_request=True, disconnect_on_error=False, timeout=timeout)
    parser = connection._parser
    if not hasattr(parser, "_reader"):
        if not connection.can_read(timeout):
            raise RedisTimeoutError
    else:
        while parser._next_response is NOT_ENOUGH_DATA:
            if not connection.can_read(timeout):  # True after a part of a reply, too
                raise RedisTimeoutError
            timeout = 0
    reply = connection.read_response(push_request=True, disconnect_on_error=False)
    if isinstance(reply, RedisConnectionError):  # an error reply such as LOADING, parsed by can_read
        raise reply
    return reply


def handle_invalidations(connection: Any, handler: Callable[[Any], object]) -> None:
    """Let a function handle the notifications of CLIENT TRACKING, of which `read` returns its result.

    The parser of redis-py 5 for hiredis knows no pushes: there `read` returns the notification.
    """
    if set_handler := getattr(connection._parser, "set_invalidation_push_handler", None):
        set_handler(handler)


def is_push(reply: Any) -> bool:
    """Return whether a reply is a push that no handler took."""
    return isinstance(reply, PUSHES)
