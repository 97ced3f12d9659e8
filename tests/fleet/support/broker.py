# SPDX-License-Identifier: MIT
"""Redis, as an application outside the fleet reaches it."""

from __future__ import annotations

import socket
import ssl
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from tests.fleet.support.hosts import Tunnel


class Broker:
    """The broker and its users."""

    def __init__(self, tunnel: Tunnel, secrets: Mapping[str, str], ca_file: Path, db: int) -> None:
        """Keep how it is reached."""
        self._tunnel = tunnel
        self._secrets = secrets
        self._ca_file = ca_file
        self._db = int(db)
        self._denials: list[dict[str, Any]] = []

    def learn(self, secrets: Mapping[str, str]) -> None:
        """Take other passwords from now on."""
        self._secrets = secrets

    def password(self, user: str) -> str:
        """Return a user's password."""
        return self._secrets[f"redis_{user}"]

    def open(self) -> int:
        """Return a port of this machine that leads to Redis, now."""
        return self._tunnel.open()

    @contextmanager
    def connect(self, user: str | None = None, **options: Any) -> Iterator[redis.Redis]:
        """Connect to Redis for a while: over TLS, as a user, and once.

        Args:
            user: One of the fleet's users.
            options: What is otherwise, for redis-py.
        """
        given = {"username": user, "password": self.password(user)} if user else {}
        tls = {"ssl": True, "ssl_ca_certs": str(self._ca_file), "ssl_check_hostname": True}
        defaults = {
            **given,
            **tls,
            "socket_timeout": 10,
            "retry": Retry(NoBackoff(), 0),
            "decode_responses": True,
        }
        port = self.open()
        with redis.Redis(host="127.0.0.1", port=port, db=self._db, **{**defaults, **options}) as client:
            yield client

    def url(self, user: str) -> str:
        """Return the URL that an application is configured with."""
        password = quote(self.password(user), safe="")
        tls = f"ssl_cert_reqs=required&ssl_ca_certs={quote(str(self._ca_file))}"
        return f"rediss://{user}:{password}@127.0.0.1:{self.open()}/{self._db}?{tls}"

    def serial(self) -> str:
        """Return the serial number of the certificate that Redis shows, in hexadecimal."""
        trust = ssl.create_default_context(cafile=str(self._ca_file))
        with (
            socket.create_connection(("127.0.0.1", self.open()), timeout=10) as plain,
            trust.wrap_socket(plain, server_hostname="127.0.0.1") as secured,
        ):
            return str((secured.getpeercert() or {})["serialNumber"])

    def answers(self) -> bool:
        """Whether Redis answers."""
        with self.connect("health") as client:
            return bool(client.ping())

    # --- what the ACL denied ---

    @contextmanager
    def expected_denials(self) -> Iterator[None]:
        """Keep what is denied meanwhile out of `denials`: the suite does it on purpose."""
        self.keep_denials()
        try:
            yield
        finally:
            with self.connect("admin") as client:
                client.acl_log_reset()

    def keep_denials(self) -> None:
        """Note what Redis has denied so far, before a restart of Redis makes it forget."""
        with self.connect("admin") as client:
            self._denials += client.acl_log()
            client.acl_log_reset()

    def denials(self) -> list[dict[str, Any]]:
        """Return all that Redis denied to the fleet since the suite began."""
        self.keep_denials()
        return self._denials
