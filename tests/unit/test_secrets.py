# SPDX-License-Identifier: MIT
"""playbooks/secrets.yml: what it makes, and what it leaves alone."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
NAMES = list(
    yaml.safe_load((ROOT / "roles" / "preflight" / "meta" / "argument_specs.yml").read_text())[
        "argument_specs"
    ]["main"]["options"]["fleet_secrets"]["options"]
)


@pytest.fixture
def password(tmp_path: Path) -> Path:
    """A file with a vault password."""
    file = tmp_path / "vault-password"
    file.write_text("the password of this test\n")
    return file


def run(vault: Path, password: Path | None, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the playbook for a vault file."""
    return play(ROOT / "playbooks" / "secrets.yml", password, *arguments, fleet_secrets_file=str(vault))


def play(
    playbook: Path, password: Path | None, *arguments: str, **variables: Any
) -> subprocess.CompletedProcess[str]:
    """Run a playbook on this machine, with a file that has a vault password."""
    given = ["--vault-password-file", str(password)] if password else []
    env = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_VAULT")}
    return subprocess.run(
        ["ansible-playbook", *given, str(playbook), "-e", json.dumps(variables), *arguments],
        cwd=ROOT,
        env=env,
        text=True,
        capture_output=True,
        check=False,
    )


def vault_tool(verb: str, vault: Path, password: Path) -> str:
    """Return what `ansible-vault` says."""
    command = ["ansible-vault", verb, "--vault-password-file", str(password), str(vault)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_makes_every_password_and_shows_none(tmp_path: Path, password: Path) -> None:
    vault = tmp_path / "new" / "vault.yml"
    done = run(vault, password, "--diff", "-vvv")
    assert done.returncode == 0, done.stdout + done.stderr
    made = yaml.safe_load(vault_tool("view", vault, password))["fleet_secrets"]
    assert list(made) == NAMES
    assert all(len(secret) >= 32 and secret.isalnum() for secret in made.values())
    assert len(set(made.values())) == len(NAMES)
    assert stat.S_IMODE(vault.stat().st_mode) == 0o600
    assert vault.read_text().startswith("$ANSIBLE_VAULT;")
    assert not [secret for secret in made.values() if secret in done.stdout + done.stderr]


def test_a_second_run_changes_nothing(tmp_path: Path, password: Path) -> None:
    vault = tmp_path / "vault.yml"
    run(vault, password)
    before = vault.read_bytes()
    done = run(vault, password)
    assert "changed=0" in done.stdout
    assert vault.read_bytes() == before


def test_adds_what_is_missing_and_keeps_the_rest(tmp_path: Path, password: Path) -> None:
    vault = tmp_path / "vault.yml"
    given = '---\n# mine\nother: {a: 1}  # stays\nfleet_secrets:\n  flower: "o\'ne: $5 % \\\\"  # chosen\n'
    vault.write_text(given)
    vault_tool("encrypt", vault, password)
    assert run(vault, password).returncode == 0
    text = vault_tool("view", vault, password)
    content = yaml.safe_load(text)
    assert content["other"] == {"a": 1}
    assert content["fleet_secrets"]["flower"] == "o'ne: $5 % \\"
    assert set(content["fleet_secrets"]) == set(NAMES)
    assert "# mine" in text
    assert "# chosen" in text


def test_keeps_the_rest_of_a_file_in_another_style(tmp_path: Path, password: Path) -> None:
    vault = tmp_path / "vault.yml"
    vault.write_text('{"fleet_secrets": {"flower": "qW3rTzUiOpAsDfGhJk"}, "other": 1}')
    vault_tool("encrypt", vault, password)
    assert run(vault, password).returncode == 0
    content = yaml.safe_load(vault_tool("view", vault, password))
    assert content["fleet_secrets"]["flower"] == "qW3rTzUiOpAsDfGhJk"
    assert content["other"] == 1
    assert set(content["fleet_secrets"]) == set(NAMES)


def test_check_mode_tells_and_writes_nothing(tmp_path: Path, password: Path) -> None:
    vault = tmp_path / "vault.yml"
    done = run(vault, password, "--check")
    assert "changed=1" in done.stdout
    assert not vault.exists()


def test_refuses_without_a_vault_password(tmp_path: Path) -> None:
    done = run(tmp_path / "vault.yml", None)
    assert done.returncode != 0
    assert "There is no vault password to encrypt with." in done.stdout + done.stderr
    assert not (tmp_path / "vault.yml").exists()


def test_refuses_a_file_in_clear_text(tmp_path: Path, password: Path) -> None:
    vault = tmp_path / "vault.yml"
    vault.write_text("fleet_secrets: {}\n")
    done = run(vault, password)
    assert done.returncode != 0
    assert "is not encrypted" in done.stdout + done.stderr
    assert vault.read_text() == "fleet_secrets: {}\n"


def test_refuses_a_file_of_another_password(tmp_path: Path, password: Path) -> None:
    vault = tmp_path / "vault.yml"
    run(vault, password)
    before = vault.read_bytes()
    password.write_text("another one\n")
    done = run(vault, password)
    assert done.returncode != 0
    assert "cannot be decrypted" in done.stdout + done.stderr
    assert vault.read_bytes() == before
