# SPDX-License-Identifier: MIT
"""Messages between the node and its child processes: their framing in a pipe, and how they are pickled."""

from __future__ import annotations

import os
import pickle
from select import PIPE_BUF
from struct import Struct
from typing import TYPE_CHECKING, Any

from billiard.pool import ACK, READY
from billiard.reduction import ForkingPickler

if TYPE_CHECKING:
    from collections.abc import Callable

# The length of a message, which precedes it in the pipe, as in billiard.
LENGTH = Struct(">i")
NOTHING = memoryview(b"")
# Bytes of one read at most.
READ_LIMIT_BYTES = 2**20
# Types that pickle and billiard's pickler, which also sends files and sockets, encode in the same way.
PLAIN_TYPES = frozenset({bool, float, int, str, type(None)})


class UnreadableError(OSError):
    """A message of a child process has an invalid length, or cannot be unpickled."""


def frame(body: bytes) -> tuple[memoryview, memoryview, int]:
    """Return a message as Celery's writing coroutine takes it: length, body, and size of the body.

    The kernel writes up to PIPE_BUF bytes at once or not at all, so that a small message goes as one part.
    """
    size = len(body)
    header = LENGTH.pack(size)
    if LENGTH.size + size <= PIPE_BUF:
        return memoryview(header + body), NOTHING, 0
    return memoryview(header), memoryview(body), size


def read(fileno: int, size: int) -> bytes:
    """Read a number of bytes from a file that blocks.

    Raises:
        EOFError: The file has ended before.
    """
    data = os.read(fileno, min(size, READ_LIMIT_BYTES))
    if len(data) == size:
        return data
    pieces = bytearray(data)
    while len(pieces) < size:
        more = os.read(fileno, min(size - len(pieces), READ_LIMIT_BYTES))
        if not more:
            raise EOFError
        pieces += more
    return bytes(pieces)


def send_reply(pipe: Any, message: Any) -> None:
    """Write a message from a child process to the node.

    A plain message is pickled by `pickle`: billiard builds a table of reducers for each message (4.3,
    ForkingPickler).
    """
    dumps = pickle.dumps if is_plain(*message) else ForkingPickler.dumps
    body = dumps(message)
    pipe._writer._send(LENGTH.pack(len(body)) + body)


def is_plain(state: int, parts: Any) -> bool:
    """Return whether a message has only plain types: a child has accepted a task, or a task has succeeded.

    Args:
        state: billiard's kind of message, such as ACK and READY.
        parts: The rest of the message.
    """
    if state != READY:
        return bool(state == ACK)
    succeeded, result = parts[2]
    return bool(succeeded) and type(result) is tuple and PLAIN_TYPES.issuperset(map(type, result))


def handle_messages(
    data: bytes | bytearray, handle: Callable[[Any], None], errors: list[BaseException]
) -> int:
    """Handle each complete message, and return where the first incomplete one begins.

    Args:
        data: Bytes from the pipe of a child process.
        handle: Called with each message.
        errors: Collects the exceptions of `handle`: the other messages are no longer in the pipe.

    Raises:
        UnreadableError: A message is not readable. Those before it were handled.
    """
    begin = 0
    with memoryview(data) as view:
        while (end := end_of(data, begin)) <= len(data):
            try:
                message = unpickle(view[begin + LENGTH.size : end])
                if message:
                    handle(message)
            except UnreadableError:
                raise
            except BaseException as error:
                errors.append(error)
            begin = end
    return begin


def end_of(data: bytes | bytearray, begin: int) -> int:
    """Return where the message at `begin` ends; where its length ends, if that is incomplete.

    Raises:
        UnreadableError: The length is not positive.
    """
    end = begin + LENGTH.size
    if end > len(data):
        return end
    (size,) = LENGTH.unpack_from(data, begin)
    if size <= 0:
        raise UnreadableError(f"a message of {size} bytes")
    return int(end + size)


def receive(reader: Any) -> Any:
    """Return the next message from a pipe; billiard reads the pipe of a child that has ended in this way.

    Raises:
        UnreadableError: The message is not readable. billiard takes that for the end of the pipe.
    """
    return unpickle(reader.recv_bytes())


def unpickle(body: memoryview | bytes) -> Any:
    """Return a message from its bytes.

    Raises:
        UnreadableError: The message cannot be unpickled. Some exceptions can be pickled, and not unpickled.
    """
    try:
        return pickle.loads(body)  # noqa: S301 (our own process)
    except Exception as error:
        raise UnreadableError(f"a message that cannot be unpickled: {error!r:.1000}") from error
