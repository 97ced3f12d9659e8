# SPDX-License-Identifier: MIT
"""Redis lets in who it must, as far as it must, and keeps what it took."""

from __future__ import annotations

import datetime
import socket
import ssl
from typing import TYPE_CHECKING

import pytest
import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.fleet.support.fleet import Fleet
    from tests.fleet.support.hosts import Host

pytestmark = pytest.mark.group("redis")

USERS = ["admin", "worker", "beat", "flower", "web", "ops", "health"]


@pytest.fixture
def _denied_on_purpose(fleet: Fleet) -> Iterator[None]:
    """Keep what this test provokes out of the denials that count."""
    with fleet.broker.expected_denials():
        yield


@pytest.fixture
def other_ca(tmp_path: Path) -> Path:
    """The certificate of an authority that the fleet does not know."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Somebody else")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "other.crt"
    path.write_bytes(certificate.public_bytes(Encoding.PEM))
    return path


# --- logins ---


@pytest.mark.parametrize("user", USERS)
def test_user_comes_in(fleet: Fleet, user: str) -> None:
    """Each user logs in over TLS, with the password that the vault has, whatever characters it is made of."""
    with fleet.broker.connect(user) as client:
        assert client.ping()


def test_there_is_no_other_user(fleet: Fleet) -> None:
    """The users are those of the fleet, and `default`, which is off."""
    with fleet.broker.connect("admin") as client:
        assert sorted(client.acl_users()) == sorted([*USERS, "default", "functions"])
        assert "off" in client.acl_getuser("default")["flags"]


def test_plaintext_is_refused(fleet: Fleet) -> None:
    """A client without TLS gets no answer, with the right password too."""
    with (
        pytest.raises(redis.ConnectionError),
        fleet.broker.connect("health", ssl=False, ssl_ca_certs=None) as client,
    ):
        client.ping()


def test_other_authority_is_refused(fleet: Fleet, other_ca: Path) -> None:
    """A client that trusts another authority does not take Redis for the fleet's."""
    with (
        pytest.raises(redis.ConnectionError, match="CERTIFICATE_VERIFY_FAILED"),
        fleet.broker.connect("health", ssl_ca_certs=str(other_ca)) as client,
    ):
        client.ping()


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1:DeprecationWarning")
@pytest.mark.parametrize(("version", "accepted"), [("TLSv1_1", False), ("TLSv1_2", True), ("TLSv1_3", True)])
def test_tls_versions(fleet: Fleet, version: str, accepted: bool) -> None:
    """TLS 1.2 and 1.3 are spoken, and nothing older."""
    context = ssl.create_default_context(cafile=str(fleet.ca_file))
    context.set_ciphers("ALL:@SECLEVEL=0")  # or OpenSSL would not even ask for an old version
    context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    assert handshake(context, fleet.broker.open()) == accepted


@pytest.mark.parametrize(
    ("cipher", "accepted"),
    [
        ("ECDHE-ECDSA-AES128-GCM-SHA256", True),
        ("ECDHE-ECDSA-AES128-SHA256", False),
        ("ECDHE-ECDSA-AES256-SHA", False),
    ],
)
def test_tls_ciphers(fleet: Fleet, cipher: str, accepted: bool) -> None:
    """Of TLS 1.2, only what authenticates the encrypted data itself is spoken, and no CBC."""
    context = ssl.create_default_context(cafile=str(fleet.ca_file))
    context.set_ciphers(f"{cipher}:@SECLEVEL=0")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    assert handshake(context, fleet.broker.open()) == accepted


def handshake(context: ssl.SSLContext, port: int) -> bool:
    """Whether the other side agrees to a TLS connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
        try:
            with context.wrap_socket(plain, server_hostname="127.0.0.1") as secured:
                return bool(secured.version())
        except ssl.SSLError:
            return False


@pytest.mark.usefixtures("_denied_on_purpose")
@pytest.mark.parametrize(
    "login",
    [
        {},
        {"username": "web", "password": "wrong"},
        {"username": "web", "password": ""},
        {"username": "nobody", "password": "wrong"},
        {"password": "wrong"},
        {"username": "default", "password": ""},
        {"username": "default", "password": "default"},
    ],
    ids=str,
)
def test_login_is_refused(fleet: Fleet, login: dict[str, str]) -> None:
    """No password, a wrong one, an unknown user and the user `default` are refused."""
    with (
        pytest.raises(redis.AuthenticationError),
        fleet.broker.connect(protocol=2, **login) as client,
    ):
        client.ping()


@pytest.mark.usefixtures("_denied_on_purpose")
@pytest.mark.parametrize("user", USERS)
def test_password_of_another_is_refused(fleet: Fleet, user: str) -> None:
    """Each user has a password of its own: that of the next one does not let it in."""
    other = USERS[(USERS.index(user) + 1) % len(USERS)]
    with (
        pytest.raises(redis.AuthenticationError),
        fleet.broker.connect(user, password=fleet.broker.password(other)) as client,
    ):
        client.ping()


# --- what it does with what it has ---


@pytest.mark.parametrize(
    ("directive", "value"),
    [
        ("port", "0"),
        ("tls-protocols", "TLSv1.2 TLSv1.3"),
        ("appendonly", "yes"),
        ("appendfsync", "{redis_appendfsync}"),
        ("aof-use-rdb-preamble", "yes"),
        ("maxmemory-policy", "noeviction"),
        ("maxclients", "{redis_maxclients}"),
    ],
)
def test_live_configuration(fleet: Fleet, host: Host, directive: str, value: str) -> None:
    """The running server has what keeps tasks safe, and what the inventory says."""
    name = value.strip("{}")
    expected = str(host.variables[name]) if value.startswith("{") else value
    with fleet.broker.connect("admin") as client:
        assert client.config_get(directive)[directive].strip('"') == expected


def test_memory_is_bounded(fleet: Fleet, host: Host) -> None:
    """Redis may take a part of the host's memory that leaves room for a rewrite of its file."""
    total = int(host.sh("sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo")) * 1024
    with fleet.broker.connect("admin") as client:
        assert 0 < int(client.config_get("maxmemory")["maxmemory"]) <= total // 2


@pytest.mark.parametrize(
    "command", ["CONFIG SET dir /var/lib", "DEBUG SLEEP 0", "MODULE LOAD /var/lib/redis/x.so"]
)
def test_not_even_admin(fleet: Fleet, command: str) -> None:
    """What would make a way out of Redis onto the host is off for everybody."""
    with (
        fleet.broker.connect("admin") as client,
        pytest.raises(redis.ResponseError, match=r"protected|not allowed|enable-"),
    ):
        client.execute_command(*command.split())
