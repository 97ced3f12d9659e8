# SPDX-License-Identifier: MIT
"""Every secret is a canary: the texts by which it is known again, and the search for them on a host."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from base64 import b64encode, urlsafe_b64encode
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, quote_plus

from tests.fleet.support import scan

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.fleet.support.hosts import Host

CORE = re.compile(r"[A-Za-z0-9]{12,}")

Hits = set[tuple[str, str]]  # name of a secret, where it was found


def texts_of(secret: str) -> list[str]:
    """Return texts, one of which is found wherever a secret is shown, however it is quoted or encoded.

    Every way to quote (percent, repr, JSON, YAML, shell, systemd) leaves letters and digits as they are, so a
    run of those is enough; base64 is another matter, since it depends on what stands before the secret.

    >>> texts_of("abcdefghijklmnop$%")[0]
    'abcdefghijklmnop'
    """
    quoted = {secret, quote(secret, safe=""), quote(secret), quote_plus(secret), repr(secret)[1:-1]}
    quoted |= {json.dumps(secret)[1:-1], shlex.quote(secret), secret.replace("'", "''")}
    cores = CORE.findall(secret)
    return [max(cores, key=len)] if cores else sorted(quoted) + list(in_base64(secret))


def in_base64(secret: str) -> Iterator[str]:
    r"""Yield what base64 makes of a secret after 0, 1 or 2 other bytes (modulo 3), less its uncertain ends.

    >>> all(any(text in b64encode(f"{user}:hunter22".encode()).decode() for text in in_base64("hunter22"))
    ...     for user in ("a", "ab", "abc"))
    True
    """
    for before in range(3):
        padded = b"\0" * before + secret.encode()
        sure = slice((before * 8 + 5) // 6, len(padded) * 8 // 6)
        yield from {encode(padded).decode()[sure] for encode in (b64encode, urlsafe_b64encode)}


def patterns(secrets: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the texts of each secret, base64 included."""
    return {name: [*texts_of(secret), *in_base64(secret)] for name, secret in secrets.items()}


def search(text: str, secrets: Mapping[str, str]) -> set[str]:
    """Return the names of the secrets that a text shows."""
    return set(scan.found_in(text.encode(), encoded(secrets)))


def encoded(secrets: Mapping[str, str]) -> dict[str, list[bytes]]:
    """Return the texts of each secret as bytes."""
    return {name: [text.encode() for text in texts] for name, texts in patterns(secrets).items()}


def search_host(host: Host, secrets: Mapping[str, str]) -> Hits:
    """Search a host for secrets: files that all can read, systemd, the journal, processes."""
    request = json.dumps({"patterns": patterns(secrets), "mode": "everywhere"})
    script = Path(scan.__file__).read_text()
    return {
        (name, where)
        for name, where in json.loads(host.sh('exec python3 -c "$1"', script, text=request + "\n"))
    }


@contextmanager
def watch(hosts: list[Host], secrets: Mapping[str, str]) -> Iterator[dict[str, Hits]]:
    """Watch the processes of hosts for a while; the hits are there at the end."""
    hits: dict[str, Hits] = {}
    command = shlex.join(["sudo", "-n", "python3", "-c", Path(scan.__file__).read_text()])
    watchers = {
        host.name: subprocess.Popen(
            [*host.ssh, command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for host in hosts
    }
    try:
        for watcher in watchers.values():
            assert watcher.stdin
            watcher.stdin.write(json.dumps({"patterns": patterns(secrets), "mode": "watch"}) + "\n")
            watcher.stdin.flush()
        yield hits
    finally:
        for name, watcher in watchers.items():
            found, _ = watcher.communicate(timeout=30)
            hits[name] = {(secret, where) for secret, where in json.loads(found)}
