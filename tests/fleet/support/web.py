# SPDX-License-Identifier: MIT
"""A web site of the fleet, as a browser reaches it."""

from __future__ import annotations

import http.client
import json
import ssl
import time
from base64 import b64encode
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from tests.fleet.support.hosts import Tunnel

TOO_MANY_REQUESTS = 429


class Answer(NamedTuple):
    """What a site answered."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        """The body, which is JSON."""
        return json.loads(self.body)


@dataclass
class Web:
    """A site behind TLS and a password."""

    tunnel: Tunnel
    ca_file: Path
    user: str
    password: str = field(repr=False)

    def get(self, path: str) -> Answer:
        """Ask for a path with the password."""
        return self.ask(path, headers=authorization(self.user, self.password))

    def ask(
        self, path: str, headers: Mapping[str, str] | None = None, trust: ssl.SSLContext | None = None
    ) -> Answer:
        """Ask for a path with no password but what is in the headers; wait if others ask too often."""
        while True:
            with closing(self._connection(trust)) as connection:
                got = answer(connection, "GET", path, headers)
            if got.status != TOO_MANY_REQUESTS:
                return got
            time.sleep(0.2)

    def statuses(self, paths: list[str], method: str, login: tuple[str, str] | None) -> dict[str, int]:
        """Return what the site answers to each path, asked with some user and password or with none."""
        return dict(self.asked(paths, method, login, patient=True))

    def asked(
        self, paths: list[str], method: str, login: tuple[str, str] | None, *, patient: bool = False
    ) -> Iterator[tuple[str, int]]:
        """Yield each path with what the site answers.

        Args:
            paths: The paths.
            method: Method of the requests.
            login: User and password, if any.
            patient: Whether to wait, and ask again, where the site says that it is asked too often.
        """
        headers = authorization(*login) if login else None
        with closing(self._connection()) as connection:
            for path in paths:
                status = answer(connection, method, path, headers).status
                while patient and status == TOO_MANY_REQUESTS:
                    time.sleep(0.2)
                    status = answer(connection, method, path, headers).status
                yield path, status

    def ask_plainly(self, path: str) -> Answer:
        """Ask for a path without TLS."""
        plain = http.client.HTTPConnection("127.0.0.1", self.tunnel.open(), timeout=20)
        with closing(plain) as connection:
            return answer(connection, "GET", path)

    def serial(self) -> str:
        """Return the serial number of the certificate that the site shows, in hexadecimal."""
        with closing(self._connection()) as connection:
            connection.connect()
            return str((connection.sock.getpeercert() or {})["serialNumber"])

    def _connection(self, trust: ssl.SSLContext | None = None) -> http.client.HTTPSConnection:
        """Return a connection to the site, which is not opened yet."""
        context = trust or ssl.create_default_context(cafile=str(self.ca_file))
        return http.client.HTTPSConnection("127.0.0.1", self.tunnel.open(), timeout=20, context=context)


def authorization(user: str, password: str) -> dict[str, str]:
    """Return the header that carries a password."""
    return {"Authorization": f"Basic {b64encode(f'{user}:{password}'.encode()).decode()}"}


def answer(
    connection: http.client.HTTPConnection, method: str, path: str, headers: Mapping[str, str] | None = None
) -> Answer:
    """Ask for a path; the connection is opened anew if the site has closed it."""
    connection.request(method, path, headers=headers or {})
    response = connection.getresponse()
    return Answer(response.status, response.headers, response.read())
