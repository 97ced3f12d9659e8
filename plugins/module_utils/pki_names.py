# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which names and addresses the certificate of a host has, and what the authority permits.

All of it follows from the inventory: a host's facts are its own word, and name nothing.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

# Variables of the inventory with names of a host, in addition to its name in the inventory.
VARIABLES = (
    "ansible_host",
    "pki_names",
    "pki_addresses",
    "fleet_redis_host",
    "redis_bind",
    "flower_bind",
    "flower_server_name",
    "flower_health_host",
)
LOOPBACK = ("localhost", "127.0.0.1", "::1")
LABEL = r"(?!-)[a-z0-9_-]{1,63}(?<!-)"
DNS_NAME = re.compile(rf"{LABEL}(\.{LABEL})*\Z")
LONGEST_NAME = 253  # characters of a DNS name

Address: TypeAlias = "ipaddress.IPv4Address | ipaddress.IPv6Address"
Network: TypeAlias = "ipaddress.IPv4Network | ipaddress.IPv6Network"


@dataclass(frozen=True)
class Called:
    """How a host is called.

    Attributes:
        own: Names and addresses that are the host's alone.
        services: Those at which clients reach a service of the host. Hosts that run it may share them.
        more: pki_names and pki_addresses. Hosts may share them.
        serves: Whether the host runs a service. Clients on it may reach that by localhost.
    """

    own: tuple[str, ...]
    services: tuple[str, ...]
    more: tuple[str, ...]
    serves: bool = False

    @property
    def certified(self) -> frozenset[str]:
        """What the certificate is for."""
        return self.all | frozenset(LOOPBACK if self.serves else ())

    @property
    def all(self) -> frozenset[str]:
        """Every name and address."""
        return frozenset((*self.own, *self.services, *self.more))

    def as_dict(self) -> dict[str, Any]:
        """Return what a playbook can hand on."""
        parts = {"own": self.own, "services": self.services, "more": self.more}
        return {**{name: list(part) for name, part in parts.items()}, "serves": self.serves}

    @classmethod
    def from_dict(cls, called: Mapping[str, Any]) -> Called:
        """Return what `as_dict` made."""
        own, services, more = (names(called.get(part, ())) for part in ("own", "services", "more"))
        return cls(own, services, more, serves=bool(called.get("serves")))


def address(text: str) -> Address | None:
    """Return the address that a text is; None if it is a name."""
    try:
        return ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return None


def normal(text: str) -> str:
    """Return the one form of a name or an address in which it can be compared.

    >>> normal("[2001:DB8:0::1]"), normal("Redis1.example.com.")
    ('2001:db8::1', 'redis1.example.com')
    """
    found = address(text)
    return str(found) if found else text.lower().removesuffix(".")


def names(texts: Iterable[Any]) -> tuple[str, ...]:
    """Return what can name a host for others, each once.

    Loopback, link-local and wildcard addresses cannot: they are another host's on each host.
    """
    found = dict.fromkeys(normal(str(text)) for text in texts if text)
    return tuple(name for name in found if names_one_host(name))


def names_one_host(name: str) -> bool:
    """Return whether a name or an address means the same host for all others."""
    found = address(name)
    if found is None:
        return name not in ("localhost", "*", "::*")
    return not (found.is_loopback or found.is_link_local or found.is_unspecified)


def called(host: str, variables: Mapping[str, Any], groups: Mapping[str, Iterable[str]]) -> Called:
    """Return how the inventory calls a host.

    Args:
        host: Its name in the inventory.
        variables: Its variables.
        groups: The hosts of each group.
    """
    services: list[Any] = []
    serves = host in {*groups.get("redis", ()), *groups.get("flower", ())}
    if host in groups.get("redis", ()):
        services += [variables.get("fleet_redis_host"), *listed(variables.get("redis_bind"))]
    if host in groups.get("flower", ()):
        services += [variables.get("flower_server_name"), variables.get("flower_health_host")]
        services += listed(variables.get("flower_bind"))
    more = [*listed(variables.get("pki_names")), *listed(variables.get("pki_addresses"))]
    return Called(
        own=names([host, variables.get("ansible_host")]),
        services=names(str(service).removeprefix("-") for service in services if service),
        more=names(more),
        serves=serves,
    )


def listed(value: Any) -> list[Any]:
    """Return a value that is a list, or an empty one."""
    return list(value) if isinstance(value, (list, tuple)) else []


def unfit(name: str) -> str:
    """Return why a name cannot be in a certificate; nothing if it can."""
    if address(name):
        return "it has a zone" if "%" in name else ""
    if "*" in name:
        return "a wildcard would be for other hosts, too"
    if not DNS_NAME.match(name) or len(name) > LONGEST_NAME:
        return "it is no DNS name (letters, digits, dashes, dots; other scripts as punycode)"
    return ""


def of_others(host: str, fleet: Mapping[str, Called]) -> Iterator[tuple[str, str]]:
    """Yield what a host is called by that is another host's, each with that host.

    A host's own name and address are nobody else's. What a service is reached at may be shared by the hosts
    that run it.
    """
    mine = fleet[host]
    for other, theirs in fleet.items():
        if other != host:
            taken = set(theirs.own) | (set(theirs.services) - set(mine.services))
            yield from ((name, other) for name in sorted(mine.all & taken))


# --- what the authority permits ---


def permitted(
    fleet: Iterable[Called], domains: Iterable[str] = (), networks: Iterable[str] = ()
) -> tuple[str, ...]:
    """Return what an authority permits: all names and addresses of a fleet, and what is permitted besides.

    Args:
        fleet: How each host is called.
        domains: DNS names; what is below them is permitted with them.
        networks: Networks of addresses.

    Returns:
        Entries such as DNS:example.com and IP:10.0.0.0/8, without an entry that another one covers, sorted.
    """
    every = {name for host in fleet for name in host.all} | set(LOOPBACK)
    entries = {entry(name) for name in every}
    entries |= {f"DNS:{normal(domain).lstrip('.')}" for domain in domains}
    entries |= {f"IP:{ipaddress.ip_network(network)}" for network in networks}
    return least(entries)


def least(entries: Iterable[str]) -> tuple[str, ...]:
    """Return entries without an entry that another one covers, sorted."""
    given = set(entries)
    return tuple(sorted(one for one in given if not covered(one, given - {one})))


def entry(name: str) -> str:
    """Return what an authority permits so that it may certify a name or an address."""
    found = address(name)
    return f"IP:{ipaddress.ip_network(found)}" if found else f"DNS:{normal(name)}"


def covered(one: str, entries: Iterable[str]) -> bool:
    """Return whether what an entry permits is permitted by one of others."""
    kind, _separator, value = one.partition(":")
    if kind == "IP":
        network = ipaddress.ip_network(value)
        others = (ipaddress.ip_network(other[3:]) for other in entries if other.startswith("IP:"))
        return any(inside(network, other) for other in others)
    parts = value.split(".")
    above = {f"DNS:{'.'.join(parts[start:])}" for start in range(len(parts))}
    return not above.isdisjoint(entries)


def inside(network: Network, other: Network) -> bool:
    """Return whether a network is a part of another one."""
    if isinstance(network, ipaddress.IPv4Network):
        return isinstance(other, ipaddress.IPv4Network) and network.subnet_of(other)
    return isinstance(other, ipaddress.IPv6Network) and network.subnet_of(other)
