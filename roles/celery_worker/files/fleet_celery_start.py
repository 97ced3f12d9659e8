#!/usr/bin/python3 -I
# SPDX-License-Identifier: MIT
"""Steps of the unit celery-worker@NODE around the start of its node, as root: turn|wait|over NODE [SECONDS].

turn: Wait until fewer nodes of this host are starting than it has CPUs. A boot starts all nodes at once, and
      each imports the app: so they would take as long as all of them together. A start that does not end is
      ended by systemd after SECONDS, so each has its turn some time; systemd is told to wait for that.
wait: Wait until the node has written $PIDFILE, which it does when it has imported the app. The start has
      failed once no process is left that would write it. systemd bounds this by TimeoutStartSec.
over: Let the next one have its turn.

It tells systemd what it waits for: `systemctl status celery-worker@NODE` shows it.
"""

import fcntl
import os
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

FOLDER = Path("/run/fleet-celery-start")  # of root alone: a file for each node that is starting
PROCESSES = Path("/proc")
LOOK, SAY = 0.2, 5.0  # seconds between two looks, and between two words
PATIENCE = 60  # seconds for which systemd is to wait on, from each word of a node that has no turn yet


def say(status: str, *, extend: bool = False) -> None:
    """Tell systemd what the unit waits for, and whether to go on waiting. Source: sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    address = "\0" + address[1:] if address.startswith("@") else address
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
        more = f"\nEXTEND_TIMEOUT_USEC={PATIENCE * 10**6}" if extend else ""
        to.sendto(f"STATUS={status}{more}".encode(), address)


def starting(node: str, seconds: float) -> list[str]:
    """Return the other nodes that are starting, by their files; one as old as three starts is left over."""
    others = []
    for file in FOLDER.iterdir():
        with suppress(OSError, ValueError):
            if file.name not in {node, ".lock"} and time.monotonic() - float(file.read_text()) < 3 * seconds:
                others.append(file.name)
    return sorted(others)


def take_turn(node: str, seconds: float, at_once: int) -> None:
    """Wait for this node's turn, and take it."""
    FOLDER.mkdir(mode=0o700, exist_ok=True)
    said = 0.0
    while True:
        with (FOLDER / ".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            others = starting(node, seconds)
            if len(others) < at_once:
                (FOLDER / node).write_text(str(time.monotonic()))
                return
        if time.monotonic() > said + SAY:
            said = time.monotonic()
            say(f"waiting for its turn to start, behind {', '.join(others)}", extend=True)
        time.sleep(LOOK)


def wait(node: str) -> int:
    """Wait until the node is up; return the exit status."""
    pidfile = os.environ["PIDFILE"]
    begun, said = time.monotonic(), 0.0
    while not has_text(pidfile):
        now = time.monotonic()
        if now > said + SAY:  # seldom, since it reads the command line of each process
            if not starts(pidfile):
                sys.stderr.write("The node has ended before it was up.\n")
                return 1
            said = now
            say(f"importing the app, for {now - begun:.0f} s now")
        time.sleep(LOOK)
    say("connecting")
    over(node)
    return 0


def has_text(path: str) -> bool:
    """Return whether a file is there and not empty."""
    with suppress(OSError):
        return Path(path).stat().st_size > 0
    return False


def starts(pidfile: str) -> bool:
    """Return whether there is a process that would write a PID file, or that has just done so."""
    word = f"--pidfile={pidfile}".encode()
    for file in PROCESSES.glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if word in file.read_bytes().split(b"\0"):
                return True
    return has_text(pidfile)


def over(node: str) -> None:
    """Let the next one have its turn."""
    (FOLDER / node).unlink(missing_ok=True)


def main(what: str, node: str, seconds: str = "0") -> int:
    """Do what was asked for; return the exit status."""
    if what == "turn":
        take_turn(node, float(seconds), os.cpu_count() or 1)
    elif what == "wait":
        return wait(node)
    else:
        over(node)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
