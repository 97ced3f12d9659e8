"""Leads what a node prints into systemd's journal.

`celery multi` detaches its node, which then prints to /dev/null: a traceback, or the last words of a C
library, would be seen by nobody. systemd's journal takes a stream from any process, as systemd-cat(1) shows,
and knows the unit by the cgroup. So the node's standard output and error become such a stream, which its
children inherit.
"""

from __future__ import annotations

import os
import socket
import stat
import sys
from io import TextIOWrapper
from pathlib import Path

STREAM = Path("/run/systemd/journal/stdout")


def adopt_streams(stream: Path = STREAM) -> bool:
    """Connect the standard output and error of a node to the journal, if they lead to /dev/null.

    Of a node only: who sends the output of another command to /dev/null wants that.

    Returns:
        Whether it was done. Without a journal, a node works as well.
    """
    is_node = os.environ.get("FLEET_COMPONENT") == "worker"
    if not (is_node and _is_null(1) and _is_null(2) and stream.exists()):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(str(stream))
            connection.sendall(_header(os.environ.get("FLEET_NODE", "")))
            connection.shutdown(socket.SHUT_RD)
        except OSError:
            return False
        os.set_blocking(connection.fileno(), True)  # gevent's sockets are not, and a line would be cut short
        os.dup2(connection.fileno(), 1)
        os.dup2(connection.fileno(), 2)
    os.environ["JOURNAL_STREAM"] = _identity(2)
    for text in (sys.stdout, sys.stderr):
        if isinstance(text, TextIOWrapper):
            text.reconfigure(line_buffering=True)
    return True


def is_journal(descriptor: int) -> bool:
    """Return whether a file descriptor leads to the journal. Source: systemd.exec(5), $JOURNAL_STREAM."""
    return os.environ.get("JOURNAL_STREAM", "") == _identity(descriptor)


def _header(node: str) -> bytes:
    """Return what the journal expects first, a line each. Source: journald-stream.c of systemd.

    The identifier is the node's short name, so that the lines of `journalctl -u 'celery-worker@*'` tell
    which node wrote them.
    """
    fields = {
        "identifier": node.partition("@")[0] or "celery",
        "unit": "",  # it knows better
        "priority": "6",  # info, for lines that do not say
        "level prefix": "1",  # lines may begin with <priority>, see sd-daemon(3)
        "forward to syslog": "0",
        "forward to kmsg": "0",
        "forward to console": "0",
    }
    return "".join(f"{value}\n" for value in fields.values()).encode()


def _is_null(descriptor: int) -> bool:
    """Return whether a file descriptor is /dev/null."""
    try:
        status, null = os.fstat(descriptor), Path(os.devnull).stat()
    except OSError:
        return False
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == null.st_rdev


def _identity(descriptor: int) -> str:
    """Return the device and inode of a file descriptor as systemd writes them; never empty."""
    try:
        status = os.fstat(descriptor)
    except OSError:
        return "closed"
    return f"{status.st_dev}:{status.st_ino}"
