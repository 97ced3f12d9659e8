# SPDX-License-Identifier: MIT
"""What the tests of a live fleet share.

FLEET_INVENTORY_ARGS says which fleet, in the words of `ansible-playbook`. In the lab:

    FLEET_INVENTORY_ARGS="$(make -s lab-args)" .venv/bin/pytest tests/fleet

A test with the argument `host` runs once for each host of the group that its marker names, one with `node`
once for each Celery node, one with `queue` once for each queue: all as the inventory has them. A test of a
group that has no host does not exist.
"""

from __future__ import annotations

import os
import shlex
from functools import cache
from typing import TYPE_CHECKING

import pytest

from tests.fleet.support.clients import Producer
from tests.fleet.support.fleet import Fleet
from tests.fleet.support.hosts import eventually
from tests.fleet.support.inventory import Inventory
from tests.fleet.support.plays import Plays

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from tests.fleet.support.hosts import Host

MARKERS = (
    "group(name): needs a host of this group; `host` is each of them",
    "faults: breaks something on purpose, and runs when the quiet tests are done",
    "one_of_each_pool: `node` is one of each pool of one host, and not every node",
    "setting(name): needs a host on which this variable is neither 0 nor empty",
    "operations: does what an operator does every week, while tasks are counted",
    "load: counts tasks while something breaks; needs two hosts of workers, for one may be gone",
    "upgrade: begins with a fleet of the release before this one, on bare hosts",
    "afterwards: looks back at what the others left behind",
)
ORDER = ("faults", "operations", "afterwards", "second_change")


def pytest_configure(config: pytest.Config) -> None:
    """Announce the markers."""
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)


@cache
def inventory_arguments() -> list[str]:
    """Return the arguments that lead Ansible to the fleet."""
    if not (arguments := os.environ.get("FLEET_INVENTORY_ARGS")):
        pytest.exit(f"FLEET_INVENTORY_ARGS does not say which fleet.\n\n{__doc__}", returncode=2)
    return shlex.split(arguments)


@pytest.fixture(scope="session")
def fleet() -> Iterator[Fleet]:
    """The fleet."""
    fleet = the_fleet()
    yield fleet
    fleet.close()


@cache
def the_fleet() -> Fleet:
    """Return the fleet; tests are named by it before there are fixtures."""
    return Fleet(Inventory(inventory_arguments()))


@pytest.fixture(scope="session")
def plays(tmp_path_factory: pytest.TempPathFactory) -> Plays:
    """Ansible, on the fleet."""
    return Plays(inventory_arguments(), tmp_path_factory.mktemp("plays"))


@pytest.fixture(scope="session")
def producer(fleet: Fleet) -> Producer:
    """An application outside the fleet, which sends it tasks."""
    return Producer(fleet.broker)


@pytest.fixture
def host(request: pytest.FixtureRequest) -> Host:
    """One host; in the place of testinfra's fixture, which would make a test of its own for each."""
    found: Host = request.param
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make a test for each host, node or queue that the inventory has."""
    fleet, marker = the_fleet(), metafunc.definition.get_closest_marker("group")
    if "host" in metafunc.fixturenames:
        hosts = fleet.group(marker.args[0] if marker else "all")
        metafunc.parametrize("host", hosts, ids=lambda host: host.name, indirect=True)
    if "node" in metafunc.fixturenames:
        few = metafunc.definition.get_closest_marker("one_of_each_pool")
        nodes = fleet.one_of_each_pool if few else fleet.nodes
        metafunc.parametrize("node", nodes, ids=lambda node: node.celery_name)
    if "queue" in metafunc.fixturenames:
        metafunc.parametrize("queue", fleet.queues)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests of groups without a host; put those that break things last."""
    left_out = [item for item in items if not exists(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]
    items.sort(key=turn)


def turn(item: pytest.Item) -> int:
    """Return when a test is run: the quiet ones first."""
    return max((ORDER.index(mark.name) + 1 for mark in item.iter_markers() if mark.name in ORDER), default=0)


def exists(item: pytest.Item) -> bool:
    """Whether the inventory has hosts for a test."""
    groups = [mark.args[0] for mark in item.iter_markers("group")]
    settings = [mark.args[0] for mark in item.iter_markers("setting")]
    if not all(is_set(name) for name in settings):
        return False
    enough = not item.get_closest_marker("load") or len(the_fleet().group("workers")) > 1
    return enough and all(the_fleet().group(group) for group in groups)


def is_set(name: str) -> bool:
    """Whether a host has such a variable, and a value in it."""
    return any(host.variables.get(name) for host in the_fleet().hosts.values())


@pytest.fixture(autouse=True)
def _asked_units(request: pytest.FixtureRequest) -> None:
    """Forget which units the test before this one asked about."""
    for host in the_fleet().hosts.values():
        host.seen_units.clear()


@pytest.fixture(autouse=True)
def _whole_again(request: pytest.FixtureRequest, fleet: Fleet) -> Iterator[None]:
    """Leave a whole fleet to the test after one that broke something, whatever became of it."""
    yield
    if request.node.get_closest_marker("faults"):
        for host in fleet.hosts.values():
            host.sh('systemctl start -- "$@"', *fleet.units(host), timeout=300)
        eventually(fleet.is_whole, timeout=120)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the journal of the units that a failed test asked about."""
    report = yield
    if report.when == "call" and report.failed:
        for host in the_fleet().hosts.values():
            for unit in sorted(host.seen_units):
                report.sections.append((f"journal of {unit} on {host.name}", host.journal(unit)))
    return report
