# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lets a sandbox without a network reach the package index, and nothing else.

A package that is built from its source runs code of its own while uv has to reach the index. The sandbox has
a network of its own then, in which nothing is but its loopback. There `index_gate_inside` listens as an HTTP
proxy, and hands each connection through a Unix socket to the gate, outside. The gate connects to the hosts of
the index, by the proxies that uv would take, and refuses all others. What is said within TLS it does not see.
"""

from __future__ import annotations

import base64
import inspect
import os
import re
import select
import socket
import socketserver
import ssl
import tempfile
import threading
import tomllib
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote, urlsplit
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]  # typeshed lacks it

from ansible_collections.fleet.celery.plugins.module_utils import index_gate_inside
from ansible_collections.fleet.celery.plugins.module_utils.index_gate_inside import PROXIES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

CONFIG = "/etc/uv/uv.toml"
# The hosts from which an index gives its files, where these are others than its own.
FILES = {"pypi.org": "files.pythonhosted.org", "test.pypi.org": "test-files.pythonhosted.org"}
PORTS = {"http": 80, "https": 443}
# What the sandbox may ask: a tunnel, or a file by plain HTTP. A request that is passed on is made anew.
TUNNEL = re.compile(
    rb"CONNECT (?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):(?P<port>[0-9]{1,5}) HTTP/1\.[01]"
)
GET = re.compile(
    rb"(?P<method>GET|HEAD) http://(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{1,5}))?"
    rb"(?P<path>/[!$%&'()*+,./:;=?@~A-Za-z0-9_-]*)? HTTP/1\.[01]"
)
HEADER = re.compile(rb"[A-Za-z0-9-]+:[ \t\x21-\x7e\x80-\xff]*")
ALSO_OURS = (
    b"connection", b"content-length", b"host", b"proxy-authorization", b"proxy-connection",
    b"transfer-encoding",
)  # fmt: skip
MOST_HEAD, MOST_REFUSED, MOST_AT_ONCE = 65536, 20, 256  # bytes, places, connections
PATIENCE = 60.0  # seconds for a host to be reached, and for a proxy to answer


class Place(NamedTuple):
    """A host and its port."""

    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> Place | None:
        """Return where a URL leads, or None if it is none of HTTP. `host` and `host:port` are HTTPS."""
        try:
            parts = urlsplit(url if "://" in url else f"https://{url}")
            port = parts.port
        except ValueError:
            return None
        if parts.scheme not in PORTS or not parts.hostname:
            return None
        return cls(parts.hostname.lower(), port or PORTS[parts.scheme])

    def __str__(self) -> str:
        """Return it as a request names it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Indexes:
    """Where uv may have to go, and how it gets there."""

    def __init__(self, environment: Mapping[str, str], others: Iterable[str] = ()) -> None:
        """Take what says so.

        Args:
            environment: uv's variables, which name its indexes, its configuration file and proxies.
            others: `host` or `host:port`, from which an index gives its files.
        """
        config = _read(Path(environment.get("UV_CONFIG_FILE") or CONFIG))
        said = {name.lower(): value for name, value in environment.items() if value}
        listed = config.get("no-proxy", "")
        written = {
            "http_proxy": config.get("http-proxy", ""),
            "https_proxy": config.get("https-proxy", ""),
            "no_proxy": listed if isinstance(listed, str) else ",".join(map(str, listed)),
        }
        self._proxies = {name: said.get(name) or str(written.get(name, "")) for name in PROXIES}
        urls = [_url(word) for word in _words(environment)]
        found = {place for url in (*urls, *_urls(config), *others) if (place := Place.of(url))}
        if not (
            environment.get("UV_DEFAULT_INDEX") or environment.get("UV_INDEX_URL") or _has_default(config)
        ):
            found.add(Place("pypi.org", 443))
        self.places = found | {Place(FILES[place.host], 443) for place in found if place.host in FILES}

    def proxy(self, place: Place, scheme: str) -> str:
        """Return the URL of the proxy by which a place is reached, or nothing."""
        if proxy_bypass_environment(str(place), {"no": self._proxies["no_proxy"]}):
            return ""
        url = self._proxies[f"{scheme}_proxy"] or self._proxies["all_proxy"]
        return url if "://" in url or not url else f"http://{url}"


def _words(environment: Mapping[str, str]) -> list[str]:
    """Return what uv's variables name as indexes, each a URL, or a name and a URL."""
    names = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS")
    return [word for name in names for word in environment.get(name, "").replace(",", " ").split()]


def _url(word: str) -> str:
    """Return the URL of `name=URL`, or of a URL alone."""
    return word.split("=", 1)[1] if "=" in word.split("://", 1)[0] else word


def _read(file: Path) -> dict[str, Any]:
    """Return what a uv.toml says; nothing if it cannot be read, which uv will say."""
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _indexes(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the tables of indexes of a uv.toml."""
    return [index for part in (config, config.get("pip", {})) for index in part.get("index", [])]


def _has_default(config: dict[str, Any]) -> bool:
    """Return whether a uv.toml names an index in place of PyPI."""
    named = any("index-url" in part for part in (config, config.get("pip", {})))
    return named or any(index.get("default") for index in _indexes(config))


def _urls(config: dict[str, Any]) -> Iterator[str]:
    """Yield the URLs of the indexes that a uv.toml names."""
    for part in (config, config.get("pip", {})):
        yield from map(str, [part[name] for name in ("index-url",) if name in part])
        yield from map(str, [*part.get("extra-index-url", []), *part.get("find-links", [])])
    yield from (str(index.get("url", "")) for index in _indexes(config))


def without_proxies(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without its proxies, and so without their passwords: the gate uses them."""
    return {name: value for name, value in environment.items() if name.lower() not in PROXIES}


@contextmanager
def open_gate(
    environment: Mapping[str, str],
    others: Iterable[str] = (),
    *,
    within: str | None = None,
    group: int | None = None,
) -> Iterator[IndexGate]:
    """Open a gate, and close it.

    Args:
        environment: As of `Indexes`.
        others: As of `Indexes`.
        within: A directory that the sandbox shows. The socket is in one of its own there; if none is named,
            in that for temporary files.
        group: Who may use it besides this process's own user.
    """
    with tempfile.TemporaryDirectory(prefix="celery-release-", dir=within) as folder:
        if group is not None:
            os.chown(folder, -1, group)
            Path(folder).chmod(0o710)
        with IndexGate(Path(folder), Indexes(environment, others), environment, group) as gate:
            yield gate


class IndexGate:
    """The outer end. It is open within a `with` statement."""

    def __init__(
        self, folder: Path, indexes: Indexes, environment: Mapping[str, str], group: int | None = None
    ) -> None:
        """Take where the socket goes, where it leads, and by which authorities a proxy is trusted."""
        self.socket = folder / "index.sock"
        self.refused: set[Place] = set()
        self.unreached: dict[Place, str] = {}
        self._indexes, self._group = indexes, group
        self._trust = (environment.get("SSL_CERT_FILE"), environment.get("SSL_CERT_DIR"))

    def __enter__(self) -> IndexGate:
        """Open it."""
        serve, slots = self._serve, threading.Semaphore(MOST_AT_ONCE)

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with suppress(OSError):
                    serve(self.request)

        class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
            daemon_threads = True
            block_on_close = False

            def process_request(self, request: Any, client_address: Any) -> None:
                slots.acquire()
                super().process_request(request, client_address)

            def process_request_thread(self, request: Any, client_address: Any) -> None:
                try:
                    super().process_request_thread(request, client_address)
                finally:
                    slots.release()

        self._server = Server(str(self.socket), Handler)
        if self._group is not None:
            os.chown(self.socket, -1, self._group)
            self.socket.chmod(0o660)
        run = partial(self._server.serve_forever, poll_interval=0.1)
        threading.Thread(target=run, daemon=True).start()
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
        """Return what to say of a command that failed, empty if the gate had no part in that."""
        lines = [f"\n{place} cannot be reached: {why}." for place, why in sorted(self.unreached.items())]
        if self.refused:
            listed = ", ".join(map(str, sorted(self.refused)))
            lines.append(
                f"\nWhat is built from its source reaches the package index only, and asked for {listed}. If "
                "the index gives its files from there, name that in celery_app_index_hosts."
            )
        return "".join(lines)

    def _serve(self, client: socket.socket) -> None:
        """Answer one request; the next one of the same connection could be for another host."""
        client.settimeout(PATIENCE)
        head, rest = _read_head(client)
        first, *lines = head.split(b"\r\n")
        asked = TUNNEL.fullmatch(first) or GET.fullmatch(first)
        if asked is None or not all(map(HEADER.fullmatch, lines)):
            _answer(client, "400 Bad Request")
            return
        tunnel, port = asked.re is TUNNEL, int(asked["port"] or PORTS["http"])
        place = Place(asked["host"].decode().strip("[]").lower(), port)
        if place not in self._indexes.places:
            if len(self.refused) < MOST_REFUSED:
                self.refused.add(place)
            _answer(client, "403 Forbidden")
            return
        try:
            server, early, login = self._connect(place, tunnel=tunnel)
        except OSError as error:
            self.unreached[place] = str(error)
            _answer(client, "502 Bad Gateway")
            return
        with server:
            if tunnel:
                client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n" + early)
                server.sendall(rest)
                _relay(client, server)
            else:
                target = asked["path"] or b"/"
                if login is not None:  # a proxy is asked for the whole URL
                    target = f"http://{place}".encode() + target
                kept = [line for line in lines if line.split(b":")[0].lower() not in ALSO_OURS]
                ours = [f"Host: {place}".encode(), b"Connection: close", *([login] if login else [])]
                request = [asked["method"] + b" " + target + b" HTTP/1.1", *ours, *kept]
                server.sendall(b"\r\n".join(request) + b"\r\n\r\n")
                while data := server.recv(65536):
                    client.sendall(data)

    def _connect(self, place: Place, *, tunnel: bool) -> tuple[socket.socket, bytes, bytes | None]:
        """Connect to a place, by the proxy that there is for it.

        Returns:
            The connection, what came by it already, and the header with which a proxy is to be asked: None
            without a proxy, empty without a password.
        """
        url = self._indexes.proxy(place, "https" if tunnel else "http")
        if not url:
            return socket.create_connection(place, timeout=PATIENCE), b"", None
        proxy = Place.of(url)
        if proxy is None:
            raise OSError("its proxy is no URL that begins with http:// or https://")
        try:
            server = socket.create_connection(proxy, timeout=PATIENCE)
            if url.startswith("https:"):
                context = ssl.create_default_context(cafile=self._trust[0], capath=self._trust[1])
                server = context.wrap_socket(server, server_hostname=proxy.host)
        except OSError as error:
            raise OSError(f"the proxy {proxy} does not answer: {error}") from error
        early, login = b"", _login(url)
        if tunnel:
            lines = [
                f"CONNECT {place} HTTP/1.1".encode(),
                f"Host: {place}".encode(),
                *([login] if login else []),
            ]
            server.sendall(b"\r\n".join(lines) + b"\r\n\r\n")
            head, early = _read_head(server)
            status = b" ".join(head.split(b"\r\n", 1)[0].split(b" ")[1:2])
            if status != b"200":
                server.close()
                raise OSError(f"the proxy {proxy} answers {status.decode('ascii', 'replace')}")
        return server, early, login


def _login(url: str) -> bytes:
    """Return the header that says to a proxy who asks; empty if its URL does not say."""
    parts = urlsplit(url)
    if parts.username is None:
        return b""
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
    return b"Proxy-Authorization: Basic " + base64.b64encode(pair)


def _read_head(peer: socket.socket) -> tuple[bytes, bytes]:
    """Return what comes before the first empty line, and what came after it.

    Raises:
        OSError: It does not end.
    """
    data = b""
    while b"\r\n\r\n" not in data:
        more = peer.recv(4096)
        if not more or len(data) > MOST_HEAD:
            raise OSError("it ends before it has said what it is")
        data += more
    head, rest = data.split(b"\r\n\r\n", 1)
    return head, rest


def _answer(client: socket.socket, status: str) -> None:
    """Answer in place of the host."""
    client.sendall(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())


def _relay(client: socket.socket, server: socket.socket) -> None:
    """Copy in both directions, until the server ends."""
    peers = {client: server, server: client}
    while server in peers:
        readable, _unused, _unused = select.select(list(peers), [], [], PATIENCE * 5)
        if not readable:
            return
        for source in readable:
            data = source.recv(65536)
            while isinstance(source, ssl.SSLSocket) and source.pending():  # which select does not see
                data += source.recv(source.pending())
            target = server if source is client else client
            if data:
                target.sendall(data)
                continue
            del peers[source]
            if not isinstance(target, ssl.SSLSocket):  # that would end both directions
                target.shutdown(socket.SHUT_WR)
