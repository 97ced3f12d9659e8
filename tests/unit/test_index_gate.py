# SPDX-License-Identifier: MIT
"""What a package runs while it is built reaches the index, and nothing else."""

from __future__ import annotations

import functools
import http.server
import json
import os
import socket
import socketserver
import ssl
import subprocess
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from ansible_collections.fleet.celery.plugins.module_utils.app_release_sandbox import Sandbox
from ansible_collections.fleet.celery.plugins.module_utils.app_release_source import ReleaseError
from ansible_collections.fleet.celery.plugins.module_utils.index_gate import (
    Indexes,
    Place,
    open_gate,
    without_proxies,
)

from fleet_testing.broker import make_certificates

if TYPE_CHECKING:
    from collections.abc import Iterator

PYTHON = "/usr/bin/python3"
pytestmark = pytest.mark.skipif(not Path(PYTHON).exists(), reason="this is no Debian")

# Asks for each URL that it is given, twice by one connection, and tells what came.
ASK = """
import http.client, json, os, sys, urllib.parse, urllib.request
def asked(url):
    try:
        return urllib.request.urlopen(url, timeout=20).read().decode()
    except OSError as error:
        return str(error)
def tunnel(place):
    proxy = urllib.parse.urlsplit(os.environ["https_proxy"])
    connection = http.client.HTTPConnection(proxy.hostname, proxy.port, timeout=20)
    host, port = place.split(":")
    connection.set_tunnel(host, int(port))
    try:
        connection.request("GET", "/")
        return connection.getresponse().read().decode()
    except OSError as error:
        return str(error)
print(json.dumps([(tunnel if "://" not in word else asked)(word) for word in sys.argv[2:]]))
sys.exit(int(sys.argv[1]))
"""


class Server(http.server.BaseHTTPRequestHandler):
    """Answers with its own name, and keeps connections open."""

    protocol_version = "HTTP/1.1"

    def __init__(self, name: str, *args: Any) -> None:
        """Take the name."""
        self.name = name
        super().__init__(*args)

    def do_GET(self) -> None:
        """Answer."""
        body = f"{self.name} {self.path}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@contextmanager
def serving(handler: Any) -> Iterator[int]:
    """Serve on a port."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.fixture
def index() -> Iterator[int]:
    """Return the port of an index."""
    with serving(functools.partial(Server, "index")) as port:
        yield port


@pytest.fixture
def other() -> Iterator[int]:
    """Return the port of what is none."""
    with serving(functools.partial(Server, "other")) as port:
        yield port


def ask(environment: dict[str, str], *words: str, others: tuple[str, ...] = (), status: int = 0) -> list[str]:
    """Return what a command in the sandbox gets for some URLs, or for some `host:port` through a tunnel."""
    with tempfile.TemporaryDirectory(prefix="gate-") as top:
        Path(top).chmod(0o755)
        work = Path(top, "work")
        work.mkdir()
        argv = [PYTHON, "-c", ASK, str(status), *words]
        sandbox = Sandbox()
        with open_gate(environment, others, group=sandbox.group) as gate:
            env = without_proxies(environment)
            said = sandbox.run(argv, "it failed", env=env, cwd=work, work=work, gate=gate)
        assert not gate.socket.parent.exists()
    answers: list[str] = json.loads(said)
    return answers


def test_the_index_is_reached_and_nothing_else(index: int, other: int) -> None:
    """By a plain request and by a tunnel, as for TLS; nor is the machine's own loopback."""
    environment = {"UV_DEFAULT_INDEX": f"http://127.0.0.1:{index}/simple"}
    words = [f"http://127.0.0.1:{index}/a?b=c", f"127.0.0.1:{index}", f"http://127.0.0.1:{other}/"]
    plain, tunnel, refused, refused_tunnel = ask(environment, *words, f"127.0.0.1:{other}")
    assert (plain, tunnel) == ("index /a?b=c", "index /")
    assert "403" in refused
    assert "403" in refused_tunnel
    assert ask(environment, words[2], others=(f"127.0.0.1:{other}",)) == ["other /"]


def test_what_was_refused_is_said_with_what_to_do(index: int, other: int) -> None:
    """Where the command failed."""
    environment = {"UV_DEFAULT_INDEX": f"http://127.0.0.1:{index}/simple"}
    with pytest.raises(ReleaseError, match=rf"127\.0\.0\.1:{other}[\s\S]*celery_app_index_hosts"):
        ask(environment, f"http://127.0.0.1:{other}/", status=3)


def test_a_connection_is_for_one_request(index: int, other: int) -> None:
    """The next one on it could be for another host."""
    with (
        open_gate({"UV_DEFAULT_INDEX": f"http://127.0.0.1:{index}/"}) as gate,
        socket.socket(socket.AF_UNIX) as client,
    ):
        client.connect(str(gate.socket))
        client.settimeout(20)
        both = (f"GET http://127.0.0.1:{port}/ HTTP/1.1\r\nHost: x\r\n\r\n" for port in (index, other))
        client.sendall("".join(both).encode())
        said = b"".join(iter(lambda: client.recv(4096), b""))
    assert b"index /" in said
    assert b"other" not in said


@pytest.mark.parametrize(
    "words",
    [
        "",
        "GET",
        "PUT http://pypi.org/ HTTP/1.1",
        "GET file:///etc/passwd HTTP/1.1",
        "GET http://pypi.org#@evil.example.com/ HTTP/1.1",
        "GET http://pypi.org\\@evil.example.com/ HTTP/1.1",
        "GET http://evil@pypi.org/ HTTP/1.1",
        "CONNECT pypi.org:999999 HTTP/1.1",
        "CONNECT pypi.org:443\nCONNECT evil.example.com:443 HTTP/1.1",
        "GET http://pypi.org:443/ HTTP/1.1\r\nA: b\n\nGET http://evil.example.com/ HTTP/1.1",
    ],
)
def test_what_is_no_request_is_refused(words: str) -> None:
    """A proxy that reads it otherwise than the gate would go where the gate does not."""
    with open_gate({"HTTP_PROXY": "http://127.0.0.1:9"}) as gate, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(gate.socket))
        client.settimeout(20)
        client.sendall(f"{words}\r\n\r\n".encode())
        assert client.recv(4096).split(b" ")[1] == b"400"
    assert gate.advice == ""


class Proxy(socketserver.StreamRequestHandler):
    """A proxy that wants a password, and answers by itself."""

    seen: ClassVar[list[str]] = []

    def handle(self) -> None:
        """Note what is asked."""
        lines = self.head()
        self.seen.append(lines[0])
        if "Proxy-Authorization: Basic bWU6c2VjcmV0IQ==" not in lines:  # me:secret!
            self.wfile.write(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
        elif lines[0].startswith("GET"):
            self.wfile.write(b"HTTP/1.0 200 OK\r\n\r\nby the proxy")
        else:
            self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            self.head()
            self.wfile.write(b"HTTP/1.0 200 OK\r\n\r\nby the proxy")

    def head(self) -> list[str]:
        """Return the lines of a request."""
        return list(iter(lambda: self.rfile.readline().decode().strip(), ""))


@contextmanager
def proxying(folder: Path | None = None) -> Iterator[str]:
    """Run a proxy, over TLS if there is a folder for its certificate, and return its host and port."""
    Proxy.seen.clear()
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Proxy) as server:
        if folder:
            make_certificates(folder)
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(folder / "host.crt", folder / "host.key")
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize("tls", [False, True])
def test_the_index_is_reached_by_the_proxy_of_the_host(tmp_path: Path, tls: bool) -> None:
    """Plain files, and tunnels; the proxy sees what it needs and nothing of the sandbox's making."""
    with proxying(tmp_path if tls else None) as place:
        proxy = f"{'https' if tls else 'http'}://me:secret%21@{place}"
        environment = {
            "UV_DEFAULT_INDEX": "https://index.example.com/simple",
            "UV_INDEX": "http://plain.example.com/simple",
            "SSL_CERT_FILE": str(tmp_path / "ca.crt"),
            "HTTPS_PROXY": proxy,
            "http_proxy": proxy,
        }
        answers = ask(environment, "index.example.com:443", "http://plain.example.com/a?b=c")
    assert answers == ["by the proxy"] * 2
    assert Proxy.seen == [
        "CONNECT index.example.com:443 HTTP/1.1",
        "GET http://plain.example.com:80/a?b=c HTTP/1.1",
    ]


def test_a_proxy_that_refuses_is_named(tmp_path: Path) -> None:
    """With its answer, and without its password; one that is named by uv's own file as well."""
    file = tmp_path / "uv.toml"
    with proxying() as place:
        file.write_text(f'https-proxy = "http://me:wrong@{place}"\n')
        with pytest.raises(ReleaseError) as raised:
            ask({"UV_CONFIG_FILE": str(file)}, "pypi.org:443", status=3)
    assert f"pypi.org:443 cannot be reached: the proxy {place} answers 407." in str(raised.value)
    assert "wrong" not in str(raised.value)


def test_where_uv_may_go(tmp_path: Path) -> None:
    """Its variables say, its file, and the inventory; PyPI's files are where PyPI's files are."""
    empty = {"UV_CONFIG_FILE": str(tmp_path / "none")}
    pypi = {Place("pypi.org", 443), Place("files.pythonhosted.org", 443)}
    assert Indexes(empty).places == pypi
    own = {**empty, "UV_DEFAULT_INDEX": "https://user:secret@index.example.com/simple"}
    assert Indexes(own).places == {Place("index.example.com", 443)}
    more = {**own, "UV_INDEX": "gpu=http://gpu.example.com:8080/whl https://test.pypi.org/simple"}
    assert Indexes(more, ["cdn.example.com", "cdn.example.com:8443"]).places == {
        Place("index.example.com", 443), Place("gpu.example.com", 8080),
        Place("test.pypi.org", 443), Place("test-files.pythonhosted.org", 443),
        Place("cdn.example.com", 443), Place("cdn.example.com", 8443),
    }  # fmt: skip
    file = tmp_path / "uv.toml"
    file.write_text(
        '[[index]]\nname = "a"\nurl = "https://a.example.com/simple"\n'
        '[pip]\nextra-index-url = ["https://b.example.com/simple"]\nfind-links = ["/srv/wheels"]\n'
    )
    listed = {Place(f"{name}.example.com", 443) for name in "ab"}
    assert Indexes({"UV_CONFIG_FILE": str(file)}).places == pypi | listed
    file.write_text(f"{file.read_text()}index-url = 'https://c.example.com/simple'\n")
    assert Indexes({"UV_CONFIG_FILE": str(file)}).places == listed | {Place("c.example.com", 443)}


@pytest.mark.parametrize("url", ["https://me:pa/ss@index.example.com", "https://me:p#w@index.example.com:x"])
def test_a_url_that_cannot_be_read_is_left_to_uv(url: str) -> None:
    """Which says so; nothing of its password is in an error of the gate."""
    assert Place.of(url) is None or Place.of(url) == Place("me", 443)
    assert Indexes({"UV_DEFAULT_INDEX": url}, [url]).places <= {Place("me", 443)}


def test_the_environment_of_the_command(index: int) -> None:
    """Its proxies are the gate's alone; all else is left."""
    with open_gate({}) as gate:
        env = {**os.environ, "NO_PROXY": "*", "HTTPS_PROXY": "http://me:secret@proxy", "KEPT": "1"}

        words = [PYTHON, "-c", "import json, os; print(json.dumps(dict(os.environ)))"]
        done = subprocess.run(
            gate.command(PYTHON, words), env=env, capture_output=True, text=True, check=True
        )
    seen = json.loads(done.stdout)
    assert seen["KEPT"] == "1"
    assert "NO_PROXY" not in seen
    assert "secret" not in done.stdout
    assert seen["HTTPS_PROXY"] == seen["http_proxy"] == seen["ALL_PROXY"]
    killed = subprocess.run(gate.command(PYTHON, ["sh", "-c", "kill -9 $$"]), check=False)
    assert killed.returncode == 137
