"""Lets a sandbox without a network reach the package index, and nothing else.

A package that is built from its source runs code of its own while uv has to reach the index. The sandbox has
a network of its own then, in which nothing is but its loopback. There `index_gate_inside` listens as an HTTP
proxy, and hands each connection through a Unix socket to the gate, outside. The gate connects to the hosts of
the index, and refuses all others.
"""

from __future__ import annotations

import base64
import inspect
import select
import socket
import socketserver
import ssl
import tempfile
import threading
import tomllib
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote, urlsplit
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]  # typeshed lacks it

from ansible.module_utils import index_gate_inside

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

CONFIG = "/etc/uv/uv.toml"
PYPI = "https://pypi.org/simple"
# The hosts from which an index gives its files, where these are others than its own.
FILES = {"pypi.org": "files.pythonhosted.org", "test.pypi.org": "test-files.pythonhosted.org"}
PORTS = {"http": 80, "https": 443}
MOST_HEAD = 65536  # bytes
PATIENCE = 60.0  # seconds for a host to be reached, and for a proxy to answer


class Place(NamedTuple):
    """A host and its port."""

    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> Place | None:
        """Return where a URL leads, or None if it is none of HTTP. `host` and `host:port` are HTTPS."""
        parts = urlsplit(url if "://" in url else f"https://{url}")
        if parts.scheme not in PORTS or not parts.hostname:
            return None
        return cls(parts.hostname.lower(), parts.port or PORTS[parts.scheme])

    def __str__(self) -> str:
        """Return it as a user writes it."""
        return f"{self.host}:{self.port}"


def places(environment: Mapping[str, str], others: Iterable[str] = ()) -> set[Place]:
    """Return where uv may have to go.

    Args:
        environment: Its variables, which name its indexes.
        others: `host` or `host:port`, from which an index gives its files.
    """
    urls = [word.split("=", 1)[-1] if "=" in word.split("://")[0] else word for word in _words(environment)]
    if not any(environment.get(name) for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL")):
        urls.append(PYPI)
    urls += _configured(Path(environment.get("UV_CONFIG_FILE") or CONFIG))
    found = {place for url in (*urls, *others) if (place := Place.of(url))}
    return found | {Place(FILES[place.host], 443) for place in found if place.host in FILES}


def _words(environment: Mapping[str, str]) -> list[str]:
    """Return what uv's variables name as indexes, each a URL, or a name and a URL."""
    names = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS")
    return [word for name in names for word in environment.get(name, "").replace(",", " ").split()]


def _configured(file: Path) -> list[str]:
    """Return the URLs of the indexes that a uv.toml names."""
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []  # uv says what is wrong with it
    both = [table, table.get("pip", {})]
    return [
        str(url)
        for part in both
        for url in (
            *([part["index-url"]] if "index-url" in part else []),
            *part.get("extra-index-url", []),
            *part.get("find-links", []),
            *(index["url"] for index in part.get("index", []) if "url" in index),
        )
    ]


@contextmanager
def open_gate(
    environment: Mapping[str, str], others: Iterable[str] = (), within: str | None = None
) -> Iterator[IndexGate]:
    """Open a gate, and close it: see `IndexGate`.

    Its socket is in a directory that everybody may enter, made within one that the sandbox shows; if none is
    named, in that for temporary files.
    """
    with tempfile.TemporaryDirectory(prefix="celery-release-", dir=within) as folder:
        Path(folder).chmod(0o755)
        with IndexGate(Path(folder), environment, others) as gate:
            yield gate


class IndexGate:
    """The outer end. It is open within a `with` statement."""

    def __init__(self, folder: Path, environment: Mapping[str, str], others: Iterable[str] = ()) -> None:
        """Take where the socket goes, and where it leads.

        Args:
            folder: Where the socket is made. The sandbox must see it.
            environment: uv's variables: its indexes, and the proxies by which they are reached.
            others: Further hosts, as of `places`.
        """
        self.socket = folder / "index.sock"
        self.places = places(environment, others)
        self.refused: set[Place] = set()
        self._environment = environment

    def __enter__(self) -> IndexGate:
        """Open it."""
        gate = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with suppress(OSError):
                    gate._serve(self.request)

        class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
            daemon_threads = True
            block_on_close = False

        self.socket.unlink(missing_ok=True)
        self._server = Server(str(self.socket), Handler)
        self.socket.chmod(0o666)  # whoever sees the directory may use it
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True
        ).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self._server.shutdown()
        self._server.server_close()
        self.socket.unlink(missing_ok=True)

    def command(self, python: str | Path, argv: Iterable[str | Path]) -> list[str]:
        """Return the command that runs another one with a proxy that leads here."""
        code = inspect.getsource(index_gate_inside)
        return [str(python), "-I", "-S", "-c", code, str(self.socket), *map(str, argv)]

    @property
    def advice(self) -> str:
        """Return what to say of a command that failed, empty if nothing was refused."""
        if not self.refused:
            return ""
        listed = ", ".join(map(str, sorted(self.refused)))
        return (
            f"\nWhat is built from its source reaches the package index only, and asked for {listed}. If the "
            "index gives its files from there, name that in celery_app_index_hosts."
        )

    def _serve(self, client: socket.socket) -> None:
        """Answer one request for a connection."""
        client.settimeout(PATIENCE)
        head, rest = _read_head(client)
        words = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
        if len(words) != 3:
            _answer(client, "400 Bad Request")
            return
        method, target, _ = words
        tunnel = method == "CONNECT"
        place = Place.of(target)
        if place is None or not (tunnel or method in {"GET", "HEAD"}):
            _answer(client, "405 Method Not Allowed")
        elif place not in self.places:
            self.refused.add(place)
            _answer(client, "403 Forbidden")
        else:
            try:
                server, early, direct = self._connect(place, tunnel=tunnel)
            except OSError as error:
                _answer(client, "502 Bad Gateway", f"{place} cannot be reached: {error}")
                return
            with server:
                if tunnel:
                    client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n" + early)
                    server.sendall(rest)
                    _relay(client, server)
                else:  # one request a connection: the next could name another host
                    server.sendall(_alone(head, target, direct=direct))
                    _copy(server, client)

    def _connect(self, place: Place, *, tunnel: bool) -> tuple[socket.socket, bytes, bool]:
        """Connect to a place, by the proxy that the environment names for it.

        Returns:
            The connection, what came by it already, and whether it leads there without a proxy.
        """
        url = self._proxy(place, "https" if tunnel else "http")
        if not url:
            return socket.create_connection(place, timeout=PATIENCE), b"", True
        parts, proxy = urlsplit(url), Place.of(url)
        if proxy is None:
            raise OSError(f"{parts.scheme} is no kind of proxy that is known here, only http and https are")
        server = socket.create_connection(proxy, timeout=PATIENCE)
        if parts.scheme == "https":
            server = ssl.create_default_context().wrap_socket(server, server_hostname=proxy.host)
        early, login = b"", _login(parts.username, parts.password)
        if tunnel:
            server.sendall(f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n{login}\r\n".encode())
            head, early = _read_head(server)
            status = head.split(b"\r\n", 1)[0].split(b" ")[1:2]
            if status != [b"200"]:
                server.close()
                raise OSError(f"the proxy {proxy} answers {b' '.join(status).decode('latin-1')}")
        return server, early, False

    def _proxy(self, place: Place, scheme: str) -> str:
        """Return the URL of the proxy by which a place is reached, or nothing."""
        found = {name.lower(): value for name, value in self._environment.items() if value}
        if proxy_bypass_environment(str(place), {"no": found.get("no_proxy", "")}):
            return ""
        url = found.get(f"{scheme}_proxy") or found.get("all_proxy") or ""
        return url if "://" in url or not url else f"http://{url}"


def _login(user: str | None, password: str | None) -> str:
    """Return the header that says to a proxy who asks."""
    if user is None:
        return ""
    pair = f"{unquote(user)}:{unquote(password or '')}".encode()
    return f"Proxy-Authorization: Basic {base64.b64encode(pair).decode()}\r\n"


def _read_head(peer: socket.socket) -> tuple[bytes, bytes]:
    """Return what comes before the first empty line, and what came after it.

    Raises:
        OSError: It does not end.
    """
    data = b""
    while b"\r\n\r\n" not in data:
        more = peer.recv(4096)
        if not more or len(data) > MOST_HEAD:
            raise OSError("the head of the message does not end")
        data += more
    head, rest = data.split(b"\r\n\r\n", 1)
    return head, rest


def _alone(head: bytes, target: str, *, direct: bool) -> bytes:
    """Return the head of a request that is the only one of its connection."""
    first, *lines = head.split(b"\r\n")
    if direct:  # a server is asked for the path alone
        parts = urlsplit(target)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        first = b" ".join([first.split(b" ")[0], path.encode("latin-1"), b"HTTP/1.1"])
    kept = [line for line in lines if not line.lower().startswith((b"connection:", b"proxy-connection:"))]
    return b"\r\n".join([first, *kept, b"Connection: close", b"", b""])


def _answer(client: socket.socket, status: str, why: str = "") -> None:
    """Answer in place of the host."""
    body = why.encode()
    client.sendall(
        f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body
    )


def _copy(source: socket.socket, target: socket.socket) -> None:
    """Copy all that comes."""
    while data := source.recv(65536):
        target.sendall(data)


def _relay(one: socket.socket, other: socket.socket) -> None:
    """Copy in both directions until one of them ends, and what the other still says."""
    open_, peers = {one, other}, {one: other, other: one}
    while open_:
        readable, _, _ = select.select(list(open_), [], [], PATIENCE * 5)
        if not readable:
            return
        for source in readable:
            # a TLS connection to a proxy may hold bytes that select does not see: they are read at once
            data = source.recv(65536)
            while isinstance(source, ssl.SSLSocket) and source.pending():
                data += source.recv(source.pending())
            if data:
                peers[source].sendall(data)
            else:
                open_.discard(source)
                with suppress(OSError):
                    peers[source].shutdown(socket.SHUT_WR)
