# SPDX-License-Identifier: MIT
"""What a task of the main process could tell systemd of its node: that it may hang for a day.

The message is sent as one of the node's main process, as a task in a thread or a greenlet can send it. Root
may name another process as the sender; systemd believes what the kernel says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.fleet.support.hosts import eventually

if TYPE_CHECKING:
    from tests.fleet.support.fleet import Fleet, Node
    from tests.fleet.support.hosts import Host

pytestmark = [pytest.mark.group("workers"), pytest.mark.setting("celery_worker_watchdog")]

TIMER, LOOKS = "celery-watchdog.timer", "celery-watchdog.service"
PERIOD, GRACE, ABORT = 35, 10, 10  # seconds: of the timer, for systemd to act, and for SIGABRT to be heeded
# $1: the process that is to have sent it, $2: its user, $3: its group, $4: the message.
SEND_AS = """
import socket, struct, sys
who = struct.pack("3i", *map(int, sys.argv[1:4]))
to = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
to.connect("/run/systemd/notify")
to.sendmsg([sys.argv[4].encode()], [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, who)])
"""
DAY = "WATCHDOG_USEC=86400000000"
# Of the unit, for a node that has given no sign of life yet: after the first it is as wrong as any other.
START, START_SECONDS = "WATCHDOG_USEC=300000000", 300


def tell_systemd_as(node: Node, message: str) -> None:
    """Send systemd a message as the main process of a node."""
    pid = str(node.host.unit(node.unit).main_pid)
    ids = node.host.sh('stat --format="%u %g" "/proc/$1"', pid).split()
    node.host.sh('exec python3 -c "$@"', SEND_AS, pid, *ids, message)


@pytest.mark.group("workers")
def test_each_host_looks(host: Host) -> None:
    """The timer runs, what it starts ends well, and it has no right that it does not need."""
    assert host.unit(TIMER).runs
    host.sh('systemctl start "$1"', LOOKS)
    unit = host.unit(LOOKS)
    assert (unit["Result"], unit["ExecMainStatus"]) == ("success", "0")
    assert not unit.properties.get("CapabilityBoundingSet")  # systemctl leaves out what is empty
    assert (unit["PrivateNetwork"], unit["ProtectSystem"]) == ("yes", "strict")


def test_a_node_that_lives_sets_the_time_back(fleet: Fleet) -> None:
    """With its next sign of life; it is not restarted for it."""
    node = fleet.nodes[-1]
    before = fleet.starts()
    tell_systemd_as(node, DAY)
    assert node.host.unit(node.unit)["WatchdogUSec"] == "1d"
    node.host.sh('systemctl start "$1"', LOOKS)
    eventually(lambda: node.host.unit(node.unit)["WatchdogUSec"] != "1d", timeout=60)
    assert fleet.restarted(before) == set()


@pytest.mark.faults
@pytest.mark.long
def test_a_node_that_hangs_is_restarted_though_systemd_was_told_to_wait(fleet: Fleet) -> None:
    """It hangs right after, so it cannot set the time back; the journal says why it is killed."""
    node = next((node for node in fleet.nodes if node.options["pool"] != "prefork"), fleet.nodes[-1])
    seconds = node.host.variables["celery_worker_watchdog"]
    before = fleet.starts()
    try:
        # stopped first, so that it says no word between the two
        node.host.sh('systemctl kill --kill-who=main --signal=STOP "$1"', node.unit)
        tell_systemd_as(node, START)
        assert node.host.unit(node.unit)["WatchdogUSec"] == "5min"
        wait = seconds + GRACE + PERIOD + ABORT + 30
        assert wait < START_SECONDS
        eventually(lambda: fleet.restarted(before), timeout=wait, pause=2)
    finally:
        node.host.sh('systemctl kill --kill-who=main --signal=CONT "$1" || true', node.unit)
    eventually(fleet.is_whole, timeout=120)
    assert fleet.restarted(before) == {(node.host.name, node.unit)}
    said = node.host.journal(LOOKS)
    assert f"{node.unit} hangs: no sign of life for" in said
    assert f"systemd was told to wait for {START_SECONDS} s in place of {seconds}" in said
