# SPDX-License-Identifier: MIT
"""The role preflight: what it reads from a host, and how it words what is wrong."""

from __future__ import annotations

import time

import pytest

from tests.unit.rendering import Role


def host(*disks: str, clock: float = 0) -> Role:
    """Return the role for a host with these lines of `df`, and a clock that is off."""
    lines = [str(int(time.time() + clock)), "Avail Mounted on", *disks]
    return Role("preflight", preflight_disk_free_mb=2048, __preflight_output={"stdout_lines": lines})


@pytest.mark.parametrize(
    ("disks", "full"),
    [
        (["70000 /", "70000 /", "70000 /"], {}),
        (["2048 /", "2048 /", "2048 /"], {}),
        (["100 /", "100 /", "100 /"], {"/": 100}),
        (["70000 /", "9000 /opt", "12 /var"], {"/var": 12}),
        (["2047 /", "0 /opt", "9000 /var"], {"/": 2047, "/opt": 0}),
    ],
)
def test_full_disks_are_named_once(disks: list[str], full: dict[str, int]) -> None:
    found = host(*disks).evaluate("__preflight_full_disks")
    assert {disk["key"]: disk["value"] for disk in found} == full


@pytest.mark.parametrize(("lines", "most"), [(["userns 0"], 0), (["apt 12", "userns 96365"], 96365), ([], 1)])
def test_user_namespaces_are_asked_for(lines: list[str], most: int) -> None:
    """Each node has one; a kernel that does not know the limit has none. Not taken for a disk."""
    role = host("70000 /", *lines)
    assert int(role.evaluate("__preflight_user_namespaces")) == most
    assert role.evaluate("__preflight_free") == {"/": 70000}


@pytest.mark.parametrize("nodes", [True, False])
def test_only_hosts_of_nodes_need_user_namespaces(nodes: bool) -> None:
    """No other unit has one, and to allow none is what hardened hosts do."""
    role = host("70000 /", "userns 0")
    found = [task.get("vars", {}).get("__preflight_rules") for task in role.read("tasks/host.yml")]
    (rules,) = filter(None, found)
    (rule,) = [rule for rule in rules if "user namespaces" in rule["message"]]
    role.variables["preflight_nodes"] = nodes
    role.templar.available_variables = role.variables
    assert role.evaluate(rule["holds"].strip("{} ")) is not nodes


@pytest.mark.parametrize("off", [0, 90, -4000])
def test_a_clock_is_compared_with_the_controllers(off: float) -> None:
    assert int(host("1 /", clock=off).evaluate("__preflight_clock_offset")) == pytest.approx(off, abs=3)
