# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a Redis should be, according to redis.conf and users.acl, against what a running one says it is.

Pure functions on text: the module that uses them asks and tells the server.
"""

from __future__ import annotations

import shlex
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

# How a scratch server reads a redis.conf without being what it describes: no port, no TLS, no data, no users.
SCRATCH_ARGUMENTS = {
    "tls-port": "0",
    "tls-replication": "no",
    "dir": "",
    "appendonly": "no",
    "aclfile": "",
    "logfile": "",
    "supervised": "no",
    "unixsocket": "",
    "replicaof": "no one",
}

# Directives that such a server cannot tell: the above, and those that limits of its parent process reduce.
MASKED = {*SCRATCH_ARGUMENTS, "maxclients"}

# Rules about how a user is created, not about its rights.
STEPS = {"on", "off", "reset", "resetpass", "resetkeys", "resetchannels"}

# Users that exist while ACL rules are compared: the same rules, switched off.
CANDIDATE = "candidate-"


def parse_config(text: str) -> dict[str, str]:
    """Return the directives of a redis.conf; of a directive that is there twice, the last."""
    directives = {}
    for line in text.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            name, *words = shlex.split(line)
            directives[name.lower()] = " ".join(words)
    return directives


def wanted_config(text: str, scratch: Mapping[str, str]) -> dict[str, str]:
    """Return all directives as a server with this redis.conf would print them.

    Args:
        text: The redis.conf.
        scratch: What a scratch server that read it prints. So sizes, second names, files that are included,
            and defaults of what the file does not say are as the server has them.
    """
    masked = {name: value for name, value in parse_config(text).items() if name in MASKED}
    return {name: value for name, value in scratch.items() if name not in MASKED} | masked


def config_changes(wanted: Mapping[str, str], live: Mapping[str, str]) -> dict[str, str]:
    """Return the directives that the server has otherwise, with the value wanted."""
    return {name: value for name, value in wanted.items() if value != live[name]}


def parse_acl(lines: list[str]) -> dict[str, list[str]]:
    """Return the rules of each user of an ACL file, or of the answer to ACL LIST."""
    users = {}
    for line in lines:
        if line.strip():
            _unused, name, *rules = line.split()
            users[name] = rules
    return users


def candidates(wanted: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Return users to make for a comparison.

    Two lists of rules can mean the same, and a server prints its own (7.0 prints `+@transaction -discard` for
    `+exec +multi +watch +unwatch`). So it is asked to print both what it has and what is wanted.
    """
    return {CANDIDATE + name: [*rules, "off"] for name, rules in wanted.items()}


def meaning(rules: list[str]) -> tuple[frozenset[str], Counter[frozenset[str]]]:
    """Return what rules mean, however they are ordered: of the user itself, and of each of its selectors.

    Redis 7.0 prints commands in an order of its own, which is another one after a restart.
    """
    root: set[str] = set()
    selectors: list[set[str]] = []
    into = root
    for rule in rules:
        if rule.startswith("("):
            into = set()
            selectors.append(into)
        into.add(rule.strip("()"))
        if rule.endswith(")"):
            into = root
    return frozenset(root - STEPS), Counter(frozenset(one - STEPS) for one in selectors)


def acl_changes(
    wanted: Mapping[str, list[str]], listed: Mapping[str, list[str]]
) -> tuple[dict[str, list[str]], list[str]]:
    """Compare users with what the server lists, which has the candidates too.

    Returns:
        The users that the server has with other rules or not at all, and the names of its surplus users.
    """
    changed = {
        name: rules
        for name, rules in wanted.items()
        if name not in listed
        or ("on" in rules) != ("on" in listed[name])
        or meaning(listed[name]) != meaning(listed[CANDIDATE + name])
    }
    return changed, sorted(set(listed) - set(wanted) - set(candidates(wanted)))
