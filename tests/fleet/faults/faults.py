# SPDX-License-Identifier: MIT
"""What is done to a fleet: every fault, and how long a task may wait because of it."""

from __future__ import annotations

import random
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fleet_runtime.broker import keys
from fleet_runtime.settings import FleetSettings

from tests.fleet.support.clients import Producer
from tests.fleet.support.hosts import eventually
from tests.fleet.support.inventory import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.fleet.support.fleet import Fleet, Node
    from tests.fleet.support.hosts import Host

REDIS = "redis-server.service"
KILLS = 100  # of a node, in the trial that is about nothing else
# Seconds after which what a node held is given to the others; no inventory here says otherwise.
LEASE = int(FleetSettings.lease)
TOO_MUCH = ("demo.tasks.count_primes", 2**31)  # 2 GB
DATA = "/var/lib/redis"
SPARE = 8192  # KB of disk that Redis has left, before somebody takes them
SILENCE = 60  # seconds for which Redis is out of reach
# Seconds in which what died by itself is back: a node, or Redis.
SOON = 10


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        happens: Does it to a fleet, and undoes it. It returns when it is over.
        wait: Seconds from when a task was submitted to its end, at most.
        twice: Why a task may be done twice because of it; where it may not, nothing.
        long: Whether it is left to the suite that has time.
    """

    happens: Callable[[Fleet], None]
    wait: float
    twice: str = ""
    long: bool = False

    @property
    def name(self) -> str:
        """Its name."""
        return self.happens.__name__


# --- processes ---


def child_killed(fleet: Fleet) -> None:
    """Kill all children of a prefork pool with SIGKILL, thrice."""
    node = next(node for node in fleet.nodes if node.options["pool"] == "prefork")
    for _ in range(3):
        node.host.sh('kill -KILL "$@"', *children(node))
        time.sleep(3)


def node_killed(fleet: Fleet) -> None:
    """Kill one node of each kind of pool with SIGKILL, one after another."""
    for node in one_of_each_kind(fleet):
        before = fleet.starts()
        kill(node)
        await_restart(fleet, before, [node])


def nodes_of_host_killed(fleet: Fleet) -> None:
    """Kill all nodes of a host with SIGKILL, at once."""
    before = fleet.starts()
    host = fleet.group("workers")[0]
    host.sh("systemctl kill --kill-who=all --signal=KILL 'celery-worker@*.service'")
    await_restart(fleet, before, nodes_of(fleet, host))


def nodes_killed_again_and_again(fleet: Fleet) -> None:
    """Kill a node with SIGKILL, whichever, and when it is back another, for minutes."""
    chance = random.Random(0)
    for _ in range(KILLS):
        before, victim = fleet.starts(), chance.choice(fleet.nodes)
        kill(victim)
        await_restart(fleet, before, [victim])


def node_stopped(fleet: Fleet) -> None:
    """Stop one node of each kind of pool with SIGSTOP, so that it hangs until somebody notices."""
    before = fleet.starts()
    victims = one_of_each_kind(fleet)
    try:
        for node in victims:
            node.host.sh('systemctl kill --kill-who=main --signal=STOP "$1"', node.unit)
        watchdog = fleet.group("workers")[0].variables["celery_worker_watchdog"]
        await_restart(fleet, before, victims, timeout=watchdog + 60)
    finally:
        for node in victims:
            node.host.sh('systemctl kill --kill-who=main --signal=CONT "$1" || true', node.unit)


def memory_outgrown(fleet: Fleet) -> None:
    """Send a task that takes more memory than its node may have, for which the kernel kills the child."""
    nodes = [node for node in fleet.nodes if "memory_max" in node.options]
    before = [children(node) for node in nodes]
    Producer(fleet.broker).send(TOO_MUCH[0], TOO_MUCH[1], queue=min(nodes[0].queues))
    eventually(lambda: [children(node) for node in nodes] != before, timeout=60)
    time.sleep(SOON)  # it may come back, and kill another


def celery_restarted(fleet: Fleet) -> None:
    """Restart all that is Celery on one host of workers after another, as an operator would."""
    for host in fleet.group("workers"):
        restart_nodes(fleet, host)


# --- hosts ---


def host_powered_off(fleet: Fleet) -> None:
    """Take the power from a host of workers for a moment; it is back before its lease is over."""
    host = fleet.group("workers")[-1]
    before = fleet.starts()
    with powered_off(host):
        time.sleep(1)
    await_restart(fleet, before, nodes_of(fleet, host))


def host_gone(fleet: Fleet) -> None:
    """Take the power from a host of workers, until others have all that it held and nothing tells of it."""
    host = fleet.group("workers")[-1]
    nodes = [node.celery_name for node in nodes_of(fleet, host)]
    with powered_off(host):
        eventually(lambda: not traces(fleet, nodes), timeout=LEASE + 2 * SOON)


def redis_powered_off(fleet: Fleet) -> None:
    """Take the power from the host of Redis for a moment."""
    with powered_off(fleet.group("redis")[0]):
        time.sleep(SOON)
    eventually(fleet.broker.answers, timeout=60)


def host_cut_off(fleet: Fleet) -> None:
    """Cut a host of workers off from Redis for longer than its lease; its nodes run on."""
    with cut_off(fleet.group("workers")[0], fleet):
        time.sleep(LEASE + 2 * SOON)


def clock_stepped(fleet: Fleet) -> None:
    """Step the clock of a host's nodes an hour ahead, and an hour back, while they run.

    The hosts of the lab share the machine's clock, so a library tells these processes another time.
    """
    host = fleet.group("workers")[0]
    host.sh("apt-get -qq update && apt-get -qq install libfaketime >/dev/null", timeout=300)
    host.sh('mkdir -p "${1%/*}" && cat >"$1" && echo +0 >"$2"', CLOCK_DROPIN, CLOCK, text=CLOCK_DROPIN_TEXT)
    try:
        restart_nodes(fleet, host)
        for node in nodes_of(fleet, host):
            host.sh('grep -q libfaketime "/proc/$1/maps"', str(host.unit(node.unit).main_pid))
        for step in ("+3600", "-3600", "+0"):
            host.sh('echo "$1" >"$2.new" && mv "$2.new" "$2"', step, CLOCK)  # what finds it empty, ends
            time.sleep(SOON)
    finally:
        host.sh('rm -f "$1" "$2"', CLOCK_DROPIN, CLOCK)
        restart_nodes(fleet, host)


CLOCK = "/run/fleet-clock"
CLOCK_DROPIN = "/run/systemd/system/celery-worker@.service.d/clock.conf"
# The monotonic clock goes on as ever, which is what the ledger's times are taken from.
CLOCK_DROPIN_TEXT = f"""\
[Service]
Environment=LD_PRELOAD=/usr/$LIB/faketime/libfaketime.so.1
Environment=FAKETIME_TIMESTAMP_FILE={CLOCK} FAKETIME_NO_CACHE=1 FAKETIME_DISABLE_SHM=1
Environment=FAKETIME_DONT_FAKE_MONOTONIC=1 NO_FAKE_STAT=1
"""


# --- Redis ---


def redis_restarted(fleet: Fleet) -> None:
    """Restart Redis."""
    fleet.group("redis")[0].sh('systemctl restart "$1"', REDIS)
    eventually(fleet.broker.answers, timeout=60)


def redis_killed(fleet: Fleet) -> None:
    """Kill Redis with SIGKILL."""
    fleet.group("redis")[0].sh('systemctl kill --signal=KILL "$1"', REDIS)
    eventually(fleet.broker.answers, timeout=60)


def redis_unreachable(fleet: Fleet) -> None:
    """Let no packet reach Redis for a minute, without a word to who sent it."""
    with cut_off(fleet.group("redis")[0], fleet):
        time.sleep(SILENCE)
    eventually(fleet.broker.answers, timeout=60)


def redis_disk_full(fleet: Fleet) -> None:
    """Fill the disk of Redis, which must refuse what it cannot keep; then make room again.

    For this, Redis moves to a disk that is small, and back, which are two restarts.
    """
    host = fleet.group("redis")[0]
    host.sh(TO_SMALL_DISK, REDIS, DATA, str(SPARE))
    try:
        eventually(fleet.broker.answers, timeout=60)
        time.sleep(SOON)
        host.sh('dd if=/dev/zero of="$1/full" bs=64k status=none || true', DATA)
        time.sleep(2 * SOON)
        host.sh('rm "$1/full"', DATA)
        time.sleep(SOON)
    finally:
        host.sh(TO_LARGE_DISK, REDIS, DATA)
    eventually(fleet.broker.answers, timeout=60)


TO_SMALL_DISK = """set -e
    systemctl stop "$1"
    mount -t tmpfs -o size=$(($(du -sk "$2" | cut -f1) + $3))k faults /mnt
    cp -a "$2/." /mnt
    mount --bind /mnt "$2"
    systemctl start "$1"
"""
TO_LARGE_DISK = """set -e
    systemctl stop "$1"
    umount "$2"
    find "$2" -mindepth 1 -delete
    cp -a /mnt/. "$2"
    umount /mnt
    systemctl start "$1"
"""

UNACKNOWLEDGED = "what had just ended was not acknowledged yet"
RUNS_ON = "what it runs is given to others when its lease is over, and it cannot know"

FAULTS = [
    Fault(node_killed, wait=SOON, twice=UNACKNOWLEDGED),
    Fault(nodes_of_host_killed, wait=LEASE + SOON, twice=UNACKNOWLEDGED),
    Fault(node_stopped, wait=LEASE + SOON, twice=RUNS_ON, long=True),
    Fault(redis_killed, wait=3 * SOON, twice=UNACKNOWLEDGED),
    Fault(child_killed, wait=SOON, twice=UNACKNOWLEDGED, long=True),
    Fault(memory_outgrown, wait=SOON, twice=UNACKNOWLEDGED, long=True),
    Fault(nodes_killed_again_and_again, wait=LEASE + SOON, twice=UNACKNOWLEDGED, long=True),
    Fault(celery_restarted, wait=LEASE, long=True),
    Fault(host_powered_off, wait=LEASE + SOON, twice=UNACKNOWLEDGED, long=True),
    Fault(host_gone, wait=LEASE + SOON, twice=UNACKNOWLEDGED, long=True),
    Fault(clock_stepped, wait=LEASE, long=True),
    Fault(host_cut_off, wait=LEASE + SOON, twice=RUNS_ON, long=True),
    Fault(redis_restarted, wait=3 * SOON, twice=UNACKNOWLEDGED, long=True),
    Fault(redis_powered_off, wait=6 * SOON, twice=UNACKNOWLEDGED, long=True),
    Fault(redis_disk_full, wait=9 * SOON, twice=UNACKNOWLEDGED, long=True),
    Fault(redis_unreachable, wait=2 * SILENCE, twice=UNACKNOWLEDGED, long=True),
]


# --- how ---


def one_of_each_kind(fleet: Fleet) -> list[Node]:
    """Return the first node of each kind of pool."""
    return list({node.options["pool"]: node for node in reversed(fleet.nodes)}.values())


def nodes_of(fleet: Fleet, host: Host) -> list[Node]:
    """Return the nodes of a host."""
    return [node for node in fleet.nodes if node.host is host]


def restart_nodes(fleet: Fleet, host: Host) -> None:
    """Restart the nodes of a host, as its operator would."""
    before = fleet.starts()
    host.sh("systemctl daemon-reload && systemctl restart celery.target", timeout=300)
    await_restart(fleet, before, nodes_of(fleet, host))


def traces(fleet: Fleet, nodes: list[str]) -> list[str]:
    """Return what Redis has of nodes: messages that they hold, and leases."""
    with fleet.broker.connect("admin") as client:
        held = [keys.unacked(node) for node in nodes if client.exists(keys.unacked(node))]
        return held + [node for node in nodes if client.zscore(keys.LEASES, node) is not None]


def children(node: Node) -> list[str]:
    """Return the processes that a node's main process has made."""
    return node.host.sh('pgrep -P "$1" || true', str(node.host.unit(node.unit).main_pid)).split()


def kill(node: Node) -> None:
    """Kill a node's main process with SIGKILL; its children are systemd's to kill."""
    node.host.sh('systemctl kill --kill-who=main --signal=KILL "$1"', node.unit)


def await_restart(
    fleet: Fleet, before: dict[tuple[str, str], str], nodes: list[Node], timeout: float = 60
) -> None:
    """Wait until nodes run anew."""
    gone = {(node.host.name, node.unit) for node in nodes}
    eventually(
        lambda: fleet.restarted(before) >= gone and all(node.host.unit(node.unit).runs for node in nodes),
        timeout=timeout,
    )


@contextmanager
def powered_off(host: Host) -> Iterator[None]:
    """Take the power from a host of the lab for a while."""
    podman(host, "kill")
    try:
        yield
    finally:
        podman(host, "start")
        eventually(lambda: host.sh("echo up"), timeout=60)


def podman(host: Host, command: str) -> None:
    """Do something to the container that plays a host."""
    container = host.variables["lab_container"]
    subprocess.run([ROOT / "lab" / "podman", command, container], check=True, capture_output=True)


@contextmanager
def cut_off(host: Host, fleet: Fleet) -> Iterator[None]:
    """Drop all that passes between a host and Redis for a while, also what a host says to itself."""
    port = int(fleet.group("redis")[0].variables["fleet_redis_port"])
    host.sh(
        "nft -f -",
        text=f"""
            table inet faults {{
                chain input {{
                    type filter hook input priority 0;
                    tcp dport {port} drop
                    tcp sport {port} drop
                }}
                chain output {{
                    type filter hook output priority 0;
                    tcp dport {port} drop
                    tcp sport {port} drop
                }}
            }}""",
    )
    try:
        yield
    finally:
        host.sh("nft delete table inet faults")
