# SPDX-License-Identifier: MIT
"""The role pki: with pki_replace, a key and its certificate change together, or not at all."""

from __future__ import annotations

import grp
import os
import subprocess
from pathlib import Path

import pytest
import yaml
from ansible_collections.fleet.celery.plugins.module_utils.certificates import belong_together, certificate_of
from cryptography.hazmat.primitives import serialization

from tests.unit.rendering import PROJECT
from tests.unit.test_pki import write_certificate

as_root = pytest.mark.skipif(os.getuid() != 0, reason="the files are root's")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory with a pair, and the key of the next one, whose certificate is in new.crt."""
    write_certificate(tmp_path, 90, "host1")
    (tmp_path / "host.crt").rename(tmp_path / "new.crt")
    (tmp_path / "host.key").rename(tmp_path / "host.key.next")
    (tmp_path / "host.key.next").chmod(0o640)
    write_certificate(tmp_path, 80, "host1")
    return tmp_path


def replace(directory: Path, certificate: Path) -> subprocess.CompletedProcess[str]:
    """Run the role's tasks that put a pair in place."""
    key = serialization.load_pem_private_key((directory / "host.key.next").read_bytes(), None).public_key()
    pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    given = {
        "pki_dir": str(directory),
        "pki_group": grp.getgrgid(os.getgid()).gr_name,
        "pki_ca_dir": "/nonexistent",
        "pki_ca_passphrase": "",
        "pki_replace": True,
        "__pki_issued_cert": str(certificate),
        "__pki_public_key": {"public_key": pem.decode()},
        "__pki_trusted": {"": [str(PROJECT / "tests/unit/test_pki_pair.py")]},
    }
    role = {"name": "fleet.celery.pki", "tasks_from": "internal/configure", "rolespec_validate": False}
    play = {"hosts": "host1", "connection": "local", "gather_facts": False}
    work = directory.parent / f"{directory.name}-play"
    work.mkdir()
    (work / "given.yml").write_text(yaml.safe_dump(given))
    (work / "play.yml").write_text(
        yaml.safe_dump([{**play, "tasks": [{"ansible.builtin.include_role": role}]}])
    )
    return subprocess.run(
        ["ansible-playbook", "--inventory=host1,", "--extra-vars=@given.yml", "play.yml"],
        cwd=work,
        env=os.environ | {"ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg")},
        capture_output=True,
        text=True,
        check=False,
    )


@as_root
def test_the_pair_is_replaced(directory: Path) -> None:
    new = (directory / "new.crt").read_text()
    done = replace(directory, directory / "new.crt")
    assert done.returncode == 0, done.stdout
    assert (directory / "host.crt").read_text() == new
    assert belong_together(str(directory / "host.crt"), str(directory / "host.key"))
    assert (directory / "host.crt").stat().st_mode & 0o777 == 0o644
    assert (directory / "host.key").stat().st_mode & 0o777 == 0o640
    assert {path.name for path in directory.iterdir()} == {"ca.crt", "host.crt", "host.key", "new.crt"}


@as_root
def test_a_certificate_of_another_key_is_refused(directory: Path) -> None:
    before = {name: (directory / name).read_bytes() for name in ("host.crt", "host.key", "host.key.next")}
    done = replace(directory, directory / "host.crt")
    assert done.returncode
    assert "does not belong to" in done.stdout
    assert {name: (directory / name).read_bytes() for name in before} == before


def test_the_first_certificate_of_a_file_is_the_hosts(directory: Path) -> None:
    own, other = ((directory / name).read_text() for name in ("host.crt", "new.crt"))
    chain = directory / "chain.crt"
    chain.write_text(f"a comment\n{own}{other}")
    assert certificate_of(str(chain)) == certificate_of(str(directory / "host.crt"))
    chain.write_text("none")
    with pytest.raises(ValueError, match="has no certificate"):
        certificate_of(str(chain))
