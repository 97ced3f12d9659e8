# SPDX-License-Identifier: MIT
"""A certificate authority, and hosts' keys, for tests."""

from __future__ import annotations

import datetime
import ipaddress
from typing import TYPE_CHECKING

from ansible_collections.fleet.celery.plugins.module_utils import pki_certificate as pki
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

if TYPE_CHECKING:
    from collections.abc import Iterable

PASSPHRASE = "a passphrase of the authority"
DAY = datetime.timedelta(days=1)


def public_pem(key: ec.EllipticCurvePrivateKey) -> str:
    """Return the public key of a key in PEM."""
    return (
        key.public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        .decode()
    )


class Authority:
    """An authority with a key of its own."""

    def __init__(self, permits: Iterable[str] = (), name: str = "Fleet CA") -> None:
        """Make it; without anything that it permits, it permits all."""
        self.key = ec.generate_private_key(ec.SECP384R1())
        self.certificate = self.signed(permits, name)
        self.pem = self.certificate.public_bytes(serialization.Encoding.PEM).decode()
        self.key_pem = self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(PASSPHRASE.encode()),
        )

    def signed(self, permits: Iterable[str], name: str) -> x509.Certificate:
        """Return its certificate."""
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.datetime.now(datetime.UTC)
        key = self.key.public_key()
        usage = dict.fromkeys(pki.OTHER_USAGES, False) | {"key_cert_sign": True, "crl_sign": True}
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - DAY)
            .not_valid_after(now + 3650 * DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(x509.KeyUsage(digital_signature=False, **usage), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        )
        if subtrees := [self.subtree(one) for one in permits]:
            builder = builder.add_extension(x509.NameConstraints(subtrees, None), critical=True)
        return builder.sign(self.key, hashes.SHA384())

    def subtree(self, entry: str) -> x509.GeneralName:
        """Return what DNS:name or IP:network permits."""
        kind, _, value = entry.partition(":")
        return x509.DNSName(value) if kind == "DNS" else x509.IPAddress(ipaddress.ip_network(value))

    def issue(self, form: pki.Form, key: ec.EllipticCurvePrivateKey | None = None) -> str:
        """Return a host's certificate in PEM."""
        public = (key or ec.generate_private_key(ec.SECP256R1())).public_key()
        return str(pki.sign(form, public, self.certificate, self.key))
