# SPDX-License-Identifier: MIT
"""The role pki creates no second authority for a fleet that has one which the controller lacks."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest
import yaml

from tests.unit.rendering import PROJECT

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """The directory of a host with its certificate."""
    directory = tmp_path / "tls"
    directory.mkdir()
    (directory / "host.crt").touch()
    return directory


def authority(
    host: Path, *, new: bool = False, tasks: str = "internal/authority"
) -> subprocess.CompletedProcess[str]:
    """Run tasks of the role that create an authority, with this machine as the host."""
    given = {
        "ansible_connection": "local",
        "ansible_python_interpreter": "{{ ansible_playbook_python }}",
        "pki_ca_dir": str(host.parent / "pki"),
        "pki_ca_passphrase": "a passphrase of the authority",
        "pki_dir": str(host),
        "pki_new_authority": new,
        "pki_rotation_step": "begun",
        "__pki_inventory": {"hosts": {"host1": {"names": ["host1"], "addresses": []}}},
    }
    role = {"name": "fleet.celery.pki", "tasks_from": tasks, "rolespec_validate": False}
    play = {"hosts": "host1", "gather_facts": False, "tasks": [{"ansible.builtin.include_role": role}]}
    (host.parent / "play.yml").write_text(yaml.safe_dump([{**play, "vars": given}]))
    return subprocess.run(
        ["ansible-playbook", "--inventory=host1,", "play.yml"],
        cwd=host.parent,
        env=os.environ | {"ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg")},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_second_authority_is_refused(host: Path) -> None:
    """By the host's name, with the directory that is missing, and before anything is created."""
    run = authority(host)
    assert run.returncode
    said = " ".join(run.stdout.split())
    assert f"host1 has a certificate, and the controller has no authority in {host.parent / 'pki'}" in said
    assert "pki_new_authority=true" in said
    assert not (host.parent / "pki").exists()


def test_a_second_authority_may_be_asked_for(host: Path) -> None:
    """The next run has an authority, and asks for nothing."""
    for run in (authority(host, new=True), authority(host)):
        assert run.returncode == 0, run.stdout
    assert (host.parent / "pki" / "ca.crt").exists()


def test_the_first_authority_is_created(host: Path) -> None:
    """No host has a certificate then."""
    (host / "host.crt").unlink()
    run = authority(host)
    assert run.returncode == 0, run.stdout
    assert (host.parent / "pki" / "ca.crt").exists()


def test_a_rotation_creates_the_next_authority(host: Path) -> None:
    """The hosts have certificates of the one that it replaces, and the controller has that."""
    for run in (authority(host, new=True), authority(host, tasks="rotation")):
        assert run.returncode == 0, run.stdout
    assert (host.parent / "pki" / "next" / "ca.crt").exists()
    assert (host.parent / "pki" / "rotation").read_text() == "begun"
