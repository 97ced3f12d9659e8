# SPDX-License-Identifier: MIT
"""Sends the output of a node, and records with fields, to systemd's journal.

`celery multi` detaches its node, which then prints to /dev/null: a traceback, or a message of a C library,
would be lost. systemd's journal accepts a stream from any process, as systemd-cat(1) shows, and knows the
unit by the cgroup. So the standard output and error of the node become such a stream, which its child
processes inherit.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import sys
from array import array
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

STREAM = Path("/run/systemd/journal/stdout")
RECORDS = Path("/run/systemd/journal/socket")

TOO_LARGE = frozenset({errno.EMSGSIZE, errno.ENOBUFS})


def adopt_streams(node: str, stream: Path = STREAM) -> bool:
    """Connect the standard output and error of a node to the journal, if they lead to /dev/null.

    Only a node calls this: in other components, such output was discarded on purpose.

    Args:
        node: Name of the node; may be empty.
        stream: The socket of the journal.

    Returns:
        Whether the streams are connected. A node also works without a journal.
    """
    if not (_is_null(1) and _is_null(2) and stream.exists()):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(str(stream))
            connection.sendall(_header(node))
            connection.shutdown(socket.SHUT_RD)
        except OSError:
            return False
        os.set_blocking(connection.fileno(), True)  # gevent's sockets do not block, and would cut lines
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


class Records:
    """Sends records in the journal's native protocol. Source: systemd.io/JOURNAL_NATIVE_PROTOCOL."""

    def __init__(self) -> None:
        """Create a socket, which child processes may use, too."""
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self.socket.setblocking(False)

    def send(self, fields: Mapping[str, str]) -> bool:
        """Send a record; return whether the journal has it. The journal may be away, or have no room."""
        lines = "".join([f"{name}={value}\n" for name, value in fields.items() if "\n" not in value])
        blocks = [_block(name, value) for name, value in fields.items() if "\n" in value]
        record = lines.encode(errors="backslashreplace") + b"".join(blocks)
        try:
            self.socket.sendto(record, str(RECORDS))
        except OSError as error:
            return error.errno in TOO_LARGE and self._send_file(record)
        return True

    def _send_file(self, record: bytes) -> bool:
        """Send a record that is too large for a datagram, as a sealed file in memory."""
        try:
            descriptor = os.memfd_create("journal", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            with os.fdopen(descriptor, "wb") as file:
                file.write(record)
                file.flush()
                seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
                fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
                # not socket.send_fds(), which has no address
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [descriptor]))
                self.socket.sendmsg([], [rights], 0, str(RECORDS))
        except OSError:
            return False
        return True


def _block(name: str, value: str) -> bytes:
    """Return a field with several lines, prefixed by its length."""
    data = value.encode(errors="backslashreplace")
    return name.encode() + b"\n" + len(data).to_bytes(8, "little") + data + b"\n"


def identifier(node: str) -> str:
    """Return the identifier that `journalctl` shows before each line: the short name of the node."""
    return node.partition("@")[0] or "celery"


def _header(node: str) -> bytes:
    """Return the header of a stream, one line for each field. Source: journald-stream.c of systemd.

    The identifier is the short name of the node, so that `journalctl -u 'celery-worker@*'` shows which node
    has written a line.
    """
    fields = {
        "identifier": identifier(node),
        "unit": "",  # the journal finds it by the cgroup
        "priority": "6",  # info, for lines without a prefix
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
    """Return the device and inode of a file descriptor, as systemd writes them; never an empty string."""
    try:
        status = os.fstat(descriptor)
    except OSError:
        return "closed"
    return f"{status.st_dev}:{status.st_ino}"
