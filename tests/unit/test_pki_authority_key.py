# SPDX-License-Identifier: MIT
"""The module pki_authority_key: a key gets another passphrase, and is never lost."""

from __future__ import annotations

from typing import TYPE_CHECKING
from unittest import mock

import pytest
from ansible_collections.fleet.celery.plugins.modules import pki_authority_key
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

if TYPE_CHECKING:
    from pathlib import Path

OLD, NEW = "the old one, $HOME é", "the new one"


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """A key that the old passphrase opens."""
    path = tmp_path / "ca.key"
    path.write_bytes(
        ec.generate_private_key(ec.SECP384R1()).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(OLD.encode()),
        )
    )
    return path


def number(path: Path, passphrase: str) -> int:
    """Return what is in a key."""
    found = serialization.load_pem_private_key(path.read_bytes(), passphrase.encode())
    assert isinstance(found, ec.EllipticCurvePrivateKey)
    return found.private_numbers().private_value


def test_the_same_key_has_another_passphrase(key: Path) -> None:
    before = number(key, OLD)
    assert pki_authority_key.encrypt(key, NEW, OLD, check=False)
    assert number(key, NEW) == before
    assert pki_authority_key.opened(key.read_bytes(), OLD) is None
    assert key.read_text().startswith("-----BEGIN ENCRYPTED PRIVATE KEY-----")
    assert key.stat().st_mode & 0o777 == 0o600


def test_what_is_done_is_not_done_again(key: Path) -> None:
    pki_authority_key.encrypt(key, NEW, OLD, check=False)
    before = key.read_bytes()
    assert not pki_authority_key.encrypt(key, NEW, OLD, check=False)
    assert key.read_bytes() == before


def test_check_mode_changes_nothing(key: Path) -> None:
    before = key.read_bytes()
    assert pki_authority_key.encrypt(key, NEW, OLD, check=True)
    assert key.read_bytes() == before


def test_a_key_of_another_passphrase_is_refused_and_left(key: Path) -> None:
    before = key.read_bytes()
    with pytest.raises(ValueError, match="neither the new passphrase nor the one before") as refused:
        pki_authority_key.encrypt(key, NEW, "another", check=False)
    assert NEW not in str(refused.value)
    assert key.read_bytes() == before


def test_a_run_that_ends_in_the_middle_leaves_the_old_key(key: Path) -> None:
    before = number(key, OLD)
    with (
        mock.patch("pathlib.Path.replace", side_effect=OSError("no space")),
        pytest.raises(OSError, match="space"),
    ):
        pki_authority_key.encrypt(key, NEW, OLD, check=False)
    assert number(key, OLD) == before
    assert [path.name for path in key.parent.iterdir()] == ["ca.key"]
