# SPDX-License-Identifier: MIT
"""A host's certificate says what the controller wants, whatever the host sends."""

from __future__ import annotations

import datetime
import socket
import ssl
import subprocess
import threading
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.fleet.celery.plugins.action import pki_certificate as action
from ansible_collections.fleet.celery.plugins.module_utils import pki_certificate as pki
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.unit.authority import DAY, PASSPHRASE, Authority, public_pem

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ("192.0.2.10", "worker1")
FORM = pki.Form("worker1", NAMES, 397)
FLEET = {
    "redis1": {"own": ["redis1", "192.0.2.11"], "services": ["broker.example.com"], "serves": True},
    "worker1": {"own": ["worker1", "192.0.2.10"]},
}
PERMITTED = [
    "DNS:redis1",
    "DNS:worker1",
    "DNS:localhost",
    "IP:192.0.2.10/31",
    "IP:127.0.0.1/32",
    "IP:::1/128",
]


@pytest.fixture
def authority() -> Authority:
    """An authority that permits the fleet."""
    return Authority(PERMITTED)


@pytest.fixture
def given(tmp_path: Path, authority: Authority) -> dict[str, Any]:
    """What the role asks for worker1."""
    (tmp_path / "ca.crt").write_text(authority.pem)
    (tmp_path / "ca.key").write_bytes(authority.key_pem)
    return {
        "path": str(tmp_path / "worker1.crt"),
        "public_key": public_pem(ec.generate_private_key(ec.SECP256R1())),
        "names": list(NAMES),
        "days": 397,
        "renew_days": 30,
        "fleet": FLEET,
        "authority": str(tmp_path / "ca.crt"),
        "authority_key": str(tmp_path / "ca.key"),
        "passphrase": PASSPHRASE,
        "replace": False,
    }


def make(given: dict[str, Any], **other: Any) -> list[str]:
    """Make worker1's certificate."""
    return action.make("worker1", {**given, **other}, check=False)


def test_makes_a_certificate_once(given: dict[str, Any], tmp_path: Path, authority: Authority) -> None:
    assert make(given) == ["There was none."]
    assert make(given) == []
    made = (tmp_path / "worker1.crt").read_text()
    assert (tmp_path / "worker1.crt").stat().st_mode & 0o777 == 0o644
    assert pki.differences(made, FORM, authority.pem, pki.host_key(given["public_key"])) == []


def test_makes_nothing_in_check_mode(given: dict[str, Any], tmp_path: Path) -> None:
    assert action.make("worker1", given, check=True) == ["There was none."]
    assert not (tmp_path / "worker1.crt").exists()


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"names": ["worker1"]}, "Its subjectAltName is not as it should be."),
        ({"days": 90}, "It is not valid for 90 days."),
        ({"renew_days": 398}, "It ends soon."),
        ({"replace": True}, "It is to be replaced."),
        ({"public_key": public_pem(ec.generate_private_key(ec.SECP256R1()))}, "It is for another key."),
    ],
)
def test_replaces_one_that_is_not_as_it_should_be(
    given: dict[str, Any], other: dict[str, Any], why: str
) -> None:
    make(given)
    assert why in make(given, **other)


def refused(given: dict[str, Any], **other: Any) -> str:
    """Return why there is no certificate."""
    with pytest.raises(pki.PkiError) as error:
        make(given, **other)
    return str(error.value)


@pytest.mark.parametrize("name", ["redis1", "REDIS1", "192.0.2.11", "broker.example.com"])
def test_refuses_what_is_another_host(given: dict[str, Any], name: str, tmp_path: Path) -> None:
    assert "is redis1's." in refused(given, names=["worker1", name])
    assert not (tmp_path / "worker1.crt").exists()


def test_refuses_what_the_authority_does_not_permit(given: dict[str, Any]) -> None:
    assert refused(given, names=["worker1", "evil.example"]) == "The authority does not permit evil.example."


@pytest.mark.parametrize("name", ["*.example.com", "a b", "ä.example.com", "x" * 64])
def test_refuses_what_is_no_name(given: dict[str, Any], name: str) -> None:
    assert "cannot be in it" in refused(given, names=["worker1", name])


def a_request(key: ec.EllipticCurvePrivateKey) -> str:
    """Return what a host sent in the attack that was: a request for a certificate of its own wishes."""
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "redis1")]))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
        .decode()
    )


@pytest.mark.parametrize(
    "sent",
    [
        "",
        "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
        a_request(ec.generate_private_key(ec.SECP256R1())),
        public_pem(ec.generate_private_key(ec.SECP384R1())),
        rsa.generate_private_key(65537, 2048)
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        .decode(),
    ],
)
def test_refuses_what_is_no_key_of_the_role(given: dict[str, Any], sent: str) -> None:
    assert "public key" in refused(given, public_key=sent)


def test_refuses_a_key_of_another_authority(given: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "ca.key").write_bytes(Authority().key_pem)
    assert refused(given) == "The authority's key is not the one of its certificate."
    assert "passphrase" in refused(given, passphrase="another one that is wrong")


NO_USAGE = dict.fromkeys(pki.OTHER_USAGES, False)
FORGED: dict[str, tuple[dict[str, Any], str]] = {
    "names": ({"names": ("worker1", "192.0.2.10", "redis1")}, "subjectAltName"),
    "subject": ({"subject": "redis1"}, "Its subject is CN=redis1."),
    "authority": ({"basic": x509.BasicConstraints(ca=True, path_length=None)}, "basicConstraints"),
    "usage": (
        {"usage": x509.KeyUsage(digital_signature=True, **{**NO_USAGE, "key_cert_sign": True})},
        "keyUsage",
    ),
    "purpose": (
        {"purpose": [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CODE_SIGNING]},
        "extendedKeyUsage",
    ),
    "more": ({"more": x509.OCSPNoCheck()}, "OCSPNoCheck"),
    "life": ({"days": 4000}, "It is not valid for 397 days."),
    "signature": ({"by": Authority()}, "CN=Fleet CA has not signed it."),
}


def forge(authority: Authority, **other: Any) -> str:
    """Return a certificate of an authority that says something else than it should."""
    key = ec.generate_private_key(ec.SECP256R1())
    form = pki.Form("worker1", other.get("names", NAMES), 397)
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, other.get("subject", "worker1"))]))
        .issuer_name(authority.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - DAY)
        .not_valid_after(now + other.get("days", 397) * DAY)
    )
    instead: dict[Any, Any] = {
        x509.BasicConstraints: other.get("basic"),
        x509.KeyUsage: other.get("usage"),
        x509.ExtendedKeyUsage: x509.ExtendedKeyUsage(other["purpose"]) if "purpose" in other else None,
    }
    for extension, critical in form.extensions(key.public_key(), authority.certificate):
        builder = builder.add_extension(instead.get(type(extension)) or extension, critical=critical)
    if "more" in other:
        builder = builder.add_extension(other["more"], critical=False)
    signer = other.get("by", authority)
    return builder.sign(signer.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def test_a_forgery_that_changes_nothing_is_no_difference(authority: Authority) -> None:
    assert pki.differences(forge(authority), FORM, authority.pem) == []


@pytest.mark.parametrize(("other", "said"), FORGED.values(), ids=FORGED)
def test_sees_what_was_issued_and_not_what_was_to_be(
    authority: Authority, other: dict[str, Any], said: str
) -> None:
    (difference,) = pki.differences(forge(authority, **other), FORM, authority.pem)
    assert said in difference


def test_what_is_no_certificate_differs(authority: Authority) -> None:
    assert pki.differences("", FORM, authority.pem) == ["It is no certificate."]


# --- what clients make of it ---


def served(tmp_path: Path, pem: str, key: ec.EllipticCurvePrivateKey, trusted: str, name: str) -> str:
    """Return why a client of the authority refuses a server's certificate; nothing if it takes it."""
    (tmp_path / "served.crt").write_text(pem)
    (tmp_path / "served.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    shows = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    shows.load_cert_chain(tmp_path / "served.crt", tmp_path / "served.key")
    takes = ssl.create_default_context(cadata=trusted)
    one, other = socket.socketpair()
    with one, other:
        one.settimeout(10)
        other.settimeout(10)

        def serve() -> None:
            try:
                shows.wrap_socket(other, server_side=True).close()
            except OSError:
                other.close()

        server = threading.Thread(target=serve)
        server.start()
        try:
            takes.wrap_socket(one, server_hostname=name).close()
        except ssl.SSLCertVerificationError as error:
            return error.verify_message
        finally:
            server.join(10)
    return ""


def test_a_client_takes_it_by_each_of_its_names(tmp_path: Path, authority: Authority) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = authority.issue(FORM, key)
    assert [served(tmp_path, pem, key, authority.pem, name) for name in NAMES] == ["", ""]
    assert "mismatch" in served(tmp_path, pem, key, authority.pem, "redis1")


def test_a_client_refuses_what_the_authority_does_not_permit(tmp_path: Path, authority: Authority) -> None:
    """Even if the authority's key was used for it, by whatever way."""
    key = ec.generate_private_key(ec.SECP256R1())
    permits_all = Authority()
    permits_all.key = authority.key
    for name in ("shop.example", "198.51.100.1"):
        wide = pki.sign(
            pki.Form("x", (name,), 397), key.public_key(), permits_all.signed((), "Fleet CA"), authority.key
        )
        assert served(tmp_path, wide, key, authority.pem, name) == "permitted subtree violation"


def test_an_authority_that_permits_something_else_keeps_what_it_signed(
    tmp_path: Path, authority: Authority
) -> None:
    """The key and the name stay, so what it permits can change while certificates are in use."""
    key = ec.generate_private_key(ec.SECP256R1())
    pem = authority.issue(FORM, key)
    later = authority.signed([*PERMITTED, "DNS:worker2"], "Fleet CA").public_bytes(serialization.Encoding.PEM)
    assert served(tmp_path, pem, key, later.decode(), "worker1") == ""


@pytest.mark.parametrize("host", ["192.0.2.10", "2001:db8::1", "worker1.example.com"])
def test_openssl_takes_it_whatever_the_host_is_called(tmp_path: Path, host: str) -> None:
    """An address as the subject's name would be a DNS name for it, which is not permitted."""
    limits = [*PERMITTED, "IP:2001:db8::1/128", "DNS:worker1.example.com"]
    authority = Authority(limits)
    (tmp_path / "ca.crt").write_text(authority.pem)
    (tmp_path / "host.crt").write_text(authority.issue(pki.Form(host, (host,), 397)))
    command = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-CAfile"]
    done = subprocess.run(
        [*command, tmp_path / "ca.crt", tmp_path / "host.crt"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
