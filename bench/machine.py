# SPDX-License-Identifier: MIT
"""Describes the machine, as far as figures depend on it, and nothing by which one could find it."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterable

PACKAGES = {"Celery": "celery", "kombu": "kombu", "redis-py": "redis", "hiredis": "hiredis"}
PEERS = ("arq", "dramatiq", "huey", "rq", "taskiq", "taskiq-redis")
PIN = re.compile(r"^([a-z][a-z0-9-]*)==(\S+)", re.MULTILINE)


def describe(redis: Any) -> dict[str, str]:
    """Return what is measured on, and with which versions; the peers' as they are pinned."""
    locks = sorted((ROOT / "requirements").glob("bench*.txt"))
    pins = pinned(lock.read_text() for lock in locks)
    return {
        "CPU": cpu_model(Path("/proc/cpuinfo").read_text()),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        **{name: version(package) for name, package in PACKAGES.items()},
        "Redis": str(redis.info("server")["redis_version"]),
        **{name: pins[name] for name in PEERS if name in pins},
    }


def cpu_model(text: str) -> str:
    r"""Return the name of the CPU, by the text of /proc/cpuinfo.

    >>> cpu_model("processor : 0\nmodel name\t: Some CPU @ 2.00GHz\nprocessor : 1\n")
    'Some CPU @ 2.00GHz'
    """
    found = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def pinned(locks: Iterable[str]) -> dict[str, str]:
    r"""Return the version of each package in the texts of lock files.

    >>> pinned(["rq==3.0.0 \\\n    --hash=sha256:0a==b\nredis==8.1.0 \\\n"])
    {'rq': '3.0.0', 'redis': '8.1.0'}
    """
    return {match[1]: match[2] for text in locks for match in PIN.finditer(text)}
