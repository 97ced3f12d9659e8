# SPDX-License-Identifier: MIT
"""Notifications to systemd's watchdog, which restarts a process that hangs."""

from __future__ import annotations

import faulthandler
import logging
import os
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery import Celery

# Seconds for the broker to reply before it counts as away.
REPLY_TIMEOUT_S = 3.0

logger = logging.getLogger(__name__)


class Systemd:
    """The notification socket of systemd. Source: sd_notify(3)."""

    @classmethod
    def expecting(cls, seconds: float) -> Self | None:
        """Return the socket that the environment names; None if systemd expects no notifications.

        Args:
            seconds: The watchdog time of the unit; 0 if it has none.
        """
        address = os.environ.get("NOTIFY_SOCKET", "")
        return cls(address, seconds) if address and seconds else None

    def __init__(self, address: str, seconds: float) -> None:
        """Create a socket.

        Args:
            address: Of systemd's socket: a path, or an abstract name that begins with @.
            seconds: The watchdog time.
        """
        self.address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog = f"WATCHDOG=1\nWATCHDOG_USEC={seconds * 1e6:.0f}"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self.socket.setblocking(False)

    def notify(self, status: str) -> None:
        """Notify systemd that the process works, with its status.

        Each notification has the watchdog time: systemd ignores it until it knows the process from the PID
        file, and waits longer until then.
        """
        with suppress(OSError):  # the next notification is enough
            self.socket.sendto(f"{self.watchdog}\nSTATUS={status}".encode(), self.address)


def start_watchdog(run: Callable[[], object]) -> None:
    """Start the thread of a watchdog.

    Args:
        run: Runs in the thread.
    """
    if not faulthandler.is_enabled():
        faulthandler.enable(2)  # systemd sends SIGABRT to a process that hangs: the journal gets its stacks
    threading.Thread(target=run, name="watchdog", daemon=True).start()


def broker_answers(app: Celery) -> bool:
    """Return whether the broker replies on a new connection within REPLY_TIMEOUT_S.

    A thread asks, because the retries of the client take longer.
    """
    replies: list[bool] = []
    is_over = threading.Event()

    def ping() -> None:
        """Ping the broker."""
        try:
            with app.connection_for_read() as connection:
                connection.ensure_connection(max_retries=1, interval_start=0)
                replies.append(connection.default_channel.client.ping())
        except Exception as error:  # whatever it is, a new process would get it, too
            logger.debug("The broker does not answer: %s", error)
        finally:
            is_over.set()

    threading.Thread(target=ping, name="watchdog-broker", daemon=True).start()
    is_over.wait(REPLY_TIMEOUT_S)
    return bool(replies)
