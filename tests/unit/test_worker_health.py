# SPDX-License-Identifier: MIT
"""The check of the role celery_worker: which nodes are healthy, by what `fleet consumed` prints."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.fleet.celery.plugins.filter.celery_worker import unhealthy

PROJECT = Path(__file__).parents[2]
EXPECTED = {"io-1@host1": ["io"], "p-1@host1": ["a", "b"]}
BROKEN = "Error: The broker cannot be asked: Connection refused."


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ({"io-1@host1": ["io"], "p-1@host1": ["b", "a"]}, {}),
        ({"io-1@host1": ["io"], "p-1@host1": ["a"]}, {"p-1@host1": ["a"]}),
        ({"io-1@host1": ["io", "extra"], "p-1@host1": ["a", "b"]}, {"io-1@host1": ["extra", "io"]}),
        ({"p-1@host1": ["a", "b"]}, {"io-1@host1": None}),
        (BROKEN, {"io-1@host1": None, "p-1@host1": None}),
        ("", {"io-1@host1": None, "p-1@host1": None}),
    ],
)
def test_a_node_is_healthy_if_it_consumes_its_queues_and_no_other(
    answer: dict[str, list[str]] | str, found: dict[str, list[str] | None]
) -> None:
    """None is if the answer is something else, such as a traceback."""
    text = answer if isinstance(answer, str) else json.dumps(answer)
    assert unhealthy(text, EXPECTED) == found


def check(
    tmp_path: Path, answers: list[dict[str, list[str]] | str], told: dict[str, list[str]] = EXPECTED
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run the role's check with a command that gives these answers, the last one for ever.

    Returns:
        The run of Ansible, and with which arguments the command was called.
    """
    command = tmp_path / "fleet-celery"
    command.write_text(
        "#!/bin/sh\n"
        f'cd {tmp_path}; echo "$*" >>calls; n=$(wc -l <calls); [ -e "$n" ] || n={len(answers)}\n'
        'if grep -q "^{" "$n"; then cat "$n"; else cat "$n" >&2; exit 1; fi\n'
    )
    command.chmod(0o755)
    systemctl = tmp_path / "systemctl"
    systemctl.write_text("#!/bin/sh\necho ActiveState=active\necho SubState=running\n")
    systemctl.chmod(0o755)
    (tmp_path / "calls").touch()
    for number, answer in enumerate(answers, 1):
        text = answer if isinstance(answer, str) else json.dumps(answer)
        (tmp_path / str(number)).write_text(f"{text}\n")
    given: dict[str, Any] = {
        "celery_worker_health_retries": 2,
        "celery_worker_health_delay": 0,
        "__celery_worker_paths": {"command": str(command)},
        "__celery_worker_running": {"drained": not told},
        "__celery_worker_services": ["celery-worker@io-1.service"],
        "__celery_worker_tested": [],
        "__celery_worker_expected": told,
        "__celery_worker_nodes": [],
    }
    role = {"name": "fleet.celery.celery_worker", "tasks_from": "health", "rolespec_validate": False}
    tasks = [{"ansible.builtin.include_role": role}]
    play = {"hosts": "localhost", "gather_facts": False, "connection": "local", "tasks": tasks}
    (tmp_path / "play.yml").write_text(yaml.safe_dump([play]))
    (tmp_path / "given.yml").write_text(yaml.safe_dump(given))
    done = subprocess.run(
        ["ansible-playbook", "--inventory=localhost,", "--extra-vars=@given.yml", "play.yml"],
        cwd=tmp_path,
        env=os.environ
        | {"ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"), "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done, (tmp_path / "calls").read_text().splitlines()


def test_nodes_that_start_late_are_healthy_in_the_end(tmp_path: Path) -> None:
    done, calls = check(tmp_path, [BROKEN, {"io-1@host1": ["io"]}, EXPECTED])
    assert done.returncode == 0, done.stdout
    assert calls == ["fleet consumed --timeout=5 io-1@host1 p-1@host1"] * 3


@pytest.mark.parametrize(("answer", "said"), [({"io-1@host1": ["io"]}, "does not answer"), (BROKEN, BROKEN)])
def test_nodes_that_never_are_healthy_are_told_of(
    tmp_path: Path, answer: dict[str, list[str]] | str, said: str
) -> None:
    """With what the command printed, if it could not ask."""
    done, calls = check(tmp_path, [answer])
    assert done.returncode, done.stdout
    assert "p-1@host1 should consume a, b, and does not answer." in done.stdout
    assert said in done.stdout
    assert len(calls) == 3


def test_where_no_node_should_be_none_is_asked(tmp_path: Path) -> None:
    """Without names, all would be."""
    done, calls = check(tmp_path, ["asked"], told={})
    assert done.returncode == 0, done.stdout
    assert calls == []
