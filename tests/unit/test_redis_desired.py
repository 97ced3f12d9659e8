# SPDX-License-Identifier: MIT
"""What a Redis should be against what it is: the parts that need no server."""

from __future__ import annotations

import pytest
from ansible_collections.fleet.celery.plugins.module_utils.redis_desired import (
    CANDIDATE,
    acl_changes,
    candidates,
    config_changes,
    parse_acl,
    parse_config,
    wanted_config,
)


def test_a_config_is_read_as_redis_reads_it() -> None:
    text = """
# a comment
Port 0
  save ""
tls-protocols "TLSv1.2 TLSv1.3"
bind 127.0.0.1 ::1
hz 10
hz 20
"""
    assert parse_config(text) == {
        "port": "0",
        "save": "",
        "tls-protocols": "TLSv1.2 TLSv1.3",
        "bind": "127.0.0.1 ::1",
        "hz": "20",
    }


def test_what_a_scratch_server_cannot_tell_is_taken_from_the_file() -> None:
    scratch = {"tls-port": "0", "appendonly": "no", "maxclients": "900", "maxmemory": "1048576", "hz": "10"}
    wanted = wanted_config("tls-port 6379\nappendonly yes\nmaxclients 10000\nmaxmemory 1mb\n", scratch)
    assert wanted == {
        "tls-port": "6379",
        "appendonly": "yes",
        "maxclients": "10000",
        "maxmemory": "1048576",
        "hz": "10",
    }
    live = wanted | {"hz": "50"}
    assert config_changes(wanted, live) == {"hz": "10"}
    assert config_changes(wanted, wanted) == {}


RULES = ["on", "sanitize-payload", "#digest", "~queue", "resetchannels", "-@all", "+ping"]


def listed(name: str, rules: str) -> dict[str, list[str]]:
    """Return users as ACL LIST tells of them: one, and what it should be."""
    (candidate,) = candidates({name: RULES})
    users: dict[str, list[str]] = parse_acl(
        [f"user {name} {rules}", f"user {candidate} {' '.join(RULES[1:])} off"]
    )
    return users


@pytest.mark.parametrize(
    ("rules", "changed"),
    [
        ("on sanitize-payload #digest ~queue resetchannels -@all +ping", False),
        ("on +ping -@all #digest sanitize-payload ~queue", False),  # the order of a server is its own
        ("off sanitize-payload #digest ~queue resetchannels -@all +ping", True),
        ("on sanitize-payload #other ~queue resetchannels -@all +ping", True),
        ("on sanitize-payload #digest #second ~queue resetchannels -@all +ping", True),
        ("on sanitize-payload #digest ~queue ~more resetchannels -@all +ping", True),
        ("on sanitize-payload #digest ~queue &channel -@all +ping", True),
        ("on sanitize-payload #digest ~queue resetchannels -@all +ping +get", True),
        ("on nopass sanitize-payload #digest ~queue resetchannels -@all +ping", True),
    ],
)
def test_a_user_is_compared(rules: str, changed: bool) -> None:
    assert acl_changes({"a": RULES}, listed("a", rules)) == ({"a": RULES} if changed else {}, [])


TWO = "on #digest -@all +ping (~a resetchannels -@all +get) (~b resetchannels -@all +set)"


@pytest.mark.parametrize(
    ("rules", "changed"),
    [
        (TWO, False),
        ("on #digest (~b +set -@all resetchannels) +ping -@all (+get resetchannels -@all ~a)", False),
        # the same words in other groups
        ("on #digest -@all +ping (~b resetchannels -@all +get) (~a resetchannels -@all +set)", True),
        ("on #digest -@all +ping (~a ~b resetchannels -@all +get +set)", True),
        ("on #digest -@all +ping +get ~a (~b resetchannels -@all +set)", True),
        (f"{TWO} (~a resetchannels -@all +get)", True),
        ("on #digest -@all +ping (~a resetchannels -@all +get)", True),
    ],
)
def test_selectors_are_compared_one_by_one(rules: str, changed: bool) -> None:
    lines = [f"user a {rules}", f"user {CANDIDATE}a {TWO} off"]
    wanted = {"a": TWO.split()}
    assert acl_changes(wanted, parse_acl(lines)) == (wanted if changed else {}, [])


def test_users_come_and_go() -> None:
    wanted = {"new": RULES}
    there = listed("old", " ".join(RULES)) | {CANDIDATE + "new": [*RULES[1:], "off"]}
    changed, surplus = acl_changes(wanted, there)
    assert changed == wanted
    assert surplus == [CANDIDATE + "old", "old"]  # one that a comparison was interrupted in, too


def test_nobody_can_log_in_as_a_candidate() -> None:
    assert all(rules[-1] == "off" for rules in candidates({"a": RULES, "b": RULES}).values())
