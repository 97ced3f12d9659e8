# SPDX-License-Identifier: MIT
"""The rules of preflight and of roles: which values are right, and what is said of one that is not."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.fleet.celery.plugins.module_utils.rules import fault


@pytest.mark.parametrize(
    ("rule", "right", "wrong"),
    [
        (
            "secret",
            ["x" * 16, " $HOME ' é\t\\ !!!!"],
            ["", None, "x" * 15, f"{'x' * 20}\n", f"x\r{'x' * 20}"],
        ),
        ("port", [1, "5555", 65535], [0, 65536, -1]),
        ("database", [0, "15"], [16, -1]),
        ("renewal", [[30, 365], ["1", 2]], [[30, 30], [0, 30], [31, 30]]),
        ("all_or_none", [["a", "b"], ["", None], []], [["a", ""], [None, "b"]]),
        ("name", ["a", "A.b:c_d-9", "x" * 200], ["", "-a", "a b", "a*", "a\n", "é"]),
        ("queue", ["a", "x" * 100], ["x" * 101, "", "a,b"]),
    ],
)
def test_a_rule(rule: str, right: list[Any], wrong: list[Any]) -> None:
    assert [value for value in right if fault(value, rule)] == []
    assert [value for value in wrong if not fault(value, rule)] == []


def test_a_password_is_in_no_message() -> None:
    assert "hunter2" not in fault("hunter2", "secret")
    assert "hunter2" not in fault("hunter2\nhunter2hunter2", "secret")
