# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How this project's modules reach the Redis of the host that they run on."""

from __future__ import annotations

import contextlib
import socket
import ssl
from typing import TYPE_CHECKING

try:
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry
except ImportError:
    redis = None

__all__ = ["redis"]  # the modules take it from here, None where the host lacks it

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any


class StrangeServerError(Exception):
    """What listens, if anything, is not the Redis that the files on disk describe; the message says why."""


def connection_arguments() -> dict[str, Any]:
    """Return the arguments of a module that connects to Redis."""
    return {
        "host": {"type": "str", "required": True},
        "port": {"type": "int", "required": True},
        "ca_file": {"type": "path", "required": True},
        "timeout": {"type": "int", "default": 10},
    }


def login_arguments() -> dict[str, Any]:
    """Return the arguments of a module that logs in, as the administrator unless it is told otherwise."""
    return {
        **connection_arguments(),
        "user": {"type": "str", "default": "admin"},
        "password": {"type": "str", "required": True, "no_log": True},
        "db": {"type": "int", "default": 0},
    }


def served_certificate(host: str, port: int, ca_file: str, timeout: int) -> bytes:
    """Return the certificate (DER) that a server shows, after it was verified.

    It is read before any password is sent, so that a program in the place of Redis learns none.

    Raises:
        StrangeServerError: Nothing listens, or it has no certificate that the CA in `ca_file` vouches for.
        TimeoutError: It listens and does not answer.
    """
    context = ssl.create_default_context(cafile=ca_file)
    try:
        with (
            socket.create_connection((host, port), timeout) as connection,
            context.wrap_socket(connection, server_hostname=host) as tls,
        ):
            certificate = tls.getpeercert(binary_form=True)
    except TimeoutError:
        raise
    except ssl.SSLCertVerificationError as error:
        raise StrangeServerError(f"its certificate is not valid: {error.verify_message}") from None
    except ConnectionRefusedError:
        raise StrangeServerError("nothing listens there") from None
    except OSError as error:  # ssl.SSLError among them
        raise StrangeServerError(f"it does not speak TLS ({error})") from None
    return certificate or b""


def new_client(**options: Any) -> Any:
    """Return a client that tries once; newer versions would try a wrong password ten times."""
    return redis.Redis(decode_responses=True, retry=Retry(NoBackoff(), 0), **options)


def login(host: str, port: int, ca_file: str, timeout: int, *, user: str, password: str, db: int = 0) -> Any:
    """Return a client that is connected and logged in.

    Raises:
        StrangeServerError: The server does not take the password.
        TimeoutError: It does not answer.
    """
    client = new_client(
        host=host,
        port=port,
        db=db,
        username=user,
        password=password,
        ssl=True,
        ssl_ca_certs=ca_file,
        ssl_check_hostname=True,
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
    )
    try:
        client.ping()
    except redis.exceptions.BusyLoadingError:
        pass  # it is logged in, and loads its data
    except redis.exceptions.TimeoutError:
        raise TimeoutError from None
    except redis.exceptions.RedisError as error:
        # the client of Debian 12 has a class of its own for neither; DENIED: it has users without a password
        if isinstance(error, redis.exceptions.AuthenticationError) or "WRONGPASS" in str(error):
            raise StrangeServerError(f"it does not take the password of user {user}") from None
        if "DENIED" in str(error):
            raise StrangeServerError("it lets users in without a password") from None
        raise
    return client


def verified_login(params: Mapping[str, Any]) -> Any:
    """Return a client that is logged in as the arguments of a module say, once the server is known.

    Raises:
        StrangeServerError: It is not the server of these files, or does not take the password.
        TimeoutError: It does not answer.
    """
    place = [params[name] for name in ("host", "port", "ca_file", "timeout")]
    served_certificate(*place)
    return login(*place, **{name: params[name] for name in ("user", "password", "db")})


def login_with_one_of(
    host: str, port: int, ca_file: str, timeout: int, *, user: str, passwords: Sequence[str]
) -> Any:
    """Return a client that is logged in with the first of the passwords that the server takes.

    While a password is being replaced, a server may not know the new one yet, or the old one no longer.

    Raises:
        StrangeServerError: The server takes none of them.
        TimeoutError: It does not answer.
    """
    *others, last = passwords
    for password in others:
        with contextlib.suppress(StrangeServerError):
            return login(host, port, ca_file, timeout, user=user, password=password)
    return login(host, port, ca_file, timeout, user=user, password=last)
