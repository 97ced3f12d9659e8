# SPDX-License-Identifier: MIT
"""The fleet as a whole: its hosts, its nodes, and the ways in that an application and an operator have."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ansible_collections.fleet.celery.plugins.filter.celery_worker import complete, nodes

from tests.fleet.support.broker import Broker
from tests.fleet.support.clients import Operator
from tests.fleet.support.hosts import Host, Tunnel
from tests.fleet.support.web import Web

if TYPE_CHECKING:
    from tests.fleet.support.inventory import Inventory


@dataclass(frozen=True)
class Node:
    """One Celery node, as the inventory wants it."""

    name: str
    pool: str
    queues: frozenset[str]
    options: dict[str, Any]
    host: Host

    @property
    def celery_name(self) -> str:
        """Its name for Celery."""
        return f"{self.name}@{self.host.name}"

    @property
    def unit(self) -> str:
        """Its systemd unit."""
        return f"celery-worker@{self.name}.service"


class Fleet:
    """The fleet that the inventory describes."""

    def __init__(self, inventory: Inventory) -> None:
        """Name the hosts; nothing is contacted yet."""
        self._scratch = TemporaryDirectory()
        self._tunnels: list[Tunnel] = []
        self.inventory = inventory
        self.hosts = {
            name: Host(name, inventory.groups_of(name), inventory.variables(name)) for name in inventory.hosts
        }

    def group(self, name: str) -> list[Host]:
        """Return the hosts of a group."""
        return [self.hosts[host] for host in self.inventory.group(name)]

    @cached_property
    def nodes(self) -> list[Node]:
        """Every node of every host."""
        return [
            Node(node["name"], node["pool"], frozenset(node["options"]["queues"]), node["options"], host)
            for host in self.group("workers")
            for node in nodes(complete(host.variables["celery_worker_pools"], *host.size), host.name)
        ]

    @cached_property
    def one_of_each_pool(self) -> list[Node]:
        """A node of each pool of one host, for what all nodes of a pool have alike."""
        host = self.group("workers")[0]
        return list({node.pool: node for node in self.nodes if node.host is host}.values())

    @cached_property
    def queues(self) -> list[str]:
        """Every queue that some node consumes."""
        return sorted({queue for node in self.nodes for queue in node.queues})

    def units(self, host: Host) -> list[str]:
        """Return the units that a host should run, and have enabled."""
        of_groups = {
            "redis": ["redis-server.service"],
            "workers": ["celery.target", *(node.unit for node in self.nodes if node.host is host)],
            "beat": ["celery-beat.service"],
            "flower": ["flower.service", "nginx.service"],
        }
        return [unit for group, units in of_groups.items() if group in host.groups for unit in units]

    def starts(self) -> dict[tuple[str, str], str]:
        """Return which start of each unit of the fleet runs, by host and unit."""
        return {
            (host.name, unit.name): unit.start
            for host in self.hosts.values()
            for unit in host.units(self.units(host)).values()
        }

    def restarted(self, before: dict[tuple[str, str], str]) -> set[tuple[str, str]]:
        """Return the units that another start of runs now than before."""
        now = self.starts()
        return {unit for unit, start in before.items() if now.get(unit) not in ("", start)}

    def is_whole(self) -> bool:
        """Whether all units run, Redis and all nodes answer, and Flower shows all nodes.

        Raises:
            AssertionError: One of them does not; the message says which.
        """
        for host in self.hosts.values():
            down = [unit.name for unit in host.units(self.units(host)).values() if not unit.runs]
            assert not down, f"{host.name}: {down}"
        if self.group("redis"):
            assert self.broker.answers()
        if self.nodes:
            assert self.operator.ask("ping", self.celery_names).keys() == self.celery_names
        if self.group("flower"):
            online = {name for name, up in self.flower.get("/api/workers?status=true").json.items() if up}
            assert online == self.celery_names
        return True

    @cached_property
    def ca_file(self) -> Path:
        """A copy of the fleet's CA certificate."""
        host = next(iter(self.hosts.values()))
        path = Path(self._scratch.name, "ca.crt")
        path.write_text(host.sh('cat "$1/ca.crt"', host.variables["fleet_tls_dir"]))
        return path

    def reread(self) -> None:
        """Learn of passwords and of an authority that a play has replaced."""
        self.inventory.read()
        for host in self.hosts.values():
            host.variables = self.inventory.variables(host.name)
        self.broker.learn(self.inventory.secrets)
        if self.group("flower"):
            self.flower.password = self.group("flower")[0].variables["flower_password"]
        self.__dict__.pop("operator", None)
        self.__dict__.pop("ca_file", None)
        assert self.ca_file  # at the same path

    @cached_property
    def broker(self) -> Broker:
        """The broker, for an application that is not on the fleet's hosts."""
        host = self.group("redis")[0]
        tunnel = self._tunnel(host, host.variables["fleet_redis_host"], host.variables["fleet_redis_port"])
        return Broker(tunnel, self.inventory.secrets, self.ca_file, host.variables["fleet_redis_db"])

    @cached_property
    def flower(self) -> Web:
        """Flower, for a browser."""
        host = self.group("flower")[0]
        address = next(iter(host.variables["flower_bind"]), "127.0.0.1")
        tunnel = self._tunnel(host, address, host.variables["flower_port"])
        return Web(tunnel, self.ca_file, host.variables["flower_username"], host.variables["flower_password"])

    @cached_property
    def operator(self) -> Operator:
        """An operator that asks the nodes."""
        return Operator(self.broker)

    @cached_property
    def celery_names(self) -> set[str]:
        """The names of all nodes."""
        return {node.celery_name for node in self.nodes}

    def close(self) -> None:
        """Close what was opened."""
        for tunnel in self._tunnels:
            tunnel.close()
        self._scratch.cleanup()

    def _tunnel(self, host: Host, address: str, port: int) -> Tunnel:
        """Return a way to an address that a host reaches."""
        self._tunnels.append(Tunnel(host, address, port))
        return self._tunnels[-1]
