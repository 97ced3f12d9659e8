# SPDX-License-Identifier: MIT
"""playbooks/rotate_secrets.yml: what it does to the vault file, what it refuses, which passwords it knows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from ansible_collections.fleet.celery.plugins.action import fleet_secrets

from tests.unit.rendering import PROJECT, trusted
from tests.unit.test_secrets import NAMES, play, vault_tool
from tests.unit.test_secrets import password as password

if TYPE_CHECKING:
    from pathlib import Path

OLD = "o'ne: $5 % \\ \" #{{ 1 }} é"

STYLES = {
    "as it is made": "---\n# made\nfleet_secrets:\n  beat: {old}\n  web: b  # ours\nother: 1\n",
    "double quotes": '---\nother: {{a: 1}}  # stays\nfleet_secrets:\n  beat: {old}\n  web: "b"\n',
    "flow": "fleet_secrets: {{beat: {old}, web: b}}\nother: 1\n",
    "json": '{{"other": 1, "fleet_secrets": {{"web": "b", "beat": {old}}}}}',
    "no end of line": "other: 1\nfleet_secrets:\n  web: b\n  beat: {old}",
    "block": "fleet_secrets:\n  web: b\n  beat: |-\n    {block}\n  more: 1\n",
    "anchor": "x: &x {old}\nfleet_secrets:\n  beat: *x\n  web: b\n",
}


@pytest.mark.parametrize("style", STYLES)
def test_a_password_is_replaced_kept_and_forgotten_in_any_style(style: str) -> None:
    text = STYLES[style].format(old=fleet_secrets.quoted(OLD), block=OLD)
    content = yaml.safe_load(text)
    assert content["fleet_secrets"]["beat"] == OLD
    now = {**content["fleet_secrets"], "beat": "newpassword"}

    begun = fleet_secrets.edited(text, now, {"beat": OLD})
    assert yaml.safe_load(begun) == {
        **content,
        "fleet_secrets": now,
        "fleet_secrets_previous": {"beat": OLD},
    }
    both = fleet_secrets.edited(begun, {**now, "web": "another"}, {"beat": OLD, "web": "b"})
    assert yaml.safe_load(both)["fleet_secrets_previous"] == {"beat": OLD, "web": "b"}
    ended = fleet_secrets.edited(both, {**now, "web": "another"}, {})
    assert yaml.safe_load(ended) == {**content, "fleet_secrets": {**now, "web": "another"}}
    assert "previous" not in ended


def test_comments_stay() -> None:
    text = STYLES["as it is made"].format(old="a")
    begun = fleet_secrets.edited(text, {"beat": "n", "web": "b"}, {"beat": "a"})
    assert begun.startswith("---\n# made\nfleet_secrets:\n  beat: n\n  web: b  # ours\nother: 1\n")
    assert fleet_secrets.edited(begun, {"beat": "a", "web": "b"}, {}) == text


# --- the action, in a play ---

PLAY = """
- hosts: localhost
  connection: local
  gather_facts: false
  tasks:
    - fleet.celery.fleet_secrets:
        path: "{{ vault }}"
        names: [redis_beat, redis_web]
        replace: "{{ replace | default([]) }}"
        forget: "{{ forget | default([]) }}"
        expected: "{{ expected | default(omit) }}"
      register: found
    - assert:
        that: found.changed or found.secrets.redis_beat == expected.redis_beat
      when: expected is defined
"""


@pytest.fixture
def vault(tmp_path: Path, password: Path) -> Path:
    """A vault file with two passwords."""
    path = tmp_path / "vault.yml"
    path.write_text(
        "---\n# mine\nfleet_secrets:\n  redis_beat: 'qW3r TzUiOpAs'\n  redis_web: 'webwebwebweb'\n"
    )
    vault_tool("encrypt", path, password)
    return path


def content(vault: Path, password: Path) -> dict[str, Any]:
    """Return what a vault file says."""
    found: dict[str, Any] = yaml.safe_load(vault_tool("view", vault, password))
    return found


def run(vault: Path, password: Path, *arguments: str, **variables: Any) -> str:
    """Run the action in a play, at its wordiest; return what it printed."""
    playbook = vault.parent / "play.yml"
    playbook.write_text(PLAY)
    done = play(playbook, password, "--diff", "-vvv", *arguments, vault=str(vault), **variables)
    return f"{done.returncode}\n{done.stdout}{done.stderr}"


def test_a_run_that_was_interrupted_is_gone_on_with(vault: Path, password: Path) -> None:
    old = content(vault, password)["fleet_secrets"]
    said = run(vault, password, replace=["redis_beat"], expected=old)
    begun = content(vault, password)
    assert begun["fleet_secrets_previous"] == {"redis_beat": old["redis_beat"]}
    assert begun["fleet_secrets"]["redis_web"] == old["redis_web"]
    assert len(begun["fleet_secrets"]["redis_beat"]) == fleet_secrets.LENGTH

    before = vault.read_bytes()
    said += run(vault, password, replace=["redis_beat"], expected=begun["fleet_secrets"])
    assert vault.read_bytes() == before

    said += run(vault, password, replace=["redis_web"], forget=["redis_beat"])
    ended = content(vault, password)
    assert ended["fleet_secrets"]["redis_beat"] == begun["fleet_secrets"]["redis_beat"]
    assert ended["fleet_secrets_previous"] == {"redis_web": old["redis_web"]}
    assert said.count("failed=0") == 3
    shown = [*old.values(), *ended["fleet_secrets"].values()]
    assert not [secret for secret in shown if secret in said]


def test_check_mode_has_new_ones_and_writes_none(vault: Path, password: Path) -> None:
    before = vault.read_bytes()
    said = run(
        vault, password, "--check", replace=["redis_beat"], expected=content(vault, password)["fleet_secrets"]
    )
    assert "changed=1" in said
    assert vault.read_bytes() == before


def test_a_file_that_is_not_the_inventorys_is_refused(vault: Path, password: Path) -> None:
    before = vault.read_bytes()
    said = run(vault, password, replace=["redis_beat"], expected={"redis_beat": "sEcReT", "redis_web": "b"})
    assert "The inventory does not have its fleet_secrets from" in said
    assert "sEcReT" not in said
    assert vault.read_bytes() == before


# --- the playbook's variables ---


def evaluate(expression: str, **variables: Any) -> Any:
    """Return the value of an expression, with what the playbook knows."""
    known = yaml.safe_load((PROJECT / "playbooks" / "vars" / "rotate_secrets.yml").read_text())
    given = {"ansible_inventory_sources": [], "fleet_secrets_file": __file__, **variables}
    return Templar(DataLoader(), variables={**trusted(known), **given}).template(
        trust_as_template("{{ " + expression + " }}")
    )


def test_every_password_of_the_fleet_can_be_replaced() -> None:
    assert sorted(evaluate("__rotate_all")) == sorted(NAMES)


def test_what_is_asked_for() -> None:
    assert set(evaluate("__rotate_requested")) == {"admin", "health", "ops", "worker", "beat", "flower", "ca"}
    assert evaluate("__rotate_requested", fleet_rotate="worker, beat") == ["worker", "beat"]
    assert evaluate("__rotate_requested", fleet_rotate=["web"]) == ["web"]
    assert evaluate("__rotate_requested", fleet_rotate="") == []
    assert evaluate("__rotate_requested", fleet_rotate_finish="web") == []
    assert evaluate("__rotate_waiting") == ["redis_web"]
    assert evaluate("__rotate_waiting", fleet_rotate_finish="web") == []


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"fleet_rotate": "worker,nobody"}, "fleet_rotate has nobody"),
        ({"ansible_limit": "worker1"}, "-l worker1"),
        ({"fleet_rotate_finish": "beat"}, "fleet_rotate_finish has beat"),
        ({"fleet_rotate_finish": "web"}, "whose password is not being replaced"),
        ({"fleet_secrets_file": ""}, "There is no vault file"),
    ],
)
def test_what_cannot_be_is_refused(variables: dict[str, Any], message: str) -> None:
    (found,) = evaluate("__rotate_findings", **variables)
    assert message in found


def test_what_can_be_is_not_refused() -> None:
    assert evaluate("__rotate_findings") == []
    begun = {"fleet_secrets_previous": {"redis_web": "old"}}
    assert evaluate("__rotate_findings", fleet_rotate_finish="web", **begun) == []


def test_the_vault_file_is_that_of_the_last_inventory(tmp_path: Path) -> None:
    sources = [tmp_path / "a", tmp_path / "b"]
    for source in sources:
        (source / "group_vars" / "all").mkdir(parents=True)
        (source / "hosts").write_text("")
        (source / "group_vars" / "all" / "vault.yml").write_text("")
    for given in (sources, [source / "hosts" for source in sources]):
        found = evaluate("query('ansible.builtin.first_found', __rotate_files, skip=true)",
                         ansible_inventory_sources=[str(source) for source in given])  # fmt: skip
        assert found == [str(tmp_path / "b/group_vars/all/vault.yml")]
