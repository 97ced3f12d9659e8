# SPDX-License-Identifier: MIT
"""The role pki, entry point passphrase: the authority's key gets another passphrase, and is never lost."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.unit.rendering import PROJECT

if TYPE_CHECKING:
    from pathlib import Path

OLD, NEW = "the old one, $HOME é", "the new one, 16 letters"


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    """The directory of an authority whose keys the old passphrase opens."""
    directory = tmp_path / "authority"
    (directory / "next").mkdir(parents=True, mode=0o700)
    text = ec.generate_private_key(ec.SECP384R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(OLD.encode()),
    )
    for path in (directory / "ca.key", directory / "next" / "ca.key"):
        path.write_bytes(text)
    return directory


def encrypt(directory: Path, new: str, old: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the entry point on the controller."""
    given = {
        "pki_ca_dir": str(directory),
        "pki_ca_passphrase": new,
        "pki_ca_previous_passphrase": old,
        "__pki_inventory": {"hosts": {}},
    }
    role = {"name": "fleet.celery.pki", "tasks_from": "passphrase", "rolespec_validate": False}
    play = {"hosts": "host1", "gather_facts": False, "tasks": [{"ansible.builtin.include_role": role}]}
    (directory.parent / "play.yml").write_text(yaml.safe_dump([{**play, "vars": given}]))
    return subprocess.run(
        ["ansible-playbook", "--inventory=host1,", "--diff", "play.yml", *arguments],
        cwd=directory.parent,
        env=os.environ | {"ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg")},
        capture_output=True,
        text=True,
        check=False,
    )


def number(key: Path, passphrase: str) -> int:
    """Return what is in a key."""
    found = serialization.load_pem_private_key(key.read_bytes(), passphrase.encode())
    assert isinstance(found, ec.EllipticCurvePrivateKey)
    return found.private_numbers().private_value


def test_the_same_key_has_another_passphrase(authority: Path) -> None:
    """A run in check mode changes nothing, and one that is repeated neither."""
    key = authority / "ca.key"
    before, text = number(key, OLD), key.read_bytes()
    foreseen = encrypt(authority, NEW, OLD, "--check")
    assert "changed: [host1 -> localhost] => (item=" in foreseen.stdout, foreseen.stdout
    assert key.read_bytes() == text
    refused = encrypt(authority, NEW, "a third passphrase")
    assert refused.returncode
    assert "Put that back into the" in refused.stdout, refused.stdout
    assert key.read_bytes() == text
    done = encrypt(authority, NEW, OLD)
    assert done.returncode == 0, done.stdout
    for path in (key, authority / "next" / "ca.key"):
        assert number(path, NEW) == before
        assert path.read_text().startswith("-----BEGIN ENCRYPTED PRIVATE KEY-----")
        assert path.stat().st_mode & 0o777 == 0o600
    text = key.read_bytes()
    again = encrypt(authority, NEW, OLD)
    assert "changed=0" in again.stdout, again.stdout
    assert key.read_bytes() == text
    for run in (foreseen, refused, done, again):
        assert not [one for one in (OLD, NEW, "BEGIN ENCRYPTED") if one in run.stdout + run.stderr]
