# SPDX-License-Identifier: MIT
"""Extra variables of the playbooks: their names, and that former names are refused."""

from __future__ import annotations

import json
import re
import subprocess
from typing import TYPE_CHECKING

import pytest
import yaml
from ansible_collections.fleet.celery.plugins.module_utils.playbook_variables import NAMES, RENAMED, problems

from tests.unit.rendering import PROJECT

if TYPE_CHECKING:
    from pathlib import Path

PLAYBOOKS = PROJECT / "playbooks"


def play(
    folder: Path, playbook: str, variables: dict[str, str], inventory: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a playbook with extra variables on a host that no connection leads to.

    Args:
        folder: Where the inventory is written.
        playbook: Name of the playbook.
        variables: The extra variables.
        inventory: Variables of the host.
    """
    host = {
        "ansible_host": "192.0.2.1",
        "ansible_ssh_common_args": "-o ConnectTimeout=1",
        **(inventory or {}),
    }
    described = {"all": {"hosts": {"one": host}, "children": {"redis": {"hosts": {"one": {}}}}}}
    (folder / "hosts.yml").write_text(yaml.safe_dump(described))
    return subprocess.run(
        ["ansible-playbook", "-i", folder, PLAYBOOKS / playbook, "-e", json.dumps(variables)],
        cwd=PROJECT,
        text=True,
        capture_output=True,
        check=False,
    )


@pytest.mark.parametrize("playbook", ["parts/lock.yml", "preflight.yml", "secrets.yml"])
def test_former_names_are_refused_with_the_new_ones(tmp_path: Path, playbook: str) -> None:
    done = play(tmp_path, playbook, dict.fromkeys(RENAMED, "x"))
    assert done.returncode != 0
    assert "UNREACHABLE" not in done.stdout, "it is refused before a host is asked"
    for old, new in RENAMED.items():
        assert re.search(rf"\b{old}\b.*\b{new}\b", done.stdout), old
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hosts.yml"], "no vault file was made"


def test_variables_of_the_inventory_may_have_former_names(tmp_path: Path) -> None:
    done = play(tmp_path, "parts/lock.yml", {}, inventory=dict.fromkeys(RENAMED, "production"))
    assert "UNREACHABLE" in done.stdout, "it comes as far as the host of the lock"
    assert "named" not in done.stdout


def test_a_misspelt_name_is_refused_with_the_nearest() -> None:
    assert problems(["fleet_restart_teir", "flower_port"], {"fleet_name"}) == [
        "No playbook reads the extra variable fleet_restart_teir. Is it fleet_restart_tier?"
    ]
    assert problems(["fleet_nmae"], {"fleet_name"}) == [
        "No playbook reads the extra variable fleet_nmae. Is it fleet_name?"
    ]
    assert problems([*NAMES, "fleet_name", "celery_app_source", "x"], {"fleet_name"}) == []


def test_each_is_read_and_documented() -> None:
    plays = "\n".join(path.read_text() for path in PLAYBOOKS.rglob("*.yml"))
    pages = "\n".join(path.read_text() for path in (PROJECT / "docs").rglob("operations*/**/*.md"))
    pages += (PROJECT / "docs" / "operations.md").read_text()
    for name in NAMES:
        assert re.search(rf"(?<!-e ){name}\b", plays), f"no playbook reads {name}"
        assert name in pages or name == "fleet_rotate_no_log", f"no page of docs/operations has {name}"


def test_the_page_about_upgrading_has_the_same_names() -> None:
    page = (PROJECT / "docs" / "upgrading.md").read_text()
    section = page.partition("### Extra variables")[2].partition("\n### ")[0]
    assert dict(re.findall(r"\| `(\w+)` \| `(\w+)` \|", section)) == RENAMED
