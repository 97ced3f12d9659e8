# SPDX-License-Identifier: MIT
"""Reads the messages of child processes: all that a pipe has at once."""

from __future__ import annotations

import logging
import os
import signal
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any

from fleet_runtime.compat import older_pool
from fleet_runtime.prefork.framing import READ_LIMIT_BYTES, UnreadableError, handle_messages

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

# Bytes of the first read: the message of a task that succeeded is shorter.
FIRST_READ_BYTES = 8192
# Seconds to wait for a child process to write or read, before its state is checked again.
POLL_INTERVAL_S = 0.05


class ResultHandler(older_pool.ResultHandler):
    """Celery's handler of results, with one read for all messages. Celery reads each in two parts.

    Attributes:
        parts: Incomplete messages, by the file number of their pipe. They are kept here and not in the loop,
            which forgets them when the connection to the broker is lost.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Create a handler with Celery's arguments."""
        super().__init__(*args, **kwargs)
        self.parts: dict[int, bytearray] = {}

    def _make_process_result(self, hub: Any) -> Callable[[int], None]:
        """Return the callback for a readable pipe."""
        pipes, parts, handle = self.fileno_to_outq, self.parts, self.on_state_change

        def on_result_readable(fileno: int) -> None:
            if fileno not in pipes:  # its process is gone
                parts.pop(fileno, None)
                hub.remove_reader(fileno)
                return
            errors: list[BaseException] = []
            data: bytes | bytearray = parts.pop(fileno, b"")
            try:
                while True:
                    chunk = os.read(fileno, READ_LIMIT_BYTES if data else FIRST_READ_BYTES)
                    if not chunk:
                        hub.remove_reader(fileno)
                        break
                    if data:
                        data += chunk
                    else:
                        data = chunk
                    end = handle_messages(data, handle, errors)
                    if end == len(data):
                        break
                    if end or data is chunk:
                        data = bytearray(memoryview(data)[end:])
            except BlockingIOError:
                if isinstance(data, bytearray):
                    parts[fileno] = data
            except UnreadableError as error:
                hub.remove_reader(fileno)
                kill_process(pipes[fileno], f"has sent an unreadable message ({error})")
            except OSError:
                hub.remove_reader(fileno)
            if errors:
                raise errors[0]

        return on_result_readable

    def _finish_partial_read(self, fd: int, proc: Any) -> bool:
        """Read the rest of a message as the node stops; return whether that failed."""
        until = monotonic() + self.partial_read_deadline
        while fd in self.parts:
            self.handle_event(fd)
            if fd not in self.parts:
                break
            if monotonic() > until or not proc._is_alive():
                logger.warning("%r did not finish the message that it was sending.", proc)
                return True
            proc.outq._reader.poll(POLL_INTERVAL_S)
        return False


def kill_process(process: Any, reason: str) -> None:
    """Kill a child process. The pool replaces it, and its task runs again.

    Args:
        process: A process of billiard.
        reason: The predicate of a sentence for the log, whose subject is the process.
    """
    logger.error("%r %s, and is killed.", process, reason)
    with suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)
