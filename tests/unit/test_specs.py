# SPDX-License-Identifier: MIT
"""What holds for every role: specifications, defaults and names agree, and no failure is passed over."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from tools import role_docs

ROOT = Path(__file__).parents[2]
ROLES = sorted(path.parents[1] for path in ROOT.glob("roles/*/meta/argument_specs.yml"))
# Where a batch notes what is wrong, and where it ends.
NOTES, END = "../tasks/note_problem.yml", "../tasks/end_batch.yml"
BACKUP = "fleet.celery.fleet_backup"
TASK_FILES = sorted(
    path
    for pattern in (
        "roles/*/tasks/**/*.yml",
        "roles/*/handlers/*.yml",
        "playbooks/*.yml",
        "playbooks/parts/*.yml",
        "playbooks/tasks/*.yml",
        "molecule/**/*.yml",
        "lab/*.yml",
    )
    for path in ROOT.glob(pattern)
)


def load(path: Path) -> Any:
    """The content of a YAML file; an empty mapping if there is none."""
    return (yaml.safe_load(path.read_text()) or {}) if path.exists() else {}


BATCHES = [
    play
    for path in sorted(ROOT.glob("playbooks/parts/*.yml"))
    for play in load(path)
    if any("rescue" in task for task in play.get("tasks", ()))
]


def entry_points(role: Path) -> dict[str, Any]:
    """The entry points of a role, with their options."""
    specs = load(role / "meta" / "argument_specs.yml")["argument_specs"]
    return {name: spec.get("options", {}) for name, spec in specs.items()}


def is_expression(value: Any) -> bool:
    """Whether a default is computed."""
    return isinstance(value, str) and "{{" in value


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_specification_and_defaults_agree(role: Path) -> None:
    """Ansible never applies the default of a specification, so one that differs would be a lie."""
    options, defaults = entry_points(role)["main"], load(role / "defaults" / "main.yml")
    known = {name for of in entry_points(role).values() for name in of}
    assert set(defaults) <= known, "defaults that no specification describes"
    for name, option in options.items():
        if name not in defaults:
            assert "default" not in option, f"{name}: defaults/main.yml does not have the default"
        elif not is_expression(defaults[name]):
            assert option.get("default") == defaults[name], name
            spec = {key: option[key] for key in ("type", "elements", "choices") if key in option}
            assert not ArgumentSpecValidator({name: spec}).validate({name: defaults[name]}).error_messages
        assert not (option.get("required") and name in defaults), f"{name} is required, and has a default"


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_every_option_is_typed_and_described(role: Path) -> None:
    for entry_point, options in entry_points(role).items():
        for name, option in options.items():
            assert option.get("type"), f"{entry_point}: {name}"
            assert option.get("description"), f"{entry_point}: {name}"


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_names_carry_the_role(role: Path) -> None:
    """Otherwise two roles could overwrite each other's variables."""
    shared = ("fleet_",) if role.name == "preflight" else ()
    for name in load(role / "defaults" / "main.yml"):
        assert name.startswith(f"{role.name}_"), name
    for name in entry_points(role)["main"]:
        assert name.startswith((f"{role.name}_", *shared)), name
    for name in load(role / "vars" / "main.yml"):
        assert name.startswith(f"__{role.name}_"), name


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_readme_has_the_table_of_variables(role: Path) -> None:
    assert (role / "README.md").read_text() == role_docs.updated(role), "run `make docs`"


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_the_table_of_contents_is_short(role: Path) -> None:
    assert len((role / "tasks" / "main.yml").read_text().splitlines()) <= 60


def tasks(items: Any) -> Any:
    """Yield every task of a file, those in blocks included."""
    for item in items or []:
        if isinstance(item, dict):
            yield item
            for key in ("block", "rescue", "always", "tasks", "pre_tasks", "post_tasks", "handlers"):
                yield from tasks(item.get(key))


@pytest.mark.parametrize("path", TASK_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_task_hides_a_failure_or_a_change(path: Path) -> None:
    content = load(path)
    for task in tasks(content if isinstance(content, list) else []):
        assert "ignore_errors" not in task, task.get("name")
        assert task.get("failed_when") is not False, task.get("name")
        assert not ("notify" in task and task.get("changed_when") is False), (
            f"{task.get('name')} never notifies"
        )
        if "rescue" in task:
            last = task["rescue"][-1]
            # all hosts of a batch are put back before it fails: the task that follows sees to both
            assert "ansible.builtin.fail" in last or NOTES.endswith(last["ansible.builtin.import_tasks"]), (
                f"the rescue of {task.get('name')} does not fail"
            )


@pytest.mark.parametrize("play", BATCHES, ids=lambda play: play["name"])
def test_what_was_noted_in_a_batch_fails_at_its_end(play: Any) -> None:
    noting = [place for place, task in enumerate(play["tasks"]) if "rescue" in task]
    for place in noting:
        assert play["tasks"][place + 1]["ansible.builtin.import_tasks"] == END
    end = load(ROOT / "playbooks" / "parts" / END)
    failing = [task for task in end if "ansible.builtin.fail" in task]
    assert [task["when"] for task in failing] == ["batch_problems | length > 0", "batch_lost | length > 0"]
    assert all(task["any_errors_fatal"] is True for task in failing)
    assert end[-1] is failing[-1], "a host that is lost after this would not end the run"


@pytest.mark.parametrize("play", BATCHES, ids=lambda play: play["name"])
def test_a_batch_saves_for_its_role_and_restores_what_belongs_to_it(play: Any) -> None:
    end = next(task for task in play["tasks"] if task.get("ansible.builtin.import_tasks") == END)
    role = end["vars"]["batch_role"]
    assert play["module_defaults"] == {"group/fleet.celery.backup": {"backup_for": role}}
    rollback = load(ROOT / "roles" / role / "tasks" / "rollback.yml")
    assert {task[BACKUP]["owner"] for task in tasks(rollback) if BACKUP in task} == {role}


@pytest.mark.parametrize("path", TASK_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_secret_in_the_environment_of_a_task(path: Path) -> None:
    """With pipelining the environment of a task is in a command line, for every user of the host to see."""
    content = load(path)
    for task in tasks(content if isinstance(content, list) else []):
        assert not re.search("password|secret|broker_url", str(task.get("environment", ""))), task.get("name")


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_roles_name_no_group(role: Path) -> None:
    """A playbook gives a role what it needs of other hosts, so that a role works in any inventory."""
    for path in [
        *role.glob("tasks/**/*.yml"),
        *role.glob("defaults/*.yml"),
        *role.glob("vars/*.yml"),
        *role.rglob("*.j2"),
    ]:
        assert not re.search(r"\bgroups\[|\bgroups\.|group_names", path.read_text()), path
