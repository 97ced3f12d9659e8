# SPDX-License-Identifier: MIT
"""The release before this one, from this repository's own history.

It is the newest tag of a release that HEAD has before it. As long as there is no such tag, it is FIRST.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.fleet.support.inventory import ROOT
from tests.fleet.support.plays import Plays

if TYPE_CHECKING:
    from pathlib import Path

# The last commit before the project was an Ansible collection, with the older names of variables and modules.
FIRST = "6e4698c"
TAG = "[0-9]*.[0-9]*.[0-9]*"


class NoHistoryError(Exception):
    """This checkout does not have the commit; the message says why, and what to do."""


def git(*words: str) -> str:
    """Return what git says in this checkout; nothing if it fails."""
    return subprocess.run(
        ["git", *words], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()


def commit() -> str:
    """Return the commit of the release before this one.

    Raises:
        NoHistoryError: This is a tarball, or a clone without that commit.
    """
    if git("rev-parse", "--show-toplevel") != str(ROOT):
        raise NoHistoryError(f"{ROOT} is no clone of the repository: it has no release but this one.")
    name = git("describe", "--tags", "--abbrev=0", f"--match={TAG}", "HEAD^") or FIRST
    found = git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
    if not found or git("cat-file", "-t", f"{found}^{{tree}}") != "tree":
        raise NoHistoryError(
            f"This clone does not have {name}, the release before this one. `git fetch --unshallow --tags`."
        )
    return found


def checkout() -> Path:
    """Return a folder with the release before this one; it is a clone of its own, which a build needs.

    Raises:
        NoHistoryError: There is none.
    """
    found = commit()
    folder = ROOT / ".cache" / "previous" / found
    if not folder.exists():
        begun = folder.with_suffix(".begun")
        shutil.rmtree(begun, ignore_errors=True)
        subprocess.run(["git", "clone", "-q", "--shared", "--no-checkout", ROOT, begun], check=True)
        subprocess.run(["git", "-C", begun, "checkout", "-q", "--detach", found], check=True)
        begun.rename(folder)
    return folder


@dataclass
class PreviousPlays(Plays):
    """Runs playbooks of the release before this one on the fleet, with its own inventory of the same hosts.

    The lab's part of the inventory stays: how the hosts are reached, the vault, and `fleet_local_dir`.
    """

    root: Path = field(default_factory=checkout)

    def __post_init__(self) -> None:
        """Replace the project's inventory by that of the release."""
        self.inventory_arguments = [
            word.replace(f"{ROOT}/inventories", f"{self.root}/inventories")
            for word in self.inventory_arguments
        ]

    @property
    def _environment(self) -> dict[str, str]:
        """The environment, in which only the vault's password is left of what Ansible is told."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
        password = os.environ.get("ANSIBLE_VAULT_PASSWORD_FILE")
        return {
            **kept,
            "ANSIBLE_CONFIG": str(self.root / "ansible.cfg"),
            **({"ANSIBLE_VAULT_PASSWORD_FILE": password} if password else {}),
        }
