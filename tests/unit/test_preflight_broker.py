# SPDX-License-Identifier: MIT
"""Preflight refuses hosts whose broker is not there, if the run leaves its host out."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.unit.rendering import PROJECT

HOSTS = """\
redis: {hosts: {redis1: {}}}
workers: {hosts: {worker1: {}}}
all: {vars: {ansible_connection: local, ansible_become: false}}
"""


@pytest.mark.parametrize(("limit", "refused"), [("worker1", True), ("worker1:redis1", False)])
def test_a_limited_run_needs_a_broker(tmp_path: Path, limit: str, refused: bool) -> None:
    """The whole fleet gets one in the same run."""
    assert not Path("/etc/redis/users.acl").exists(), "this machine is the broker of a fleet"
    (tmp_path / "hosts.yml").write_text(HOSTS)
    play = PROJECT / "playbooks" / "parts" / "preflight_broker.yml"
    done = subprocess.run(
        ["ansible-playbook", "-i", tmp_path, play, "--limit", limit],
        env={**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg")},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    said = " ".join((done.stdout + done.stderr).split())
    assert ("redis1 has no Redis of this fleet yet" in said) is refused, said
    assert ("Run site.yml without -l once" in said) is refused
