# SPDX-License-Identifier: MIT
"""What a process tells systemd, so that one which hangs is started anew, and what excuses one that waits."""

from __future__ import annotations

import logging
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from celery import Celery

# Seconds for the broker to answer.
ANSWER = 3.0

logger = logging.getLogger(__name__)


class Systemd:
    """The way to systemd. Source: sd_notify(3)."""

    def __init__(self, address: str, seconds: float) -> None:
        """Prepare for an address, which may be a file's or an abstract one."""
        self.address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog = f"WATCHDOG=1\nWATCHDOG_USEC={seconds * 1e6:.0f}"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self.socket.setblocking(False)

    def answer(self, status: str) -> None:
        """Say that the process is well, and what it does.

        The time goes with every answer: systemd takes none before it knows a node's process from its PID
        file, and waits longer until then.
        """
        with suppress(OSError):  # the next one will do
            self.socket.sendto(f"{self.watchdog}\nSTATUS={status}".encode(), self.address)


def answers(app: Celery) -> bool:
    """Return whether the broker answers somebody new, in time: the client's own retries take longer."""
    said: list[bool] = []
    is_over = threading.Event()

    def ask() -> None:
        """Ask, in a thread of its own."""
        try:
            with app.connection_for_read() as connection:
                connection.ensure_connection(max_retries=1, interval_start=0)
                said.append(connection.default_channel.client.ping())
        except Exception as error:  # whatever it is, a new process would fare no better
            logger.debug("The broker does not answer: %s", error)
        finally:
            is_over.set()

    threading.Thread(target=ask, name="watchdog-broker", daemon=True).start()
    is_over.wait(ANSWER)
    return bool(said)
