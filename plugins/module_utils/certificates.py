# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Certificates in files, for modules that compare them: with what a service shows, or with a key."""

from __future__ import annotations

import ssl
from pathlib import Path

BEGIN = "-----BEGIN CERTIFICATE-----"
END = "-----END CERTIFICATE-----"


def certificate_of(path: str) -> bytes:
    """Return the first certificate (DER) of a PEM file, which is the server's own.

    Raises:
        ValueError: It has none.
    """
    first, end, _rest = Path(path).read_text().partition(END)
    start = first.find(BEGIN)
    if start < 0 or not end:
        raise ValueError(f"{path} has no certificate")
    return ssl.PEM_cert_to_DER_cert(first[start:] + END)


def belong_together(certificate: str, key: str) -> bool:
    """Return whether a key is the one of a certificate."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except (OSError, ValueError):  # an SSLError is an OSError
        return False
    return True
