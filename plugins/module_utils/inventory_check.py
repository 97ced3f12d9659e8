# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is wrong with an inventory, found on the controller before any host is asked.

Pure: `check` takes variables and returns findings, and `costs` what works, but costs much or is not
finished. The action plugin inventory_check gathers the variables.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.module_utils.parsing.convert_bool import boolean
from ansible_collections.fleet.celery.plugins.module_utils import pki_names, playbook_variables, rules
from ansible_collections.fleet.celery.plugins.module_utils.index_gate import Place
from ansible_collections.fleet.celery.plugins.module_utils.runtime_figures import (
    CHILD_COST,
    LEAST_TASKS_PER_CHILD,
    TRACK_STARTED_COST,
)
from ansible_collections.fleet.celery.plugins.module_utils.systemd_env import env_fault

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

PLACEHOLDER = re.compile(r"change.?me|^password|^secret|example|placeholder|^(.)\1*$", re.IGNORECASE)
SECRET = re.compile(r"password|passphrase|secret|token|broker_url", re.IGNORECASE)
# Sizes of memory, and what each may be besides.
SIZES = {
    "celery_beat_memory_max": "",
    "celery_worker_memory_max": "",
    "celery_worker_swap_max": "0",
    "flower_memory_max": "",
}
MEMORY = re.compile(r"([1-9][0-9]*[KMGT]|[1-9][0-9]?%|100%|infinity)\Z")
TASKS = re.compile(r"([1-9][0-9]*|[1-9][0-9]?%|100%|infinity)\Z")
KINDS = {
    "bool": "true or false",
    "dict": "a mapping",
    "float": "a number",
    "int": "a whole number",
    "list": "a list",
    "path": "a path",
    "str": "a text",
}  # type of an option -> what to write
WHOLE_FLEET = "the whole fleet"
SHOWN_HOSTS = 3
SHOWN_CHARACTERS = 80

# Variables that there were once, and what to do.
RETIRED = {
    "pki_host_addresses": (
        "Remove it. A certificate has what the inventory names, and nothing that a host says of itself. "
        "Name other addresses in pki_addresses."
    ),
    "flower_task_events": (
        "Remove it: nodes send events where the group flower has a host. "
        "celery_worker_task_events: false switches them off, and in a pool task_events: false."
    ),
}

# The cost of a setting: roles/celery_worker/README.md, "What costs much".
EVENTS_COST = (
    "each sender tells monitors of a task with one more command for Redis; nodes do so for each step"
)


@dataclass(frozen=True)
class Finding:
    """One thing that cannot work, or that costs much.

    Attributes:
        variable: What to look at: the name of a variable or of a group.
        reason: What is wrong with it, and its value unless that is a secret.
        remedy: What to do.
    """

    variable: str
    reason: str
    remedy: str


@dataclass(frozen=True)
class Broken:
    """The value of a variable that cannot be templated or decrypted."""

    reason: str


@dataclass(frozen=True)
class Inventory:
    """What the checks look at.

    Attributes:
        hosts: Variables of each host, templated; one that fails is a `Broken`.
        groups: Hosts of each group.
        specs: Options of each role's entry point `main`, as argument_specs.yml has them.
        roles: The groups that each role runs on.
        given: Variables that the playbooks set for each role, by which an inventory's own would be hidden.
        pool_problems: Returns what is wrong with the pools of a host, a sentence each.
        reached_at: `ansible_host` of each host that has one.
        facts_are_variables: Whether a fact of a host is a variable, too, that overrules the inventory's.
        extra: Names of the extra variables (`-e`) of this run.
    """

    hosts: Mapping[str, Mapping[str, Any]]
    groups: Mapping[str, Sequence[str]]
    specs: Mapping[str, Mapping[str, Any]]
    roles: Mapping[str, Sequence[str]]
    given: Mapping[str, Sequence[str]]
    pool_problems: Callable[[Mapping[str, Any], str], Sequence[str]]
    reached_at: Mapping[str, Any] = field(default_factory=dict)
    facts_are_variables: bool = False
    extra: Collection[str] = ()
    known: Mapping[str, str] = field(init=False)

    def __post_init__(self) -> None:
        """Collect every name that a role knows, with the role that it belongs to."""
        known = {name: role for role, options in self.specs.items() for name in options}
        object.__setattr__(self, "known", known)

    @cached_property
    def called(self) -> dict[str, pki_names.Called]:
        """How each host is called."""
        return {
            host: pki_names.called(host, {**of, "ansible_host": self.reached_at.get(host)}, self.groups)
            for host, of in self.hosts.items()
        }

    def members(self, *names: str) -> list[str]:
        """Return the hosts of some groups, each once, in the inventory's order."""
        wanted = {host for name in names for host in self.groups.get(name, ())}
        return [host for host in self.hosts if host in wanted]


def check(inventory: Inventory) -> list[tuple[Finding, list[str]]]:
    """Return everything that cannot work with its hosts; the same on many hosts is one."""
    found: dict[Finding, list[str]] = defaultdict(list)
    for host in inventory.hosts:
        for look in HOST_CHECKS:
            for finding in look(inventory, host):
                found[finding].append(host)
    for look_at_all in FLEET_CHECKS:
        for finding in look_at_all(inventory):
            found[finding].append(WHOLE_FLEET)
    return by_variable(found)


def costs(inventory: Inventory) -> list[tuple[Finding, list[str]]]:
    """Return what works, but costs much or is not finished, with its hosts."""
    found: dict[Finding, list[str]] = defaultdict(list)
    for host in inventory.members("workers"):
        for finding in expensive(inventory.hosts[host]):
            found[finding].append(host)
    for of in list(inventory.hosts.values())[:1]:
        for finding in under_way(of):
            found[finding].append(WHOLE_FLEET)
    return by_variable(found)


def by_variable(found: Mapping[Finding, list[str]]) -> list[tuple[Finding, list[str]]]:
    """Return findings in the order in which people look for them."""
    return sorted(found.items(), key=lambda item: (item[0].variable, item[0].reason))


def report(found: Sequence[tuple[Finding, Sequence[str]]]) -> str:
    """Return a message for people."""
    count = "1 finding" if len(found) == 1 else f"{len(found)} findings"
    lines = [f"The inventory cannot work: {count}. No host was contacted.", ""]
    for finding, hosts in found:
        lines += [
            f"{finding.variable}  [{few(hosts)}]",
            f"  {finding.reason}",
            f"  -> {finding.remedy}",
            "",
        ]
    return "\n".join(lines).rstrip()


def warning(finding: Finding, hosts: Sequence[str]) -> str:
    """Return a sentence for people."""
    return f"{few(hosts)}: {finding.variable} is {finding.reason}; {finding.remedy}."


def few(hosts: Sequence[str]) -> str:
    """Return the first of some hosts, and how many there are besides."""
    more = f" and {len(hosts) - SHOWN_HOSTS} more" if len(hosts) > SHOWN_HOSTS else ""
    return f"{', '.join(hosts[:SHOWN_HOSTS])}{more}"


def shown(name: str, value: Any) -> str:
    """Return a value as it may be shown: a secret by its length only."""
    if SECRET.search(name):
        return f"a secret of {len(str(value))} characters"
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


def dict_of(value: Any) -> dict[str, Any]:
    """Return a value that is a mapping, or an empty one."""
    return value if isinstance(value, dict) else {}


def pools_of(variables: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the pools of a host, as far as they are mappings."""
    return [pool for pool in dict_of(variables.get("celery_worker_pools")).values() if isinstance(pool, dict)]


# --- one host ---


def unreadable(inventory: Inventory, host: str) -> Iterator[Finding]:
    """Find variables that cannot be templated or decrypted."""
    for name, value in inventory.hosts[host].items():
        if isinstance(value, Broken):
            yield Finding(name, f"It cannot be read: {value.reason}", "Mend it, or decrypt the vault.")


def unknown(inventory: Inventory, host: str) -> Iterator[Finding]:
    """Find names that look like a role's variable, but are none, or none any more."""
    for name in inventory.hosts[host]:
        if name in RETIRED:
            yield Finding(name, "There is no such variable any more.", RETIRED[name])
        elif name in playbook_variables.NAMES:
            if name not in inventory.extra:
                reason = "It is an extra variable of playbooks, and changes nothing in an inventory."
                yield Finding(name, reason, f"Remove it, and say -e {name}=... where it is needed.")
        elif name not in inventory.known:
            nearest = difflib.get_close_matches(name, [*inventory.known, *playbook_variables.NAMES], n=1)
            remedy = f"Is it {nearest[0]}?" if nearest else "Remove it, or name it otherwise."
            yield Finding(name, "No role has a variable of this name, so it would change nothing.", remedy)


def renamed(inventory: Inventory) -> Iterator[Finding]:
    """Find extra variables that have another name now. The inventory may have variables of those names."""
    for name in sorted(set(inventory.extra) & set(playbook_variables.RENAMED)):
        new = playbook_variables.RENAMED[name]
        yield Finding(f"-e {name}", f"The extra variable {name} is named {new} now.", f"Say -e {new}=...")


def hidden(inventory: Inventory, host: str) -> Iterator[Finding]:
    """Find variables that the playbooks set themselves."""
    for role, names in inventory.given.items():
        for name in names:
            if name in inventory.hosts[host]:
                yield Finding(
                    name,
                    "The inventory sets it, but the playbooks do, too, and theirs counts.",
                    f"Remove it. playbooks/vars/{role}.yml says which fleet_ variable it comes from.",
                )


def missing_or_wrong(inventory: Inventory, host: str) -> Iterator[Finding]:
    """Hold a host's variables against the specifications of the roles that run on it."""
    given = inventory.hosts[host]
    for role, groups in inventory.roles.items():
        if host not in inventory.members(*groups):
            continue
        for name, option in inventory.specs[role].items():
            if name in inventory.given.get(role, ()) or isinstance(given.get(name), Broken):
                continue
            if option.get("required") and name not in given:
                yield Finding(name, f"It is not set, and the role {role} needs it.", purpose(option))
            elif option.get("required") and given[name] in ("", None):
                yield Finding(name, f"It is empty, and the role {role} needs it.", purpose(option))
            elif name in given and name != "fleet_secrets":  # which has a check of its own
                yield from wrong_type(name, option, given[name])


def wrong_type(name: str, option: Mapping[str, Any], value: Any) -> Iterator[Finding]:
    """Hold one value against its option, as Ansible itself does when the role runs."""
    spec = {key: option[key] for key in ("type", "elements", "choices", "options") if key in option}
    for message in ArgumentSpecValidator({name: spec}).validate({name: value}).error_messages:
        reason = "It has the wrong type" if SECRET.search(name) else message
        yield Finding(name, f"{reason} (it is {shown(name, value)}).", remedy_of(option))


def remedy_of(option: Mapping[str, Any]) -> str:
    """Return what to write in place of a value that an option does not take, and what for."""
    if choices := option.get("choices"):
        return f"Set {' or '.join(map(str, choices))}: {purpose(option)}"
    kind = KINDS.get(option.get("type", "str"), "a text")
    return f"Set {kind}: {purpose(option)}"


def purpose(option: Mapping[str, Any]) -> str:
    """Return the first sentence of an option's description, which says what to set."""
    text = option["description"]
    text = text[0] if isinstance(text, list) else text
    return re.sub(r"\b[CVIOB]\(([^)]*)\)", r"\1", text).split(". ")[0].rstrip(".") + "."


def secrets(inventory: Inventory, host: str) -> Iterator[Finding]:
    """Find passwords that are missing, weak, of no use, or the same as another."""
    remedy = "Run playbooks/secrets.yml, which makes what is missing."
    given = inventory.hosts[host].get("fleet_secrets")
    if given is None or isinstance(given, Broken):
        return  # another check says so
    if not isinstance(given, dict):
        yield Finding("fleet_secrets", "It is no mapping of names to passwords.", remedy)
        return
    wanted = inventory.specs["preflight"]["fleet_secrets"]["options"]
    for name in wanted:
        yield from weaknesses(f"fleet_secrets.{name}", given.get(name), remedy)
    for name in sorted(set(given) - set(wanted)):
        nearest = difflib.get_close_matches(name, wanted, n=1)
        advice = f"Is it {nearest[0]}?" if nearest else "Remove it."
        yield Finding(f"fleet_secrets.{name}", "Nothing uses a password of this name.", advice)
    before = inventory.hosts[host].get("fleet_secrets_previous")
    yield from left_over(given, dict_of(before), wanted)
    names_by_value: dict[str, list[str]] = defaultdict(list)
    for name in wanted:
        if isinstance(given.get(name), str) and given[name]:
            names_by_value[given[name]].append(name)
    for names in names_by_value.values():
        if len(names) > 1:
            reason = f"It is the same as {', '.join(names[1:])}, so one stolen password opens several doors."
            yield Finding(f"fleet_secrets.{names[0]}", reason, f"Remove all but one. {remedy}")


def left_over(
    now: Mapping[str, Any], before: Mapping[str, Any], wanted: Mapping[str, Any]
) -> Iterator[Finding]:
    """Find previous passwords that no rotation could have left."""
    for name in sorted(before):
        variable = f"fleet_secrets_previous.{name}"
        if name not in wanted:
            yield Finding(variable, "Nothing uses a password of this name.", "Remove it from the vault file.")
        elif before[name] == now.get(name):
            reason = f"It is the same as fleet_secrets.{name}, and would have to be taken and refused."
            yield Finding(variable, reason, "Remove it from the vault file.")


def weaknesses(variable: str, secret: Any, remedy: str) -> Iterator[Finding]:
    """Find what is wrong with one password."""
    if secret in (None, ""):
        yield Finding(variable, "There is no such password.", remedy)
    elif not isinstance(secret, str):
        yield Finding(variable, "It is no text.", "Put it in quotes.")
    elif fault := rules.secret(secret):
        yield Finding(variable, fault.reason, f"{fault.remedy} {remedy}")
    elif PLACEHOLDER.search(secret):
        yield Finding(variable, "It is too weak: a word that stands for a password.", f"Remove it. {remedy}")


def pools(inventory: Inventory, host: str) -> Iterator[Finding]:
    """Find pools that no host could run."""
    given = inventory.hosts[host].get("celery_worker_pools")
    if host in inventory.members("workers") and isinstance(given, dict):
        for problem in inventory.pool_problems(given, host):
            yield Finding(
                "celery_worker_pools", problem, "roles/celery_worker/README.md says what a pool may have."
            )


def environments(inventory: Inventory, host: str) -> Iterator[Finding]:
    """Find variables of the environment that systemd would not take."""
    remedy = "Rename it, or encode its value, as base64 for example. Line breaks are carried."
    for name in ("celery_app_environment", "celery_app_index_environment"):
        for variable, value in dict_of(inventory.hosts[host].get(name)).items():
            if fault := env_fault(str(variable), value):
                yield Finding(f"{name}.{variable}", f"{fault[0].upper()}{fault[1:]}.", remedy)


def level(inventory: Inventory, host: str) -> Iterator[Finding]:
    """Find settings of the runtime that contradict the level of the app's processes."""
    of = inventory.hosts[host]
    settings = dict_of(of.get("celery_app_settings"))
    is_full = of.get("celery_app_level", "full") == "full"
    if "level" in settings:
        yield Finding(
            "celery_app_settings.level",
            "The level has a variable of its own.",
            "Remove it, and set celery_app_level.",
        )
    if is_full and is_off(settings.get("atomic_fetch")):
        yield Finding(
            "celery_app_settings.atomic_fetch",
            "It is false, and at the level full no message is lost because nodes fetch atomically.",
            "Remove it; or, if messages may be lost when a node dies, set celery_app_level: standard.",
        )
    for name in () if is_full else ("atomic_fetch", "fast_pool"):
        if is_on(settings.get(name)):
            yield Finding(
                f"celery_app_settings.{name}",
                "It is true, and the level standard has Celery's own transport and pool.",
                "Remove it, or set celery_app_level: full.",
            )


def index_hosts(inventory: Inventory, host: str) -> Iterator[Finding]:
    """Find hosts of the package index that are none."""
    listed = inventory.hosts[host].get("celery_app_index_hosts")
    for number, entry in enumerate(listed if isinstance(listed, list) else []):
        if "/" in str(entry) or "@" in str(entry) or Place.of(str(entry)) is None:  # it may have a password
            yield Finding(
                f"celery_app_index_hosts[{number}]",
                "It is no host.",
                "Write a name, or a name and a port: cdn.example.com:8443.",
            )


def ports(inventory: Inventory, host: str) -> Iterator[Finding]:
    """Find ports that cannot be, and two services on one."""
    used: dict[int, str] = {}
    for name, group in (("fleet_redis_port", "redis"), ("flower_port", "flower")):
        port = inventory.hosts[host].get(name, inventory.specs.get(group, {}).get(name, {}).get("default"))
        if host not in inventory.members(group) or not isinstance(port, int):
            continue
        if fault := rules.port(port):
            yield Finding(name, *fault)
        if port in used:
            yield Finding(
                name, f"{port} is {used[port]}, too, and both are on this host.", "Choose another port."
            )
        used[port] = name


def addresses(inventory: Inventory, host: str) -> Iterator[Finding]:
    """Find addresses by which the fleet could not reach Redis."""
    redis = inventory.members("redis")
    elsewhere = [name for name in inventory.members("workers", "beat", "flower") if name not in redis]
    if host not in redis or not elsewhere:
        return
    at = str(inventory.hosts[host].get("fleet_redis_host", ""))
    if is_loopback(at):
        yield Finding(
            "fleet_redis_host",
            f"It is {at}, which on {elsewhere[0]} is {elsewhere[0]} itself and not the Redis host.",
            "Set the name or address of the Redis host that the others reach.",
        )
    bind = inventory.hosts[host].get("redis_bind", inventory.specs["redis"]["redis_bind"].get("default"))
    if isinstance(bind, list) and all(is_loopback(str(one)) for one in bind):
        yield Finding(
            "redis_bind",
            f"Redis listens on {', '.join(map(str, bind))} only, and {elsewhere[0]} is another host.",
            "Add the address on which the fleet reaches this host.",
        )


def is_loopback(name: str) -> bool:
    """Return whether a name or address leads to the host itself."""
    try:
        return ipaddress.ip_address(name.lstrip("-")).is_loopback
    except ValueError:
        return name == "localhost"


def reach(inventory: Inventory, host: str) -> Iterator[Finding]:
    """Find addresses that an app may reach which are none, or leave out the broker."""
    of, name = inventory.hosts[host], "celery_worker_ip_allow"
    given = of.get(name) or []
    runs_app = any(host in inventory.members(group) for group in ("workers", "beat", "flower"))
    if not runs_app or not isinstance(given, list):
        return
    networks = []
    for one in map(str, given):
        try:
            networks.append(ipaddress.ip_network(one, strict=False))
        except ValueError:
            yield Finding(
                name,
                f"{one!r} is no address and no network.",
                "Write it like 192.0.2.7 or 10.0.0.0/8; systemd takes no names of hosts.",
            )
    broker = str(of.get("fleet_redis_host", ""))
    at = str(inventory.hosts.get(broker, {}).get("ansible_host", broker))
    try:
        address = ipaddress.ip_address(at)
    except ValueError:
        return
    if networks and not address.is_loopback and not any(address in network for network in networks):
        yield Finding(
            name,
            f"The broker, {at}, is not among them, so nothing on this host would reach it.",
            f"Add {at}, and your DNS servers.",
        )


def certificates(inventory: Inventory, host: str) -> Iterator[Finding]:
    """Find paths of the operator's own certificates that lead nowhere."""
    names = ("pki_provided_ca_file", "pki_provided_cert_file", "pki_provided_key_file")
    paths = {name: str(inventory.hosts[host].get(name) or "") for name in names}
    incomplete = rules.all_or_none(list(paths.values()))
    for name, path in paths.items() if any(paths.values()) else ():
        if incomplete and not path:
            yield Finding(name, *incomplete)
        elif not Path(path).is_file():
            yield Finding(
                name, f"There is no file {path} on the controller.", "Write the path of a PEM file."
            )


def certified(inventory: Inventory, host: str) -> Iterator[Finding]:
    """Find names and addresses for which a host gets no certificate."""
    if inventory.hosts[host].get("pki_provided_cert_file"):
        return
    every = inventory.called
    for name in sorted(every[host].all):
        if reason := pki_names.unfit(name):
            yield Finding(
                where_from(inventory, host, name),
                f"{name} cannot be in a certificate: {reason}.",
                "Rename it.",
            )
    for name, other in pki_names.of_others(host, every):
        yield Finding(
            where_from(inventory, host, name),
            f"{name} is {other}'s, so a certificate of {host} would be one for {other}.",
            f"Give {host} a name or an address of its own. What services share goes into pki_names of each.",
        )


def where_from(inventory: Inventory, host: str, name: str) -> str:
    """Return the variable of a host that has a name or an address."""
    of = inventory.hosts[host]
    if name in pki_names.names([host]):
        return "inventory_hostname"
    if name in pki_names.names([inventory.reached_at.get(host)]):
        return "ansible_host"
    for variable in ("pki_names", "pki_addresses", "redis_bind", "flower_bind"):
        if name in pki_names.names(pki_names.listed(of.get(variable))):
            return variable
    for variable in ("fleet_redis_host", "flower_server_name", "flower_health_host"):
        if name in pki_names.names([of.get(variable)]):
            return variable
    return "pki_names"


def permitted(inventory: Inventory, host: str) -> Iterator[Finding]:
    """Find what no authority can permit."""
    of = inventory.hosts[host]
    for network in pki_names.listed(of.get("pki_permitted_addresses")):
        try:
            ipaddress.ip_network(str(network))
        except ValueError as error:
            yield Finding("pki_permitted_addresses", f"{error}.", "Write a network, such as 10.20.0.0/16.")
    for domain in pki_names.listed(of.get("pki_permitted_names")):
        if reason := pki_names.unfit(pki_names.normal(str(domain)).lstrip(".")):
            yield Finding(
                "pki_permitted_names", f"{domain!r}: {reason}.", "Write a domain, such as example.com."
            )


def numbers(inventory: Inventory, host: str) -> Iterator[Finding]:
    """Find numbers that cannot hold together."""
    of = inventory.hosts[host]
    database = of.get("fleet_redis_db")
    if isinstance(database, int) and (fault := rules.database(database)):
        yield Finding("fleet_redis_db", *fault)
    days, renew = (
        of.get(name, inventory.specs["pki"][name]["default"]) for name in ("pki_days", "pki_renew_days")
    )
    if isinstance(days, int) and isinstance(renew, int) and (fault := rules.renewal([renew, days])):
        yield Finding("pki_renew_days", *fault)
    for name, also_allowed in SIZES.items():
        memory = of.get(name)
        if isinstance(memory, str) and memory != also_allowed and not MEMORY.match(memory):
            yield Finding(
                name,
                f"{memory!r} is no size of memory, and systemd would set no bound.",
                "Write it like 6G, or as a percentage of the host's, like 90%.",
            )
    tasks = of.get("celery_worker_tasks_max")
    if tasks is not None and not TASKS.match(str(tasks)):
        yield Finding(
            "celery_worker_tasks_max",
            f"{tasks!r} is no number of processes and threads, and systemd would set no bound.",
            "Write it like 5000, or as a percentage of the kernel's, like 80%.",
        )
    visible = dict_of(of.get("celery_app_settings")).get("visibility_timeout")
    limits = [pool.get("time_limit") for pool in pools_of(of)]
    longest = max((limit for limit in limits if isinstance(limit, int)), default=0)
    if isinstance(visible, int) and longest >= visible:
        yield Finding(
            "celery_app_settings.visibility_timeout",
            f"It is {visible} s, and a pool's time_limit is {longest} s: a long task would run twice.",
            "Make it longer than the longest task and the furthest ETA.",
        )


def expensive(of: Mapping[str, Any]) -> Iterator[Finding]:
    """Find settings of a worker host that cost much."""
    settings = dict_of(of.get("celery_app_settings"))
    if is_on(settings.get("track_started")):
        remedy = "leave it out, unless something asks for the state STARTED"
        yield Finding("celery_app_settings.track_started", f"true: {TRACK_STARTED_COST}", remedy)
    if is_on(settings.get("task_events")):
        remedy = "leave it out, unless a monitor is to show tasks before a node has them"
        yield Finding("celery_app_settings.task_events", f"true: {EVENTS_COST}", remedy)
    for name, pool in dict_of(of.get("celery_worker_pools")).items():
        tasks = dict_of(pool).get("max_tasks_per_child")
        if isinstance(tasks, int) and tasks < LEAST_TASKS_PER_CHILD:
            yield Finding(
                f"celery_worker_pools.{name}.max_tasks_per_child",
                f"{tasks}: each child is replaced after so many tasks; {CHILD_COST}",
                f"set {LEAST_TASKS_PER_CHILD} or more, or max_memory_per_child if tasks leak memory",
            )


def under_way(of: Mapping[str, Any]) -> Iterator[Finding]:
    """Find passwords of which the one before is still taken."""
    if names := sorted(dict_of(of.get("fleet_secrets_previous"))):
        reason = f"not empty: {', '.join(names)} is being replaced, and the old one is not refused yet"
        yield Finding("fleet_secrets_previous", reason, "playbooks/rotate_secrets.yml finishes that")


def is_on(value: Any) -> bool:
    """Return whether a value is true, in YAML or as text."""
    return bool(boolean(value, strict=False))


def is_off(value: Any) -> bool:
    """Return whether a value is false, in YAML or as text; a missing one is not."""
    return value is not None and boolean(value, strict=False) is False and value != ""


# --- the fleet ---


def trust(inventory: Inventory) -> Iterator[Finding]:
    """Find a way in which a host could overrule the inventory."""
    if inventory.facts_are_variables:
        yield Finding(
            "inject_facts_as_vars",
            "It is on in Ansible's configuration, so a host that sends a fact of its name sets a variable.",
            "Set inject_facts_as_vars = false under [defaults] in ansible.cfg, as this project's has it.",
        )


def topology(inventory: Inventory) -> Iterator[Finding]:
    """Find groups that are empty or too large."""
    redis, beat = inventory.members("redis"), inventory.members("beat")
    if len(redis) != 1:
        reason = f"It has {len(redis)} hosts{': ' + ', '.join(redis) if redis else ''}."
        yield Finding("group redis", reason, "Name exactly one host: this fleet has one broker.")
    if not inventory.members("workers"):
        yield Finding("group workers", "It has no host, so nobody runs a task.", "Name at least one host.")
    schedulers = {inventory.hosts[host].get("celery_beat_scheduler", "redbeat") for host in beat}
    if len(beat) > 1 and schedulers != {"redbeat"}:
        yield Finding(
            "group beat",
            f"{', '.join(beat)} would each send every task: the persistent scheduler cannot lock.",
            "Name one host, or set celery_beat_scheduler to redbeat on all of them.",
        )


def consumers(inventory: Inventory) -> Iterator[Finding]:
    """Find queues that the app sends to and nobody consumes."""
    consumed = {
        str(queue)
        for host in inventory.members("workers")
        for pool in pools_of(inventory.hosts[host])
        for queue in (pool["queues"] if isinstance(pool.get("queues"), list) else ())
    }
    given = [of["celery_app_queues"] for of in inventory.hosts.values() if "celery_app_queues" in of]
    for queue in given[0] if given and isinstance(given[0], list) else ():
        if queue not in consumed:
            nearest = difflib.get_close_matches(str(queue), consumed, n=1)
            reason = f"The app sends tasks to the queue {queue!r}, and no pool consumes it."
            hint = f", or is it {nearest[0]!r}?" if nearest else "."
            yield Finding("celery_app_queues", reason, f"Add it to a pool in celery_worker_pools{hint}")


HOST_CHECKS = (
    unreadable, unknown, hidden, missing_or_wrong, secrets, pools, environments, level, index_hosts, ports,
    addresses, reach, certificates, certified, permitted, numbers,
)  # fmt: skip
FLEET_CHECKS = (renamed, trust, topology, consumers)
