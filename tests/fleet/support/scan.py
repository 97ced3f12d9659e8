# SPDX-License-Identifier: MIT
"""Searches the host it runs on for texts that must not be seen. It is sent there, so it stands alone.

Standard input: one line of JSON, {"patterns": {name: [text, ...]}, "mode": "everywhere" or "watch"}.
Standard output: JSON, a list of [name, where it was found], each once.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    Patterns = dict[str, list[bytes]]
    Hits = set[tuple[str, str]]

PLACES = ["/etc", "/opt", "/var", "/run", "/tmp", "/usr/local", "/home", "/dev/shm", "/srv"]


def found_in(content: bytes, patterns: Patterns) -> Iterator[str]:
    """Yield the names of what is in a text."""
    yield from (name for name, texts in patterns.items() if any(text in content for text in texts))


def output_of(*command: str) -> bytes:
    """Return what a command prints. Some fail for single units, and tell of all others."""
    return subprocess.run(command, capture_output=True, check=False).stdout


def readable_files() -> Iterator[Path]:
    """Yield the files that every user of the host can read."""
    for place in PLACES:
        for directory, directories, files in os.walk(place):
            directories[:] = [d for d in directories if Path(directory, d).lstat().st_mode & 0o005 == 0o005]
            for name in files:
                path = Path(directory, name)
                status = path.lstat()
                if status.st_mode & 0o170000 == 0o100000 and status.st_mode & 0o004:
                    yield path


def search_files(patterns: Patterns) -> Hits:
    """Search the files that every user can read; grep is quick with megabytes."""
    texts = os.memfd_create("patterns")  # never on a disk
    os.write(texts, b"\n".join(text for several in patterns.values() for text in several))
    names = b"\0".join(os.fsencode(path) for path in readable_files())
    grep = [
        "xargs",
        "--null",
        "--no-run-if-empty",
        "grep",
        "-lZ",
        "-aF",
        "-f",
        f"/proc/self/fd/{texts}",
        "--",
    ]
    done = subprocess.run(grep, input=names, stdout=subprocess.PIPE, pass_fds=[texts], check=False)
    paths = [os.fsdecode(name) for name in done.stdout.split(b"\0") if name]
    return {(name, f"file {path}") for path in paths for name in found_in(Path(path).read_bytes(), patterns)}


def search_systemd(patterns: Patterns) -> Hits:
    """Search what systemd tells every user of its units, and the whole journal."""
    sources = {
        "systemctl show": ["systemctl", "show", "*"],
        "systemctl cat": ["systemctl", "cat", "*"],
        "journal": ["journalctl", "--no-pager", "--output=export"],
    }
    return {
        (name, where)
        for where, command in sources.items()
        for name in found_in(output_of(*command), patterns)
    }


def search_processes(patterns: Patterns) -> Hits:
    """Search command lines, and the environments of processes, which are named by their unit."""
    hits = set()
    for directory in Path("/proc").glob("[0-9]*"):
        if directory.name == str(os.getpid()):
            continue
        try:
            command = (directory / "cmdline").read_bytes()
            environment = (directory / "environ").read_bytes()
            unit = (directory / "cgroup").read_text().rstrip().rpartition("/")[2]
        except OSError:  # it has ended
            continue
        hits |= {(name, f"command line of {unit}") for name in found_in(command, patterns)}
        hits |= {(name, f"environment of {unit}") for name in found_in(environment, patterns)}
    return hits


def watch_processes(patterns: Patterns) -> Hits:
    """Search the processes again and again, until standard input ends."""
    hits: Hits = set()
    while not select.select([sys.stdin], [], [], 0.02)[0]:
        hits |= search_processes(patterns)
    return hits


def main() -> None:
    """Search, and print what was found."""
    request = json.loads(sys.stdin.readline())
    patterns = {name: [text.encode() for text in texts] for name, texts in request["patterns"].items()}
    if request["mode"] == "watch":
        hits = watch_processes(patterns)
    else:
        hits = search_files(patterns) | search_systemd(patterns) | search_processes(patterns)
    json.dump(sorted(hits), sys.stdout)


if __name__ == "__main__":
    main()
