# SPDX-License-Identifier: MIT
"""What becomes of a run when a host is lost in the middle of it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.rendering import PROJECT

PLAYBOOKS = sorted([*PROJECT.glob("playbooks/*.yml"), *PROJECT.glob("playbooks/parts/*.yml")])
PLAYS = [
    pytest.param(play, id=f"{file.stem}: {play['name']}")
    for file in PLAYBOOKS
    for play in yaml.safe_load(file.read_text())
    if "hosts" in play and play["hosts"] != "localhost"
]
# These look at hosts, and tell which do not answer.
LOOKING = (
    "Ping the hosts",
    "Read the versions of Redis",
    "Read the state of the workers",
    "Read the state of Beat",
    "Read the state of Flower",
)
# Former names of playbooks, each with the new one.
FORMER = {
    "rotate-certificates.yml": "rotate_certificates.yml",
    "rotate-secrets.yml": "rotate_secrets.yml",
    "upgrade-redis.yml": "upgrade_redis.yml",
}
LOOK_ONLY = {"lock_app.yml", "status.yml", "secrets.yml"}  # and what the controller alone has
STRICT = {"any_errors_fatal": True, "max_fail_percentage": 0}
BATCH = yaml.safe_load((PROJECT / "playbooks/vars/batch.yml").read_text())
STOP = {"ansible.builtin.fail": None, "any_errors_fatal": True, "when": "batch_lost | length > 0"}


@pytest.mark.parametrize("play", PLAYS)
def test_a_play_is_as_strict_as_it_has_to_be(play: dict[str, Any]) -> None:
    """Where hosts come in batches, the play itself ends the run, or all hosts of the batch are lost."""
    strictness = {key: play[key] for key in STRICT if key in play}
    lenient = "serial" in play or play["name"] in LOOKING
    assert strictness == ({"any_errors_fatal": False} if lenient else STRICT)


def test_what_changes_the_fleet_is_locked() -> None:
    """An entry point does nothing to hosts before the lock, and frees it last; those that look take none."""
    imported = {
        file.name: [
            Path(play["ansible.builtin.import_playbook"]).name
            for play in yaml.safe_load(file.read_text())
            if "ansible.builtin.import_playbook" in play
        ]
        for file in PLAYBOOKS
        if file.name not in {*FORMER, "renamed.yml"}
    }
    parts = {name for names in imported.values() for name in names}
    entries = {name: names for name, names in imported.items() if name not in parts}
    assert {name for name, names in entries.items() if "lock.yml" not in names} == LOOK_ONLY
    for name in entries.keys() - LOOK_ONLY:
        assert entries[name][-1] == "unlock.yml", name
        assert set(entries[name][: entries[name].index("lock.yml")]) <= {"preflight.yml"}, name


def test_a_playbook_can_be_named_as_one_of_the_collection() -> None:
    """`fleet.celery.<playbook>`: Ansible takes no name with a dash; a former name says the new one."""
    dashed = {file.name for file in PLAYBOOKS if not file.stem.isidentifier()}
    assert dashed == set(FORMER)
    for name, new in FORMER.items():
        said, done = yaml.safe_load((PROJECT / "playbooks" / name).read_text())
        assert said["ansible.builtin.import_playbook"] == "parts/renamed.yml"
        assert said["vars"] == {"renamed_playbook": new}
        assert done["ansible.builtin.import_playbook"] == new


def test_site_is_that_of_the_collection() -> None:
    (whole,) = yaml.safe_load((PROJECT / "site.yml").read_text())
    assert whole["ansible.builtin.import_playbook"] == "playbooks/site.yml"


@pytest.mark.parametrize(
    ("play", "end", "reached"),
    [
        (STRICT, [], []),
        ({"any_errors_fatal": True}, [], ["later"]),
        ({"any_errors_fatal": False, "serial": 1}, [], []),
        ({"any_errors_fatal": True, "serial": 1}, [], ["second", "later"]),
        ({"any_errors_fatal": False, "serial": 2}, [STOP], ["second"]),
        ({"any_errors_fatal": False, "serial": 2}, [], ["second", "later"]),
    ],
    ids=["strict", "not strict", "one by one", "strict, one by one", "batches that stop", "batches"],
)
def test_what_ansible_does_when_a_host_is_lost(
    tmp_path: Path, play: dict[str, Any], end: list[dict[str, Any]], reached: list[str]
) -> None:
    """Which is why plays say what they say: https://github.com/ansible/ansible/issues/82834."""
    there = {"ansible_connection": "local"}
    lost = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 9}
    hosts = {"first": lost, "second": there, "later": there}
    here = {"ansible.builtin.copy": {"content": "", "dest": f"{tmp_path}/{{{{ inventory_hostname }}}}"}}
    tasks: dict[str, Any] = {"gather_facts": False, "tasks": [{"ansible.builtin.ping": None}, here]}
    batches = {"vars": {"batch_lost": BATCH["batch_lost"]}, **tasks, "tasks": [*tasks["tasks"], *end]}
    plays = [{"hosts": "first,second", **play, **batches}, {"hosts": "later", **tasks}]
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": hosts}}))
    (tmp_path / "play.yml").write_text(yaml.safe_dump(plays))
    done = subprocess.run(
        ["ansible-playbook", "--inventory=hosts.yml", "play.yml"],
        cwd=tmp_path,
        env=os.environ | {"ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode
    assert "unreachable=1" in done.stdout
    assert [name for name in hosts if (tmp_path / name).exists()] == reached
