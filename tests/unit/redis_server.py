# SPDX-License-Identifier: MIT
"""A real redis-server with the role's own files, on this machine's loopback, for tests."""

from __future__ import annotations

import datetime
import ipaddress
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis
from ansible_collections.fleet.celery.plugins.module_utils import pki_certificate as pki
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.unit.rendering import Role

if TYPE_CHECKING:
    from collections.abc import Iterator

USERS = ("admin", "worker", "beat", "flower", "web", "ops", "health")

# Every character that some language on the way (YAML, Jinja, shell, Redis, URLs) could misread.
PASSWORDS = {user: f"{user}'\"$HOME \\ `id` %40 @:/# {{{{ 1 }}}} *?&~>" for user in USERS}


class Authority:
    """A certificate authority that signs for 127.0.0.1."""

    def __init__(self, directory: Path) -> None:
        """Make its key and its certificate, in a directory."""
        self.directory = directory
        self.key = ec.generate_private_key(ec.SECP256R1())
        usage = x509.BasicConstraints(ca=True, path_length=0)
        self.ca_file = directory / "ca.crt"
        self.ca_file.write_bytes(self._sign("authority", self.key.public_key(), usage))

    def issue(self) -> None:
        """Write host.crt and host.key, or write them anew."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (self.directory / "host.key").write_bytes(pem)
        (self.directory / "host.crt").write_bytes(self._sign("host", key.public_key(), names))

    def _sign(self, name: str, key: ec.EllipticCurvePublicKey, extension: x509.ExtensionType) -> bytes:
        now = datetime.datetime.now(datetime.UTC)
        signs = isinstance(extension, x509.BasicConstraints)
        usage = dict.fromkeys(pki.OTHER_USAGES, False) | {"key_cert_sign": signs, "crl_sign": signs}
        # As the role's have: by these a client tells two authorities of one name apart.
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        certificate = (
            x509.CertificateBuilder()
            .subject_name(common_name(name))
            .issuer_name(common_name("authority"))
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(extension, critical=True)
            .add_extension(x509.KeyUsage(digital_signature=not signs, **usage), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(issuer, critical=False)
            .sign(self.key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM)


def common_name(name: str) -> x509.Name:
    """Return an X.509 name."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def free_port() -> int:
    """Return a TCP port of loopback that nobody has."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def server_version() -> tuple[int, ...]:
    """Return the version of this machine's redis-server."""
    out = subprocess.run(["redis-server", "--version"], check=True, capture_output=True, text=True).stdout
    return tuple(int(part) for part in out.split("v=")[1].split()[0].split("."))


@dataclass
class Server:
    """A redis-server that runs what the role renders, but for the places of its files."""

    directory: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        """Make the certificates; fail, rather than skip, where there is no redis-server."""
        assert shutil.which("redis-server"), "install redis-server; `make test` does"
        self.authority = Authority(self.directory)
        self.authority.issue()

    def role(self, **variables: Any) -> Role:
        """Return the role redis with the variables that it needs, and others."""
        given: dict[str, Any] = {
            "ansible_facts": {"memtotal_mb": 4096},
            "__redis_has_client_setinfo": server_version() >= (7, 2),
            "__redis_acl_file": str(self.directory / "users.acl"),
            "__redis_data_dir": str(self.directory),
            "redis_port": self.port,
            "redis_tls_ca_file": str(self.directory / "ca.crt"),
            "redis_tls_cert_file": str(self.directory / "host.crt"),
            "redis_tls_key_file": str(self.directory / "host.key"),
            "redis_passwords": PASSWORDS,
            "redis_queues": ["default", "email"],
        }
        return Role("redis", **(given | variables))

    def write(self, **variables: Any) -> None:
        """Write redis.conf and users.acl as the role would."""
        role = self.role(**variables)
        (self.directory / "redis.conf").write_text(role.template("redis.conf.j2"))
        (self.directory / "users.acl").write_text(role.template("users.acl.j2"))

    def start(self) -> None:
        """Start the server, and wait until it answers. One that does not within seconds is stopped."""
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(["redis-server", self.directory / "redis.conf"], stdout=log)
        for _ in range(100):
            try:
                self.client("admin").ping()
            except redis.exceptions.ConnectionError:
                time.sleep(0.05)
            else:
                return
        self.stop()
        raise AssertionError(self.log())

    def stop(self) -> None:
        """Stop the server as systemd would."""
        if self.process:
            self.process.terminate()
            self.process.wait(20)
            self.process = None

    def client(self, user: str, password: str | None = None, **options: Any) -> redis.Redis:
        """Return a client that logs in as a user, over TLS."""
        return redis.Redis(
            host="127.0.0.1",
            port=self.port,
            username=user,
            password=PASSWORDS[user] if password is None else password,
            ssl=True,
            ssl_ca_certs=str(self.authority.ca_file),
            decode_responses=True,
            socket_timeout=10,
            retry=Retry(NoBackoff(), 0),
            **options,
        )

    def log(self) -> str:
        """Return what the server logged."""
        return (self.directory / "log").read_text()


@contextmanager
def running(directory: Path, **variables: Any) -> Iterator[Server]:
    """A server with what the role renders with some variables."""
    server = Server(directory)
    server.write(**variables)
    server.start()
    try:
        yield server
    finally:
        server.stop()
