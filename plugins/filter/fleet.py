# SPDX-License-Identifier: MIT
"""The project's Jinja filters: text for units and environment files, where Jinja would be unreadable.

Nothing here asks a host or reads a file: each function turns inventory data into text or data.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

from ansible_collections.fleet.celery.plugins.module_utils.paths import paths
from ansible_collections.fleet.celery.plugins.module_utils.rules import fault
from ansible_collections.fleet.celery.plugins.module_utils.systemd_env import env_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

# The sandbox of every unit of the fleet, and why. Source: systemd.exec(5).
SANDBOX: tuple[tuple[str, str], ...] = (
    ("NoNewPrivileges", "yes"),  # a setuid program gives nothing
    ("CapabilityBoundingSet", ""),
    ("AmbientCapabilities", ""),
    ("ProtectSystem", "strict"),  # the whole file system is read-only, but for ReadWritePaths
    # "strict" leaves /run writable with ProtectProc, ProtectKernelTunables or ProtectControlGroups.
    # The unit's own RuntimeDirectory stays writable.
    ("ReadOnlyPaths", "/run"),
    ("ProtectHome", "yes"),
    ("PrivateTmp", "yes"),
    ("PrivateMounts", "yes"),
    ("PrivateDevices", "yes"),
    ("ProtectProc", "invisible"),  # other users' processes, and so their environments, are not there
    ("ProtectClock", "yes"),
    ("ProtectHostname", "yes"),
    ("ProtectKernelTunables", "yes"),
    ("ProtectKernelModules", "yes"),
    ("ProtectKernelLogs", "yes"),
    ("ProtectControlGroups", "yes"),
    ("RestrictAddressFamilies", "AF_UNIX AF_INET AF_INET6"),
    ("RestrictNamespaces", "yes"),
    ("RestrictRealtime", "yes"),
    ("RestrictSUIDSGID", "yes"),
    ("LockPersonality", "yes"),
    ("RemoveIPC", "yes"),
    ("SystemCallArchitectures", "native"),
    ("SystemCallFilter", "@system-service"),
    ("SystemCallFilter", "~@privileged @resources"),
    ("SystemCallErrorNumber", "EPERM"),
    ("LimitCORE", "0"),  # a core has the passwords that the process knows; no task can raise it again
)

NOTHING = "-"  # in a table

# The addresses that a unit always reaches.
LOOPBACK = ("127.0.0.0/8", "::1/128")


def redis_url(user: str, password: str, host: str, port: int, db: int, ca_file: str) -> str:
    """Return the URL with which a Celery process reaches Redis over TLS.

    Args:
        user: The ACL user.
        password: Its password; any characters.
        host: Name or address of the Redis host. An IPv6 address is put in brackets.
        port: TLS port.
        db: Number of the database.
        ca_file: Path, on the host of the Celery process, of the certificate that Redis's must chain to.
    """
    name = f"[{host}]" if ":" in host else host
    tls = urlencode({"ssl_cert_reqs": "required", "ssl_ca_certs": ca_file}, quote_via=quote, safe="/")
    return f"rediss://{quote(user, safe='')}:{quote(password, safe='')}@{name}:{int(port)}/{int(db)}?{tls}"


def redis_passwords(secrets: Mapping[str, str]) -> dict[str, str]:
    """Return those of the fleet's secrets that are passwords of Redis, by the user that each is for."""
    prefix = "redis_"
    return {name.removeprefix(prefix): secret for name, secret in secrets.items() if name.startswith(prefix)}


def queues(pools_of_hosts: Iterable[Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """Return every queue that some pool consumes, sorted, each once."""
    return sorted({queue for pools in pools_of_hosts for pool in pools.values() for queue in pool["queues"]})


def sandbox(writable: Iterable[str] = (), *, jit: bool = False, umask: str = "0077") -> str:
    """Return the lines of a [Service] section that confine a unit.

    Args:
        writable: Paths that the unit may write to, besides its Runtime-, State- and LogsDirectory.
        jit: Whether the process may map memory that is both writable and executable (JIT compilers,
            some cffi callbacks).
        umask: Rights that files of the unit do not get.
    """
    lines = [*(f"{name}={value}" for name, value in SANDBOX), f"UMask={umask}"]
    lines.append(f"MemoryDenyWriteExecute={'no' if jit else 'yes'}")
    lines.extend(f"ReadWritePaths={path}" for path in writable)
    return "\n".join(lines)


def addresses(allowed: Iterable[str]) -> list[str]:
    """Return the lines of a [Service] section that name the addresses a unit may reach; none if all.

    Args:
        allowed: Addresses and networks, besides the host itself; all if empty.

    >>> addresses(["10.0.0.0/8"])[-1]
    'IPAddressAllow=10.0.0.0/8'
    """
    if not (named := list(allowed)):
        return []
    return ["IPAddressDeny=any", *(f"IPAddressAllow={one}" for one in [*LOOPBACK, *named])]


def without_password(url: str) -> str:
    """Return the URL of a broker, or several, with a word in place of each password.

    >>> without_password("rediss://ops:s%40cret@r1:6379/0?ssl_ca_certs=/ca.crt")
    'rediss://ops:none@r1:6379/0?ssl_ca_certs=/ca.crt'
    >>> without_password("fleet-sentinel://ops:one@s1:26379;sentinel://:two@s2:26379/0")
    'fleet-sentinel://ops:none@s1:26379;sentinel://:none@s2:26379/0'
    """
    return re.sub(r"(?<=://)([^:@/;]*):[^@/;]*@", r"\1:none@", url)


def missing_packages(packages: Iterable[str], told: str) -> list[str]:
    r"""Return those of the Debian packages that are not installed.

    Args:
        packages: Their names.
        told: The output of `dpkg-query --show --showformat='${db:Status-Status} ${Package}\n'` for them. It
            does not name a package that dpkg does not know.

    >>> missing_packages(["nginx", "redis-tools", "xz"], "installed nginx\nconfig-files redis-tools\n")
    ['redis-tools', 'xz']
    """
    return [name for name in packages if f"installed {name}" not in told.splitlines()]


def table(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the lines of a table for people.

    >>> table([{"HOST": "worker1", "NODES": 3}, {"HOST": "w2", "NODES": 12}])
    ['HOST     NODES', 'worker1  3', 'w2       12']
    """
    found = [{name: str(value) for name, value in row.items()} for row in rows]
    names = list(dict.fromkeys(name for row in found for name in row))
    widths = [max(len(name), *(len(row.get(name, "")) for row in found)) for name in names]
    lines = [names, *([row.get(name, "") for name in names] for row in found)]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]


def status_rows(
    hosts: Mapping[str, Mapping[str, Any]], groups: Mapping[str, Iterable[str]], tiers: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Return the rows of the table of hosts, by what the roles' entry point `status` returned for each.

    Args:
        hosts: Variables of all hosts.
        groups: Hosts of each group.
        tiers: Group -> variable that has the role's result.

    >>> found = {"states": {"a.service": "active"}, "stale": [], "current": "3f", "previous": ""}
    >>> hosts = {"w1": {"found": {"services": found}}, "w2": {}}
    >>> for row in status_rows(hosts, {"workers": ["w1", "w2"]}, {"workers": "found", "beat": "found"}):
    ...     print(*row.values())
    w1 workers yes 3f - 1 of 1 - - -
    w2 workers no no answer
    """
    return [
        {"HOST": host, "TIER": tier} | _status_row(hosts[host].get(variable, {}).get("services", {}))
        for tier, variable in tiers.items()
        for host in groups.get(tier, ())
    ]


def _status_row(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns that tell how a host is: it is well if its units are up with the files that it has.

    Args:
        found: Result of the module fleet_stale; empty if the host did not answer.
    """
    if "states" not in found:
        return {"WELL": "no", "RELEASE": "no answer"}
    states = found["states"]
    missing = [unit for unit, state in states.items() if state != "active"]
    down = [unit for unit, state in states.items() if state in {"inactive", "failed"}]
    stale = [unit for unit in found["stale"] if unit not in missing]
    drained = (found["reason"] or "yes") if found.get("drained", False) else ""
    well = not stale and (not missing or (bool(drained) and missing == down))
    return {
        "WELL": "yes" if well else "no",
        "RELEASE": found["current"] or NOTHING,
        "BEFORE": found["previous"] or NOTHING,
        "UP": f"{len(states) - len(missing)} of {len(states)}",
        "STALE": len(stale) or NOTHING,
        "DRAINED": drained or NOTHING,
        "NOT UP": ", ".join(name.removesuffix(".service") for name in missing) or NOTHING,
    }


class FilterModule:
    """The filters' names in Jinja."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "fleet_addresses": addresses,
            "fleet_env_file": env_file,
            "fleet_fault": fault,
            "fleet_missing_packages": missing_packages,
            "fleet_paths": paths,
            "fleet_queues": queues,
            "fleet_redis_passwords": redis_passwords,
            "fleet_redis_url": redis_url,
            "fleet_sandbox": sandbox,
            "fleet_status_rows": status_rows,
            "fleet_table": table,
            "fleet_without_password": without_password,
        }
