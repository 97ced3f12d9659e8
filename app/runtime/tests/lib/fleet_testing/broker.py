# SPDX-License-Identifier: MIT
"""A real Redis for tests: TLS only, and with the access rules that the role redis gives a fleet."""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import pytest
import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from fleet_runtime.broker.libraries import libraries
from redis.connection import AbstractConnection

if TYPE_CHECKING:
    from collections.abc import Iterator

HOST = "127.0.0.1"
QUEUES = ["default", "email", "heavy", "io"]
# Each character here is special to something on the way: URLs, shells, systemd, ACL files, Python's %.
HOSTILE = 'it\'s a "hard" $HOME `id` \\ 100% p@ss:w/rd #1'
USERS = ("admin", "worker", "beat", "flower", "web", "ops", "health")
PASSWORDS = {user: f"{HOSTILE} {user}" for user in USERS}
ACL = Path(__file__).parent / "acl"
SETINFO = " +client|setinfo"  # a Redis before 7.2 does not start with this rule
CONFIG = """\
bind {host}
port 0
tls-port {port}
tls-cert-file {folder}/host.crt
tls-key-file {folder}/host.key
tls-ca-cert-file {folder}/ca.crt
tls-auth-clients no
aclfile {folder}/users.acl
dir {folder}
appendonly yes
save ""
maxmemory-policy noeviction
"""


class Broker:
    """A redis-server and how to reach it."""

    def __init__(self, folder: Path, users: str = "") -> None:
        """Write what the server needs into a folder, and start it.

        Args:
            folder: An empty one.
            users: The contents of users.acl for Redis 7.2 and later; by default those of `acl("fleet")`.
        """
        self.folder = folder
        self.program = self.program_path()
        self.port = free_port()
        self.passwords = PASSWORDS
        make_certificates(folder)
        (folder / "users.acl").write_text(self._users(users or acl("fleet")))
        (folder / "redis.conf").write_text(CONFIG.format(host=HOST, port=self.port, folder=folder))
        self.start()
        self.load_functions()

    def load_functions(self) -> None:
        """Load the functions, as the role does."""
        for text in libraries().values():
            self.client("admin").execute_command("FUNCTION LOAD", "REPLACE", text)

    @staticmethod
    def program_path() -> str:
        """Return the server's program: TEST_REDIS_SERVER, or the machine's."""
        program = os.environ.get("TEST_REDIS_SERVER") or shutil.which("redis-server") or ""
        assert program, "redis-server is not installed; these tests need it (apt install redis-server)"
        return program

    def start(self) -> None:
        """Start the server and wait until it serves."""
        log = (self.folder / "redis.log").open("ab")
        with log:
            self.process = subprocess.Popen(
                [self.program, str(self.folder / "redis.conf")], stdout=log, stderr=log
            )
        deadline = time.monotonic() + 10
        while True:
            try:
                self.client("admin").ping()
                return
            except redis.ConnectionError:
                assert self.process.poll() is None, (self.folder / "redis.log").read_text()
                assert time.monotonic() < deadline, "Redis does not answer"
                time.sleep(0.05)

    def stop(self) -> None:
        """Stop the server; what it has stays on disk."""
        self.process.terminate()
        self.process.wait(10)

    def client(self, user: str) -> Any:
        """Return a connection of Redis's own client."""
        return redis.Redis(
            host=HOST,
            port=self.port,
            username=user,
            password=self.passwords[user],
            ssl=True,
            ssl_ca_certs=str(self.folder / "ca.crt"),
            decode_responses=True,
        )

    def url(self, user: str) -> str:
        """Return the URL of a component, as the fleet writes it into its environment file."""
        login = f"{user}:{quote(self.passwords[user], safe='')}"
        tls = urlencode({"ssl_cert_reqs": "required", "ssl_ca_certs": str(self.folder / "ca.crt")})
        return f"rediss://{login}@{HOST}:{self.port}/0?{tls}"

    def denied(self) -> list[str]:
        """Return what the access rules have refused so far: user, reason and object."""
        return [
            f"{entry['username']} {entry['reason']} {entry['object']}"
            for entry in self.client("admin").acl_log()
        ]

    def take_right(self, user: str, command: str) -> None:
        """Take a command from a user, for all keys.

        Redis changes no selector, so the user gets all of its rules anew.
        """
        kept = rules_without(command, user, (self.folder / "users.acl").read_text())
        self.client("admin").execute_command("ACL", "SETUSER", user, "reset", *kept)

    def _users(self, users: str) -> str:
        """Return the access rules for this version of Redis."""
        version = subprocess.run([self.program, "--version"], capture_output=True, text=True, check=True)
        number = version.stdout.split("v=")[1].split()[0]
        is_before_setinfo = tuple(int(part) for part in number.split(".")[:2]) < (7, 2)
        return users.replace(SETINFO, "") if is_before_setinfo else users


def acl(name: str) -> str:
    """Return a users.acl, as the fleet's role `redis` renders it for Redis 7.2 and later.

    Args:
        name: `fleet` for the usual rules; `control` and `wide` for inventories that allow an app more.
    """
    return (ACL / f"{name}.acl").read_text()


def rules_without(command: str, user: str, users: str) -> list[str]:
    """Return a user's rules in a users.acl without a command, for all keys.

    Redis changes no selector, so whoever takes a right away gives all others anew.
    """
    line = next(line for line in users.splitlines() if line.split()[1:2] == [user])
    kept = re.sub(rf" \+{re.escape(command)}(?=[ )]|$)", "", line)
    assert kept != line, f"{user} does not have {command}"
    return kept.split()[2:]


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Count the requests and the commands that this thread sends to Redis.

    The server's own counters have those of every client, as of a thread that another test left behind.
    """
    sent: Counter[str] = Counter()
    thread = threading.get_ident()
    send_packed, send, pack_many = (
        AbstractConnection.send_packed_command,
        AbstractConnection.send_command,
        AbstractConnection.pack_commands,
    )

    def count(what: str, number: int) -> None:
        if threading.get_ident() == thread:
            sent[what] += number

    def send_packed_command(self: Any, *args: Any, **options: Any) -> Any:
        count("requests", 1)
        return send_packed(self, *args, **options)

    def send_command(self: Any, *args: Any, **options: Any) -> Any:
        count("commands", 1)
        return send(self, *args, **options)

    def pack_commands(self: Any, commands: Any) -> Any:
        commands = list(commands)
        count("commands", len(commands))
        return pack_many(self, commands)

    with pytest.MonkeyPatch.context() as patch:
        for function in (send_packed_command, send_command, pack_commands):
            patch.setattr(AbstractConnection, function.__name__, function)
        yield sent


def free_port() -> int:
    """Return a port on which no process listens."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def make_certificates(folder: Path) -> None:
    """Write ca.crt, host.crt and host.key.

    They have the extensions that Python 3.13 and later require by default (`ssl.VERIFY_X509_STRICT`), as the
    certificates of the role `pki` have.
    """
    now = datetime.datetime.now(datetime.UTC)
    authority, host = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test CA")])
    for name, key, extension in (
        ("ca", authority, x509.BasicConstraints(ca=True, path_length=0)),
        ("host", host, x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HOST))])),
    ):
        certificate = (
            x509.CertificateBuilder()
            .subject_name(issuer if name == "ca" else x509.Name([]))
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))  # longer than any test
            .add_extension(extension, critical=True)
            .add_extension(key_usage(signs=name == "ca"), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False
            )
            .sign(authority, hashes.SHA256())
        )
        (folder / f"{name}.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "host.key").write_bytes(
        host.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


def key_usage(*, signs: bool) -> x509.KeyUsage:
    """Return the use of a key: to sign certificates, or for TLS."""
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
