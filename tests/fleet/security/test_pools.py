# SPDX-License-Identifier: MIT
"""What a task could do to the other pools of its host, and to the host itself.

A task is played by a shell with its pool's user and group, and the file systems of its node. It has no filter
of system calls, and so may try more than a task can. Each attack also does what it may: that shows it works.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from subprocess import PIPE
from typing import TYPE_CHECKING

import pytest
from ansible_collections.fleet.celery.plugins.filter.celery_worker import user

from tests.fleet.support.hosts import eventually

if TYPE_CHECKING:
    from tests.fleet.support.clients import Producer
    from tests.fleet.support.fleet import Fleet, Node
    from tests.fleet.support.hosts import Host

pytestmark = [pytest.mark.group("workers"), pytest.mark.one_of_each_pool]

GROUP = "celery"
# Print what can be done to each process.
TOUCH_PROCESSES = """
    for pid; do
        if kill -0 "$pid"; then echo "$pid signal"; fi
        if [ -n "$(head -c 1 "/proc/$pid/environ" | tr '\\0' x)" ]; then echo "$pid environ"; fi
        if (: <"/proc/$pid/mem"); then echo "$pid mem"; fi
    done 2>/dev/null
"""
# Print each place where a file can be made.
MAKE = 'for place; do if touch "$place/canary"; then rm "$place/canary"; echo "$place"; fi; done 2>/dev/null'
# Print each file that can be written to.
APPEND = 'for file; do if (: >>"$file"); then echo "$file"; fi; done 2>/dev/null'


def enter(host: Host, pid: int) -> str:
    """Return the words that run a command with the file systems of a process."""
    assert pid
    return f"nsenter --target={pid} --mount"


def as_task(node: Node, script: str, *words: str, inside: bool = True) -> list[str]:
    """Run a script as a task of a node would, and return the lines that it prints.

    Args:
        node: The node.
        script: What `sh` runs.
        words: What the script finds in $1, $2, ...
        inside: Whether with the node's file systems; else with those of the host, which hide nothing.
    """
    pid = node.host.unit(node.unit).main_pid
    own = f"setpriv --reuid={user(node.pool)} --regid={GROUP} --clear-groups --bounding-set=-all"
    command = f"{enter(node.host, pid)} {own}" if inside else own
    return node.host.sh(f'{command} sh -c "$@"', script, "sh", *words).splitlines()


def neighbours(fleet: Fleet, node: Node) -> list[Node]:
    """Return the nodes of other pools on a node's host."""
    return [other for other in fleet.nodes if other.host is node.host and other.pool != node.pool]


def processes(host: Host, nodes: list[Node]) -> list[str]:
    """Return the processes of some nodes."""
    units = {node.unit for node in nodes}
    lines = host.sh("ps -eo pid=,cgroup:512=").splitlines()
    return [line.split()[0] for line in lines if units & {*re.split("[/,]", line)}]


def test_each_pool_has_a_user(node: Node) -> None:
    """All processes of a node run as its pool's user, in the group of the app."""
    found = node.host.sh('ps -o user:32=,group:32= -p "$1"', ",".join(processes(node.host, [node])))
    assert {tuple(line.split()) for line in found.splitlines()} == {(user(node.pool), GROUP)}


def test_a_task_reaches_no_process_of_another_pool(fleet: Fleet, node: Node) -> None:
    """It cannot stop it, nor read its environment, which has passwords, nor its memory."""
    others = processes(node.host, neighbours(fleet, node))
    own = str(node.host.unit(node.unit).main_pid)
    touched = as_task(node, TOUCH_PROCESSES, own, inside=False)
    assert touched == [f"{own} signal"]  # the rest only from inside its own user namespace
    assert others
    assert as_task(node, TOUCH_PROCESSES, *others, inside=False) == []
    assert as_task(node, TOUCH_PROCESSES, *others) == []


def test_a_task_may_ask_for_the_addresses_of_its_host(fleet: Fleet, node: Node) -> None:
    """By getifaddrs(3), as psutil and mail programs do; other families stay refused."""
    properties = node.host.sh(
        'systemctl show --property=RestrictAddressFamilies --value "$1"', node.unit
    ).split()
    assert {"AF_INET", "AF_INET6", "AF_UNIX", "AF_NETLINK"} == {*properties}
    release = f"/opt/celery/{node.host.variables['celery_app_name']}/current/bin/python"
    script = (
        "import ctypes, socket\n"
        "first = ctypes.c_void_p()\n"
        "print(ctypes.CDLL(None, use_errno=True).getifaddrs(ctypes.byref(first)), bool(first))\n"
        "try: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)\n"
        "except OSError as error: print(error.errno)\n"
    )
    families = " ".join(properties)
    said = node.host.sh(
        "systemd-run --quiet --pipe --wait --collect --property=DynamicUser=yes "
        '--property="RestrictAddressFamilies=$1" "$2" -c "$3"',
        families,
        release,
        script,
    )
    assert said.splitlines() == ["0 True", "97"]


def test_run_is_read_only(fleet: Fleet, node: Node) -> None:
    """But for the node's own directory; for root, too, whom no mode of a file keeps out."""
    own = f"/run/celery/{node.name}"
    others = [
        f"/run/celery/{other.name}" for other in fleet.nodes if other.host is node.host and other != node
    ]
    places = ["/run", "/run/lock", "/run/celery", "/run/systemd", "/etc", "/var/lib", own, *others]
    pid = node.host.unit(node.unit).main_pid
    found = node.host.sh(f'{enter(node.host, pid)} sh -c "$@"', MAKE, "sh", *places).splitlines()
    assert found == [own]


@pytest.mark.setting("celery_worker_json_log_days")
def test_a_task_writes_to_no_log_of_another_pool(fleet: Fleet, node: Node) -> None:
    """Nor removes one; users that read them are in the group."""
    if not node.host.variables["celery_worker_json_log_days"]:
        return
    own, *logs = [f"/var/log/celery/{one.pool}/{one.name}.jsonl" for one in (node, *neighbours(fleet, node))]
    places = [path.rpartition("/")[0] for path in (own, *logs)]
    assert as_task(node, APPEND, own, *logs, inside=False) == [own]
    assert as_task(node, MAKE, *places, "/var/log/celery", inside=False) == places[:1]
    assert as_task(node, APPEND, own, *logs) == [own]
    access = node.host.sh('stat --format="%G %a" -- "$@"', own, *logs, *places).splitlines()
    assert access == [f"{GROUP} 640"] * len(places) + [f"{GROUP} 750"] * len(places)


def test_a_node_is_bounded(node: Node) -> None:
    """Its memory, its processes, its files in memory, and its cores; and all nodes of the host together."""
    host, unit = node.host, node.host.unit(node.unit)
    memory = host.size[1] * 1024**2
    assert int(unit["MemoryMax"]) <= memory * 0.81
    assert 0 < int(unit["TasksMax"]) < 10000 * host.size[0]
    assert (unit["LimitCORE"], unit["LimitCORESoft"]) == ("0", "0")
    assert int(host.unit(unit["Slice"])["MemoryMax"]) <= memory * 0.91
    assert host.unit(unit["Slice"])["MemorySwapMax"] == "0"
    assert 0 < int(host.unit(unit["Slice"])["TasksMax"]) < 2**32  # infinity is more
    assert unit["Slice"] == "celery.slice"
    places = ["/dev/shm"] + ["/tmp", "/var/tmp"] * (not node.options["tmp_on_disk"])
    sizes = as_task(node, 'df --block-size=1 --output=size,fstype -- "$@" | tail -n +2', *places)
    for line in sizes:
        size, kind = line.split()
        assert kind == "tmpfs"
        assert int(size) <= memory * 0.41


@pytest.mark.long
def test_a_task_cannot_fill_the_memory_of_its_host(fleet: Fleet, node: Node) -> None:
    """By files: more than its share is refused at once, and the other pools still have theirs."""
    places = ["/dev/shm"] + ["/tmp", "/var/tmp"] * (not node.options["tmp_on_disk"])
    memory = node.host.size[1] * 1024**2
    fill = """
        size=$1; shift
        for place; do
            fallocate --length="$size" "$place/canary" 2>&1 | grep -o 'No space left'
            rm -f "$place/canary"
        done
    """
    assert as_task(node, fill, str(memory // 2), *places) == ["No space left"] * len(places)
    small = 'for place; do fallocate --length=1MiB "$place/canary" && rm "$place/canary" && echo made; done'
    for one in (node, *neighbours(fleet, node)):
        assert as_task(one, small, *places) == ["made"] * len(places)


# Puts this shell into every control group of a process ($1), and then becomes another user ($2).
JOIN = """
    pid=$1 user=$2; shift 2
    while IFS=: read -r _ kinds path; do
        for top in "/sys/fs/cgroup/$kinds" /sys/fs/cgroup/unified /sys/fs/cgroup; do
            if [ -e "$top$path/cgroup.procs" ]; then echo $$ >"$top$path/cgroup.procs"; break; fi
        done
    done <"/proc/$pid/cgroup"
    exec setpriv --reuid="$user" --regid=celery --clear-groups --bounding-set=-all "$@"
"""
# Starts threads until it may not, says how many that were, and goes on until its input ends.
FORK = """
import sys, threading
threading.stack_size(65536)
end, started = threading.Event(), 0
try:
    while started < 200000:
        threading.Thread(target=end.wait, daemon=True).start()
        started += 1
except RuntimeError:
    pass
print(started, flush=True)
sys.stdin.read()
"""


@pytest.mark.long
def test_a_task_that_forks_without_end_stops_nobody_else(
    fleet: Fleet, producer: Producer, node: Node
) -> None:
    """It gets no more processes than its node may have; meanwhile tasks of the other pools run."""
    host, unit = node.host, node.host.unit(node.unit)
    words = (str(unit.main_pid), user(node.pool), "python3", "-c", FORK)
    command = [*host.ssh, shlex.join(["sudo", "-n", "sh", "-c", JOIN, "sh", *words])]
    others = {queue for other in neighbours(fleet, node) for queue in other.queues} - {*node.queues}
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, text=True) as attack:
        assert attack.stdout
        assert 0 < int(attack.stdout.readline()) < int(unit["TasksMax"])
        for task in [producer.probe(queue) for queue in sorted(others)]:
            assert producer.result(task)["queue"] in others
        attack.communicate("")
    assert attack.returncode == 0
    eventually(lambda: set(fleet.operator.ask("ping", fleet.celery_names)) == fleet.celery_names, 120)


def test_files_of_a_node_are_the_nodes_own(fleet: Fleet, node: Node) -> None:
    """What a task leaves in /tmp, or in memory, no other node sees."""
    places = ("/tmp", "/var/tmp", "/dev/shm")
    names = [f"{place}/canary-of-{node.name}" for place in places]
    assert as_task(node, 'touch -- "$@"; ls -- "$@"', *names) == sorted(names)
    for other in neighbours(fleet, node):
        assert as_task(other, 'ls -- "$@" 2>/dev/null || true', *names) == []
    as_task(node, 'rm -- "$@"', *names)


@pytest.mark.group("beat")
def test_beat_is_bounded(fleet: Fleet) -> None:
    """It imports the app, too."""
    host = fleet.group("beat")[0]
    unit = host.unit("celery-beat.service")
    assert int(unit["MemoryMax"]) <= host.size[1] * 1024**2 * 0.51
    assert (unit["MemorySwapMax"], unit["TasksMax"]) == ("0", "1024")


@pytest.mark.faults
@pytest.mark.long
def test_a_task_that_kills_all_that_it_can_stops_its_own_pool_only(fleet: Fleet) -> None:
    """`kill -9 -1` reaches the nodes of its pool, which come back; those of others go on."""
    node = next(node for node in fleet.nodes if neighbours(fleet, node))
    own = {
        (node.host.name, other.unit)
        for other in fleet.nodes
        if (other.host, other.pool) == (node.host, node.pool)
    }
    before = fleet.starts()
    kill = 'setpriv --reuid="$1" --regid="$2" --clear-groups sh -c "kill -9 -1" || true'  # itself, too
    node.host.sh(kill, user(node.pool), GROUP)
    eventually(lambda: fleet.restarted(before) >= own, timeout=60)
    eventually(fleet.is_whole, timeout=120)
    assert fleet.restarted(before) == own
