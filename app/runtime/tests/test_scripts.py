# SPDX-License-Identifier: MIT
"""The Lua scripts: each is in a file with a head, and says whether a Redis at its memory limit runs it."""

from __future__ import annotations

import re
from pathlib import Path

import fleet_runtime
import pytest
from fleet_runtime.broker import scripts
from fleet_runtime.transport.decode import MALFORMED

SOURCES = Path(fleet_runtime.__path__[0])
# What takes room, or what a Redis at its memory limit can do without.
REFUSED_AT_THE_LIMIT = {"dead_letter", "forget_node", "once_finish", "store_result", "take_dead_letter"}


def test_each_script_has_a_constant_of_its_name() -> None:
    """A file without one would be a function of Redis that no process calls."""
    constants = {name.lower() for name in vars(scripts) if name.isupper()} - {"folder", "allow_oom"}
    assert constants == set(scripts.names())
    for name in scripts.names():
        assert getattr(scripts, name.upper()) == scripts.text(name)


@pytest.mark.parametrize("name", scripts.names())
def test_the_head_of_a_script_lists_keys_and_arguments_and_result(name: str) -> None:
    """Those that its code uses: what a constant index names is in the head."""
    head, _, code = scripts.text(name).removeprefix(scripts.ALLOW_OOM).partition("\n-- Returns")
    assert head.startswith("-- ")
    assert all(line.startswith("--") for line in head.splitlines())
    for kind, used in re.findall(r"\b(KEYS|ARGV)\[(\d+)\]", code):
        listed = [int(number) for number in re.findall(rf"-- .*?\b{kind}\[(\d+)\]", head)]
        assert int(used) <= max(listed), f"{kind}[{used}] is not in the head"


def test_which_scripts_run_at_the_memory_limit() -> None:
    """A message that is moved, acknowledged or counted makes room in the end."""
    allowed = {name for name in scripts.names() if scripts.text(name).startswith(scripts.ALLOW_OOM)}
    assert set(scripts.names()) - allowed == REFUSED_AT_THE_LIMIT
    assert all("#!" not in scripts.text(name) for name in REFUSED_AT_THE_LIMIT)


def test_there_is_no_script_in_a_string() -> None:
    """It would not be among the functions of Redis, and no linter would read it."""
    assert [path for path in SOURCES.rglob("*.py") if "redis.call('" in path.read_text()] == []


def test_a_message_that_cannot_be_parsed_gets_the_prefix_that_python_knows() -> None:
    """By it, the transport parses the message again before it is a dead letter."""
    assert f"return '{MALFORMED}' .. redis.sha1hex(item)" in scripts.FETCH_AND_ACK


def test_a_script_of_another_name_is_not_there() -> None:
    """An error names the file."""
    with pytest.raises(FileNotFoundError):
        scripts.text("turn")
