# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make a host's certificate, and compare one with what it has to say.

A host gives nothing to its certificate but a public key. All else is the controller's.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from ansible.module_utils.basic import missing_required_lib
from ansible_collections.fleet.celery.plugins.module_utils.pki_names import address, covered, entry, normal

try:
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
except ImportError as error:
    CRYPTOGRAPHY_ERROR: ImportError | None = error
else:
    CRYPTOGRAPHY_ERROR = None

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cryptography.hazmat.primitives.asymmetric.types import (
        CertificateIssuerPrivateKeyTypes,
        CertificateIssuerPublicKeyTypes,
    )

    Extension = tuple[x509.ExtensionType, bool]  # and whether it is critical

BEFORE = datetime.timedelta(days=1)  # a host whose clock is behind would refuse a certificate that begins now
LONGEST_COMMON_NAME = 64
DAY = datetime.timedelta(days=1)

OTHER_USAGES = (
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


class PkiError(Exception):
    """There will be no certificate; the message says why."""


@dataclass(frozen=True)
class Form:
    """What a host's certificate says.

    Attributes:
        host: The host's name in the inventory.
        names: Its names and addresses.
        days: How long it is valid.
    """

    host: str
    names: tuple[str, ...]
    days: int

    @property
    def common_name(self) -> str:
        """The subject's name; an address without dots, or OpenSSL would take it for a DNS name."""
        name = self.host.replace(".", "-") if address(self.host) else self.host
        return name[:LONGEST_COMMON_NAME]

    @property
    def subject(self) -> x509.Name:
        """The subject."""
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.common_name)])

    def extensions(
        self, public_key: ec.EllipticCurvePublicKey, authority: x509.Certificate
    ) -> list[Extension]:
        """Return the extensions; a certificate has these and no others."""
        no = dict.fromkeys(OTHER_USAGES, False)
        return [
            (x509.SubjectAlternativeName([general(name) for name in sorted(set(self.names))]), False),
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (x509.KeyUsage(digital_signature=True, **no), True),
            (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
            (x509.SubjectKeyIdentifier.from_public_key(public_key), False),
            (authority_key_identifier(authority), False),
        ]


def general(name: str) -> x509.GeneralName:
    """Return a name or an address as a certificate has it."""
    found = address(name)
    return x509.IPAddress(found) if found else x509.DNSName(normal(name))


def authority_key_identifier(authority: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    """Return by what the authority's key is known, or two authorities of one name could not be told apart."""
    try:
        known = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        key = cast("CertificateIssuerPublicKeyTypes", authority.public_key())
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(key)
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(known)


def require_cryptography() -> None:
    """Refuse to go on without the package `cryptography`, which ansible-core brings to a controller.

    Raises:
        PkiError: It cannot be imported.
    """
    if CRYPTOGRAPHY_ERROR:
        raise PkiError(missing_required_lib("cryptography")) from CRYPTOGRAPHY_ERROR


def host_key(pem: str) -> ec.EllipticCurvePublicKey:
    """Return the public key that a host has sent.

    Raises:
        PkiError: It is not of the kind that the role pki makes.
    """
    require_cryptography()
    try:
        key = serialization.load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise PkiError("What the host sent as its public key is none.") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise PkiError("The host sent a public key of another kind than the role makes (ECC, secp256r1).")
    return key


def certificate(pem: str) -> x509.Certificate:
    """Return the certificate that is in a PEM text.

    Raises:
        PkiError: There is none.
    """
    require_cryptography()
    try:
        return x509.load_pem_x509_certificate(pem.encode())
    except ValueError:
        raise PkiError("It is no certificate.") from None


def constraints(authority: x509.Certificate) -> tuple[str, ...]:
    """Return what an authority permits, as `pki_names.permitted` writes it; nothing if it permits all."""
    try:
        found = authority.extensions.get_extension_for_class(x509.NameConstraints).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(
        sorted(
            f"{'DNS' if isinstance(one, x509.DNSName) else 'IP'}:{one.value}"
            for one in found.permitted_subtrees or ()
            if isinstance(one, (x509.DNSName, x509.IPAddress))
        )
    )


def differences(
    pem: str, form: Form, authority_pem: str, public_key: ec.EllipticCurvePublicKey | None = None
) -> list[str]:
    """Return in what an issued certificate differs from what it has to say.

    Args:
        pem: The certificate.
        form: What it has to say.
        authority_pem: The certificate of the authority that has to have signed it.
        public_key: The key that it has to be for; if None, any of the kind that the role makes.
    """
    try:
        issued, authority = certificate(pem), certificate(authority_pem)
        key = public_key or host_key(public_pem(issued))
    except PkiError as error:
        return [str(error)]
    return list(_differences(issued, form, authority, key))


def public_pem(issued: x509.Certificate) -> str:
    """Return the public key of a certificate in PEM."""
    return (
        issued.public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        .decode()
    )


def _differences(
    issued: x509.Certificate, form: Form, authority: x509.Certificate, key: ec.EllipticCurvePublicKey
) -> Iterator[str]:
    if issued.public_key() != key:
        yield "It is for another key."
    if issued.subject != form.subject:
        yield f"Its subject is {issued.subject.rfc4514_string()}."
    wanted = {extension.oid: (extension, critical) for extension, critical in form.extensions(key, authority)}
    found = {one.oid: (one.value, one.critical) for one in issued.extensions}
    for oid in sorted(wanted.keys() | found.keys(), key=lambda oid: oid.dotted_string):
        if not same(wanted.get(oid), found.get(oid)):
            yield f"Its {oid._name} is not as it should be."
    if round((issued.not_valid_after_utc - issued.not_valid_before_utc) / DAY) != form.days + BEFORE.days:
        yield f"It is not valid for {form.days} days."
    try:
        issued.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        yield f"{authority.subject.rfc4514_string()} has not signed it."


def same(one: Extension | None, other: Extension | None) -> bool:
    """Return whether two extensions say the same; the order of alternative names is no matter."""
    if one and other and isinstance(one[0], x509.SubjectAlternativeName):
        return isinstance(other[0], x509.SubjectAlternativeName) and (set(one[0]), one[1]) == (
            set(other[0]),
            other[1],
        )
    return one == other


def is_due(pem: str, days: int) -> bool:
    """Return whether a certificate ends within so many days."""
    now = datetime.datetime.now(datetime.UTC)
    return certificate(pem).not_valid_after_utc - now < datetime.timedelta(days=days)


def opens(pem: str, passphrase: str) -> bool:
    """Return whether a passphrase is the one of an encrypted private key."""
    require_cryptography()
    try:
        serialization.load_pem_private_key(pem.encode(), passphrase.encode())
    except (TypeError, ValueError):  # the key is not encrypted, or with another passphrase
        return False
    return True


def signing_key(pem: bytes, passphrase: str, authority: x509.Certificate) -> CertificateIssuerPrivateKeyTypes:
    """Return the authority's key.

    Raises:
        PkiError: The passphrase does not open it, or it is another authority's.
    """
    try:
        key = serialization.load_pem_private_key(pem, passphrase.encode())
    except (TypeError, ValueError):
        raise PkiError("The passphrase does not open the authority's key.") from None
    if key.public_key() != authority.public_key():
        raise PkiError("The authority's key is not the one of its certificate.")
    return cast("CertificateIssuerPrivateKeyTypes", key)  # as it is of the authority's certificate


def sign(
    form: Form,
    public_key: ec.EllipticCurvePublicKey,
    authority: x509.Certificate,
    key: CertificateIssuerPrivateKeyTypes,
) -> str:
    """Return a certificate in PEM.

    Raises:
        PkiError: The authority does not permit one of the names, or what was signed is not what was to be.
    """
    limits = constraints(authority)
    if limits and (beyond := beyond_limits(form.names, limits)):
        raise PkiError(f"The authority does not permit {', '.join(beyond)}.")
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    builder = (
        x509.CertificateBuilder()
        .subject_name(form.subject)
        .issuer_name(authority.subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BEFORE)
        .not_valid_after(now + form.days * DAY)
    )
    for extension, critical in form.extensions(public_key, authority):
        builder = builder.add_extension(extension, critical=critical)
    made = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
    authority_pem = authority.public_bytes(serialization.Encoding.PEM).decode()
    if wrong := differences(made, form, authority_pem, public_key):
        raise PkiError(f"The certificate that was made is not the one that was to be: {' '.join(wrong)}")
    return made


def beyond_limits(names: Iterable[str], limits: Iterable[str]) -> list[str]:
    """Return the names and addresses that an authority with these constraints does not permit."""
    allowed = set(limits)
    return [name for name in sorted(set(names)) if not covered(entry(name), allowed)]
