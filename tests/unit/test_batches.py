# SPDX-License-Identifier: MIT
"""In which order a release comes to hosts, and to how many at a time."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

from tests.unit.rendering import PROJECT

if TYPE_CHECKING:
    from pathlib import Path

WORKERS = [f"worker{number}" for number in range(1, 10)]


def play(playbook: str) -> dict[str, Any]:
    """Return the play of a playbook that comes to workers in batches; others come to one host at a time."""
    plays: list[dict[str, Any]] = yaml.safe_load((PROJECT / "playbooks" / playbook).read_text())
    [found] = [play for play in plays if isinstance(play.get("serial"), str)]
    return found


def order(groups: dict[str, list[str]]) -> list[str]:
    """Return the hosts of the play that runs workers, one after another."""
    templar = Templar(DataLoader(), variables={"groups": groups})
    hosts: str = templar.template(trust_as_template(play("parts/workers.yml")["hosts"]))
    return hosts.split(",")


def test_hosts_come_in_the_inventorys_order() -> None:
    """So that an operator knows which one is first; and those that are drained come last."""
    workers = [f"worker{number}" for number in range(30)]
    assert order({"workers": workers}) == workers
    drained = ["worker0", "worker7"]
    others = [name for name in workers if name not in drained]
    assert order({"workers": workers, "workers_drained": drained}) == [*others, *drained]


def batches(folder: Path, playbook: str, *options: str) -> list[int]:
    """Return how many hosts Ansible takes at a time, of nine, with the play's own hosts and batches."""
    given = play(playbook)
    ask = {"ansible.builtin.debug": {"msg": "of {{ ansible_play_batch | length }}"}, "run_once": True}
    plays = [{**{key: given[key] for key in ("hosts", "serial")}, "gather_facts": False, "tasks": [ask]}]
    (folder / "play.yml").write_text(yaml.safe_dump(plays))
    (folder / "hosts").write_text(
        "\n".join(["[workers]", *WORKERS, "[workers_restarted:children]", "workers"])
    )
    command = ["ansible-playbook", "--inventory", "hosts", *options, "play.yml"]
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    return [int(number) for number in re.findall(r"of (\d+)", done.stdout)]


@pytest.mark.parametrize("playbook", ["parts/workers.yml", "restart.yml"])
@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ([], [1, 2, 2, 2, 2]),
        (["-e", '{"fleet_batches": [1, "50%"]}'], [1, 4, 4]),
        (["-e", '{"fleet_batches": 3}'], [3, 3, 3]),
    ],
    ids=["by itself", "half", "three"],
)
def test_how_many_hosts_change_at_a_time(
    tmp_path: Path, playbook: str, options: list[str], sizes: list[int]
) -> None:
    """One first, then a quarter of the hosts, or as the operator says."""
    assert batches(tmp_path, playbook, *options) == sizes
