# SPDX-License-Identifier: MIT
"""The project's own rules for its roles and playbooks: those that no linter knows."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml
from ansible.plugins.loader import fragment_loader
from ansible.utils.plugin_docs import get_docstring
from ansible_collections.fleet.celery.plugins.module_utils.paths import APP_ENV, COMMAND
from ansible_collections.fleet.celery.plugins.module_utils.paths import ROOT as ROOT_DIR

ROOT = Path(__file__).resolve().parents[2]
ROLES = sorted(path for path in ROOT.glob("roles/*/"))
PLAYS = sorted(
    path
    for pattern in ("*.yml", "playbooks/*.yml", "playbooks/parts/*.yml", "lab/*.yml")
    for path in ROOT.glob(pattern)
)
TASK_FILES = sorted([*ROOT.glob("roles/*/tasks/**/*.yml"), *ROOT.glob("roles/*/handlers/*.yml")])
ROLE_TEXTS = sorted(
    path
    for role in ROLES
    for folder in ("defaults", "handlers", "tasks", "templates", "vars")
    for path in (role / folder).rglob("*")
    if path.is_file()
)
MOST_LINES = 150
READS_ONLY = re.compile(r"(_info|_health|_ping|\.(assert|command|debug|set_fact|uri))$")
SECRET = re.compile(r"passw|passphrase|secret|broker_url", re.IGNORECASE)


def tasks_of(node: Any) -> Iterator[dict[str, Any]]:
    """The tasks below a play, a block or a list of these."""
    if isinstance(node, list):
        for item in node:
            yield from tasks_of(item)
    elif isinstance(node, dict):
        sections = ("pre_tasks", "tasks", "post_tasks", "handlers", "block", "rescue", "always")
        if not any(section in node for section in sections):
            yield node
        for section in sections:
            yield from tasks_of(node.get(section, []))


TASKS = [
    (path.relative_to(ROOT), task)
    for path in (*PLAYS, *TASK_FILES)
    for task in tasks_of(yaml.safe_load(path.read_text()))
]


def named(path: Path, task: dict[str, Any]) -> str:
    """A task, for a message."""
    return f"{path}: {task.get('name', task)}"


def test_tasks_are_found() -> None:
    """The rules below would pass if there were nothing to look at."""
    assert {path.parts[1] for path, _ in TASKS if path.parts[0] == "roles"} == {role.name for role in ROLES}


def test_failures_are_not_hidden() -> None:
    """A task that cannot fail says nothing when it is green."""
    hidden = [
        named(*item) for item in TASKS if item[1].get("failed_when") is False or "ignore_errors" in item[1]
    ]
    assert not hidden


def test_notifications_are_sent() -> None:
    """A task that never changes anything never notifies."""
    assert not [
        named(*item) for item in TASKS if "notify" in item[1] and item[1].get("changed_when") is False
    ]


def test_secrets_are_in_neither_log_nor_diff() -> None:
    """`no_log` hides a result, but not its diff; and each `no_log` can be lifted to look for a fault."""
    guarded = [item for item in TASKS if "no_log" in item[1]]
    assert not [
        named(path, task)
        for path, task in guarded
        if task.get("diff") is not False and not any(READS_ONLY.search(key) for key in task)
    ]
    assert not [
        named(path, task) for path, task in guarded if not re.search(r"\w+_no_log", str(task["no_log"]))
    ]


def test_secrets_are_not_in_the_environment_of_a_task() -> None:
    """With pipelining, a task's environment is on the command line of a shell, for every user to see."""
    assert not [named(*item) for item in TASKS if SECRET.search(str(item[1].get("environment", "")))]


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_role_is_whole(role: Path) -> None:
    """A reader finds the same files in each role."""
    expected = (
        "README.md",
        "defaults/main.yml",
        "meta/argument_specs.yml",
        "meta/main.yml",
        "tasks/main.yml",
    )
    assert [file for file in expected if not (role / file).is_file()] == []
    described = yaml.safe_load((role / "meta" / "main.yml").read_text())["galaxy_info"]
    assert described["license"] == "MIT"
    assert described["description"]


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_entry_points_are_specified(role: Path) -> None:
    """Each file of tasks is an entry point with an argument specification, or below tasks/internal."""
    specified = yaml.safe_load((role / "meta" / "argument_specs.yml").read_text())["argument_specs"]
    assert sorted(specified) == sorted(path.stem for path in role.glob("tasks/*.yml"))
    assert all("short_description" in spec and "options" in spec for spec in specified.values())
    assert {path.name for path in role.glob("tasks/*/")} <= {"internal"}


def test_internal_tasks_are_used_by_their_role_only() -> None:
    """A playbook names entry points."""
    assert not [path.name for path in ROOT.glob("playbooks/**/*.yml") if "internal/" in path.read_text()]


def test_roles_know_no_inventory() -> None:
    """A role gets what it needs from its playbook; of other hosts it knows what it found there itself."""
    inventory = re.compile(r"\bhostvars\b|\bgroups\s*[\[.]|\bgroup_names\b")
    exempt = ROOT / "roles" / "preflight"  # its job is to read the inventory
    offending = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in ROLE_TEXTS
        if not path.is_relative_to(exempt)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if inventory.search(line) and "ansible_play_" not in line
    ]
    assert not offending


def test_task_files_are_short() -> None:
    """A phase that needs more is two."""
    assert not [str(path) for path in TASK_FILES if len(path.read_text().splitlines()) > MOST_LINES]


def test_packages_are_installed_as_the_locks_of_apt_allow() -> None:
    """A new machine's first upgrades hold the locks for minutes, and to load the index costs a second."""
    installs = [
        (path, task, task["ansible.builtin.apt"])
        for path, task in TASKS
        if "name" in task.get("ansible.builtin.apt", {})
    ]
    roles = {path.parts[1] for path, *_ in installs}
    assert roles >= {"redis", "flower", "pki", "celery_app", "celery_worker"}
    for path, task, options in installs:
        assert options["lock_timeout"] >= 600, named(path, task)
        assert options["install_recommends"] is False, named(path, task)
        if path.name == "install.yml":
            assert "when" in task, f"{named(path, task)}: install only what is missing"


def test_shared_paths_have_one_home() -> None:
    """Who makes a path and who uses it would differ one day."""
    files = [*ROLE_TEXTS, *TASK_FILES, *ROOT.glob("playbooks/**/*.yml"), *ROOT.glob("plugins/*/*.py")]
    offending = [
        str(path.relative_to(ROOT))
        for path in files
        if path.name != "paths.py"
        and any(shared in path.read_text() for shared in (f'"{ROOT_DIR}"', APP_ENV, COMMAND))
    ]
    assert offending == []


# A file without a `main` has the documentation of an action, which ansible-doc looks for there.
MODULES, DOCUMENTATION = (
    [path for path in sorted(ROOT.glob("plugins/modules/*.py")) if ("def main(" in path.read_text()) is runs]
    for runs in (True, False)
)


def test_there_are_few_modules() -> None:
    """Where a well-kept module of others does it, that is used: plugins/README.md says for each why not."""
    assert len(MODULES) <= 16
    listed = re.findall(r"^\| `(\w+)` \|", (ROOT / "plugins" / "README.md").read_text(), re.MULTILINE)
    assert listed == [path.stem for path in MODULES]


def test_files_without_a_main_document_an_action() -> None:
    """A module that lost its `main` would pass for documentation."""
    assert [
        path.stem for path in DOCUMENTATION if not (ROOT / "plugins" / "action" / path.name).exists()
    ] == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_modules_are_documented(path: Path) -> None:
    """Each option, with what the argument specification has, and how far check mode and diffs go."""
    module = importlib.import_module(f"ansible_collections.fleet.celery.plugins.modules.{path.stem}")
    described, *_ = get_docstring(str(path), fragment_loader, collection_name="fleet.celery")
    specification: dict[str, Any] = {}

    class AskedError(Exception):
        """The module has told its specification."""

    def tell(**given: Any) -> None:
        specification.update(given)
        raise AskedError

    with mock.patch.object(module, "AnsibleModule", tell), pytest.raises(AskedError):
        module.main()
    assert set(described["attributes"]) >= {"check_mode", "diff_mode", "platform"}
    assert all(attribute["support"] for attribute in described["attributes"].values())
    assert described["version_added"] == "0.1.0"
    assert options_of(described["options"]) == options_of(specification["argument_spec"])


def options_of(options: dict[str, Any]) -> dict[str, Any]:
    """Return what documentation and specification both have, by the names of the options."""
    return {
        name: (
            option.get("type", "str"),
            option.get("elements"),
            bool(option.get("required")),
            option.get("default"),
            sorted(option.get("choices") or ()),
            options_of(option.get("suboptions") or option.get("options") or {}),
        )
        for name, option in options.items()
    }


RESULT = re.compile(
    rf"\b({'|'.join(role.name for role in ROLES)})_result\b(?: \| default\(\{{\}}\)\))?\.(\w+)"
)


def returned(role: Path) -> set[str]:
    """The keys of a role's documented result variable, as its entry points set them."""
    keys: set[str] = set()
    for path in role.glob("tasks/*.yml"):
        for task in tasks_of(yaml.safe_load(path.read_text())):
            result = task.get("ansible.builtin.set_fact", {}).get(f"{role.name}_result", {})
            if isinstance(result, str):
                assert result == f"{{{{ __{role.name}_result }}}}", named(path, task)
                result = yaml.safe_load((role / "vars" / "main.yml").read_text())[f"__{role.name}_result"]
            keys |= set(result)
    return keys


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_results_of_roles_are_documented(role: Path) -> None:
    """Each key is in the README of the role, below "Returns"."""
    section = (role / "README.md").read_text().partition("\n## Returns\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == returned(role)


def test_nobody_reads_an_internal_variable_of_a_role() -> None:
    """Playbooks and filters read the documented result of a role, so its other names may change."""
    internal = re.compile(rf"\b__(?:{'|'.join(role.name for role in ROLES)})_\w+")
    readers = [*ROOT.glob("playbooks/**/*.yml"), *ROOT.glob("plugins/filter/*")]
    found = {
        path.name: names
        for path in readers
        if path.is_file() and (names := internal.findall(path.read_text()))
    }
    assert not found


def test_playbooks_read_what_roles_return() -> None:
    """Each key that a playbook reads is one that an entry point sets."""
    read = {match for path in ROOT.glob("playbooks/**/*.yml") for match in RESULT.findall(path.read_text())}
    assert {role for role, _ in read} >= {"celery_app", "celery_worker"}
    assert not [f"{role}_result.{key}" for role, key in read if key not in returned(ROOT / "roles" / role)]


def test_tasks_are_named_in_the_imperative_of_the_field() -> None:
    """Install, Validate, Wait for: the output of a run is read by people who do not know the fleet."""
    told = re.compile(r"(Look|See|Ask|Say|Tell|Note|Foresee|Let|Have|Make|Put|Forget|Know)\b")
    plays = [
        (path.relative_to(ROOT), play)
        for path in (*ROOT.glob("playbooks/*.yml"), *ROOT.glob("playbooks/parts/*.yml"))
        for play in yaml.safe_load(path.read_text())
    ]
    named_so = [named(*item) for item in (*TASKS, *plays) if told.match(item[1].get("name", ""))]
    assert [name for name in named_so if name.startswith(("roles", "playbooks"))] == []
