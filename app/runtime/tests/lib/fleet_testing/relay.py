# SPDX-License-Identifier: MIT
"""A way to Redis on which a connection can stop in the midst of what Redis sends, for tests."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

from fleet_testing.broker import HOST

if TYPE_CHECKING:
    from fleet_testing.broker import Broker

CHUNK = 65536  # bytes that are read at a time


class Relay:
    """Passes connections on to a broker, within a `with`; TLS goes through as it is.

    Attributes:
        port: On which it listens.
        most: Bytes that Redis may send at a time, from when this is set. A connection on which it sends more
            gets the first half of them, and nothing after that; it stays open.
        stalled: Connections that have met this.
    """

    def __init__(self, broker: Broker) -> None:
        """Listen.

        Args:
            broker: To which connections are passed on.
        """
        self.most: int | None = None
        self.stalled = 0
        self._broker = broker
        self._listener = socket.create_server((HOST, 0))
        self.port = int(self._listener.getsockname()[1])
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> Self:
        """Begin to accept connections."""
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Close all connections."""
        for one in (self._listener, *self._sockets):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def url(self, user: str) -> str:
        """Return the broker's URL for a component, by way of this."""
        url = self._broker.url(user)
        return url.replace(f":{urlsplit(url).port}/", f":{self.port}/")

    def _accept(self) -> None:
        """Pass on each connection that comes, in threads of its own."""
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection((HOST, self._broker.port))
                self._sockets += [client, server]
                threading.Thread(target=self._pass_on, args=(client, server, False), daemon=True).start()
                threading.Thread(target=self._pass_on, args=(server, client, True), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, is_from_server: bool) -> None:
        """Pass on what one end sends, until it ends; or until it sends too much at a time."""
        with suppress(OSError):
            while data := source.recv(CHUNK):
                if is_from_server and self.most is not None and len(data) > self.most:
                    target.sendall(data[: len(data) // 2])
                    self.stalled += 1
                    return
                target.sendall(data)
            target.shutdown(socket.SHUT_RDWR)
