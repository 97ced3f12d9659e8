#!/usr/bin/python3 -I
# SPDX-License-Identifier: MIT
"""Restart nodes that hang although systemd's own watchdog does not see it: SECONDS START UNIT FINGERPRINTS.

A task that runs in the main process of its node (threads, gevent, solo) may speak to systemd as the node.
With WATCHDOG_USEC it can set the time after which systemd counts the node as hung, and so switch that off.
This program knows the time from the inventory, and systemd tells it when the last sign of life came. A node
that gave none for that long is killed, as by systemd itself. A task that goes on to send signs of life
(WATCHDOG=1) is not seen through.

Nodes that are starting, stopping or drained are left alone, and so are those that run with an older version
of the unit file, for which another time may hold: the next run of site.yml restarts them.

SECONDS: celery_worker_watchdog.
START:   WatchdogSec of the unit, which holds until the node sets its own, with its first sign of life.
UNIT:    Path of the unit file.
FINGERPRINTS: Pattern of the nodes' start fingerprints, with the checksum of that file; {} is the node's name.
"""

import hashlib
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

SYSTEMCTL = "/usr/bin/systemctl"
FAMILY = "celery-worker@*.service"
PROPERTIES = (
    "Id,ActiveState,SubState,MainPID,WatchdogUSec,WatchdogTimestampMonotonic,ActiveEnterTimestampMonotonic"
)
GRACE = 10.0  # seconds for systemd to end a hung node first
ABORT = 10.0  # seconds for a node to end by SIGABRT, which prints where it hung; TimeoutAbortSec of the unit
LOOK = 0.2  # seconds between two looks
# As systemctl prints times. Source: systemd.time(7).
UNITS = {
    "y": 31557600, "month": 2629800, "w": 604800, "d": 86400, "h": 3600, "min": 60, "s": 1,
    "ms": 1e-3, "us": 1e-6,
}  # fmt: skip
SPAN = re.compile(r"([0-9.]+)([a-z]+)")


def say(level: int, text: str) -> None:
    """Write a line to the journal, with a level of syslog(3)."""
    sys.stderr.write(f"<{level}>{text}\n")


def systemctl(*words: str) -> str:
    """Return what systemctl prints."""
    done = subprocess.run([SYSTEMCTL, *words], check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout


def nodes(names: str = FAMILY) -> Iterator[dict[str, str]]:
    """Yield the properties of each node that is up."""
    for block in systemctl("show", f"--property={PROPERTIES}", names).split("\n\n"):
        state = dict(line.partition("=")[::2] for line in block.splitlines())
        if state.get("ActiveState") == "active" and state.get("SubState") == "running":
            yield state


def seconds_of(span: str) -> float:
    """Return the seconds of a time as systemctl prints it, such as `1min 30s`, `0` or `infinity`."""
    if span == "infinity":
        return float("inf")
    return sum(float(number) * UNITS[unit] for number, unit in SPAN.findall(span))


def is_older(state: dict[str, str], unit: Path, fingerprints: str) -> bool:
    """Return whether a node runs with another version of its unit file, or with nobody knows which."""
    name = state["Id"].partition("@")[2].removesuffix(".service")
    try:
        started_with = Path(fingerprints.format(name)).read_text()
        now = hashlib.sha256(unit.read_bytes()).hexdigest()
    except OSError:
        return True
    return f"{now}  {unit}" not in started_with.splitlines()


def fault(state: dict[str, str], seconds: float, start: float, now: float) -> str:
    """Return why a node has to be restarted; nothing if it need not.

    Args:
        state: Its properties.
        seconds: After how many seconds without a sign of life a node counts as hung.
        start: The same for one that has given no sign of life yet; with the first, it sets its own time.
        now: The time, by the clock of CLOCK_MONOTONIC.
    """
    last, waits = int(state["WatchdogTimestampMonotonic"] or 0) / 1e6, seconds_of(state["WatchdogUSec"])
    if not last:
        return ""
    # systemd counts from before it knows the node's process, from which it then takes signs of life.
    starts = last <= int(state["ActiveEnterTimestampMonotonic"] or 0) / 1e6
    silence, right = now - last, waits == seconds or (starts and waits == start)
    if silence > (waits if right else seconds) + GRACE:
        why = f"no sign of life for {silence:.0f} s"
        return why if right else f"{why}, and {told(waits, seconds)}"
    if not right:
        say(4, f"{state['Id']}: {told(waits, seconds)}.")
    return ""


def told(waits: float, seconds: float) -> str:
    """Return that somebody has told systemd another time."""
    return (
        f"systemd was told to wait for {waits:g} s in place of {seconds:g}, which only a task can have done"
    )


def kill(units: dict[str, str]) -> None:
    """End the main processes of some units: unit -> process. Each unit then starts its node again."""
    for signal, patience in (("SIGABRT", ABORT), ("SIGKILL", 0.0)):
        for unit in units:
            systemctl("kill", "--kill-whom=main", f"--signal={signal}", unit)
        until = time.monotonic() + patience
        while time.monotonic() < until and units:
            time.sleep(LOOK)
            still = {(state["Id"], state["MainPID"]) for state in nodes()}
            units = {unit: pid for unit, pid in units.items() if (unit, pid) in still}


def main(seconds: float, start: float, unit: Path, fingerprints: str) -> None:
    """Look at each node once."""
    now, found = time.monotonic(), {}
    for state in nodes():
        if is_older(state, unit, fingerprints):
            continue
        why = fault(state, seconds, start, now)
        if why:
            say(3, f"{state['Id']} hangs: {why}. It is killed, and starts again.")
            found[state["Id"]] = state["MainPID"]
    kill(found)


if __name__ == "__main__":
    main(float(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
