"""What preflight knows of an inventory, and how it says what is wrong with one."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

# The names that no role owns alone: prefix fleet_, described in the role preflight.
OWN_ROLE = "preflight"
# A variable, or a key in one, whose value is never shown.
SECRET = re.compile(r"passw|passphrase|secret|token|credential|environment", re.IGNORECASE)
CREDENTIALS_IN_URL = re.compile(r"(?<=://)[^/@\s]+(?=@)")
VARIABLE_ONLY = re.compile(r"\{\{\s*(\w+)\s*\}\}\Z")

HOSTS_NAMED = 3
VALUE_LENGTH = 120


@dataclass(frozen=True)
class Finding:
    """One thing that cannot work.

    Attributes:
        variable: What the operator has to look at.
        reason: Why it cannot work: a sentence.
        remedy: What to do about it: a sentence, or nothing if the reason says it.
        value: As `shown` returns it.
        hosts: Which hosts have it; none if it is the inventory as a whole.
    """

    variable: str
    reason: str
    remedy: str = ""
    value: str = ""
    hosts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Role:
    """A role that the fleet's playbooks apply.

    Attributes:
        name: The role's.
        groups: The groups whose hosts get it.
        options: What its argument specification says of each variable.
        known: Every variable that it has, those of other entry points included.
        given: What the playbook itself sets, as it writes it.
        pool: What the specification says of a value of its dictionary of pools, if it has one.
    """

    name: str
    groups: tuple[str, ...]
    options: Mapping[str, Mapping[str, Any]]
    known: frozenset[str] = frozenset()
    given: Mapping[str, Any] = field(default_factory=dict)
    pool: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def source(self, name: str) -> str:
        """Return the variable that the operator sets to change `name`."""
        match = VARIABLE_ONLY.match(str(self.given.get(name, "")))
        return match[1] if match else name


class Evaluator(Protocol):
    """What takes Ansible's templating to answer."""

    def effective(self, role: str, host: str, name: str) -> Any:
        """Return the value that the role would get on the host; None if it cannot be known."""

    def broken_rules(self, role: str, host: str) -> list[str]:
        """Return the messages of the role's own rules that the host's variables break."""

    def pool_problems(self, pools: Mapping[str, Any]) -> list[str]:
        """Return what the role celery_worker finds wrong with pools."""


@dataclass(frozen=True)
class Fleet:
    """A whole inventory, and what the playbooks will do with it.

    Attributes:
        hosts: The variables of each host, without those that cannot be evaluated.
        errors: Of each host the variables that cannot be evaluated, and why.
        groups: The hosts of each group.
        roles: The roles by name, the shared variables under `OWN_ROLE`.
        evaluator: Answers what takes templating.
        runtime_settings: Names of the runtime's settings, and their defaults where they are plain values.
        foreign: Names of variables that are somebody else's, as patterns.
        playbook: The folder of the playbooks, for remedies.
    """

    hosts: Mapping[str, Mapping[str, Any]]
    groups: Mapping[str, Sequence[str]]
    roles: Mapping[str, Role]
    evaluator: Evaluator
    errors: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    runtime_settings: Mapping[str, Any] = field(default_factory=dict)
    foreign: Sequence[str] = ()

    def hosts_of(self, role: str) -> list[str]:
        """Return the hosts that get a role, in the inventory's order."""
        if role not in self.roles:
            return []
        members = {host for group in self.roles[role].groups for host in self.groups.get(group, ())}
        return [host for host in self.hosts if host in members]

    def roles_of(self, host: str) -> list[Role]:
        """Return the roles that a host gets."""
        return [role for role in self.roles.values() if host in self.hosts_of(role.name)]


def merged(findings: Iterable[Finding]) -> list[Finding]:
    """Return the findings in their order, those that are the same on several hosts as one."""
    hosts: dict[Finding, list[str]] = defaultdict(list)
    for finding in findings:
        hosts[replace(finding, hosts=())].extend(finding.hosts)
    return [replace(finding, hosts=tuple(dict.fromkeys(names))) for finding, names in hosts.items()]


def report(findings: Sequence[Finding]) -> str:
    """Return what the operator reads."""
    lines = []
    for number, finding in enumerate(findings, 1):
        details = {
            "hosts": few(finding.hosts),
            "value": finding.value,
            "reason": finding.reason,
            "remedy": finding.remedy,
        }
        lines.append(f"{number:3}. {finding.variable}")
        lines += [f"     {key + ':':7} {text}" for key, text in details.items() if text]
    return "\n".join(lines)


def few(names: Sequence[str]) -> str:
    """Return names for a sentence, the first ones only if there are many."""
    if len(names) <= HOSTS_NAMED + 1:
        return ", ".join(names)
    return f"{', '.join(names[:HOSTS_NAMED])} and {len(names) - HOSTS_NAMED} more"


def shown(name: str, value: Any) -> str:
    """Return the value of a variable as it may be shown: of a secret nothing but its length."""
    text = json.dumps(_masked(name, value), ensure_ascii=False, default=str)
    return text if len(text) <= VALUE_LENGTH else f"{text[:VALUE_LENGTH]}..."


def _masked(path: str, value: Any) -> Any:
    """Return the value without the secrets in it; `path` is its name, and the keys above it."""
    if isinstance(value, dict):
        return {str(key): _masked(f"{path}.{key}", item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_masked(path, item) for item in value]
    if value is None or isinstance(value, bool):
        return value
    if SECRET.search(path):
        return f"({len(str(value))} characters, not shown)"
    if isinstance(value, (int, float)):
        return value
    return CREDENTIALS_IN_URL.sub("...", str(value))
