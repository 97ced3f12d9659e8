# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The inner end of `index_gate`: runs a command with a proxy on the sandbox's loopback.

It is given to an interpreter as text, and has the standard library only.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from contextlib import suppress

# What names a proxy in an environment, in either case of letters.
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


def copy(source: socket.socket, target: socket.socket) -> None:
    """Copy all that comes, and then the end."""
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def hand_over(client: socket.socket, path: str) -> None:
    """Join a client with the gate."""
    with client, socket.socket(socket.AF_UNIX) as gate:
        with suppress(OSError):
            gate.connect(path)
        back = threading.Thread(target=copy, args=(gate, client), daemon=True)
        back.start()
        copy(client, gate)
        back.join()


def accept(server: socket.socket, path: str) -> None:
    """Join each client with the gate."""
    while True:
        client, _unused = server.accept()
        threading.Thread(target=hand_over, args=(client, path), daemon=True).start()


def main(path: str, argv: list[str]) -> int:
    """Run a command, and return its exit status.

    Args:
        path: The gate's socket.
        argv: The command.
    """
    server = socket.create_server(("127.0.0.1", 0))
    proxy = f"http://127.0.0.1:{server.getsockname()[1]}"
    threading.Thread(target=accept, args=(server, path), daemon=True).start()
    environment = {name: value for name, value in os.environ.items() if name.lower() not in PROXIES}
    for name in PROXIES[:3]:
        environment[name] = environment[name.upper()] = proxy
    status = subprocess.run(argv, env=environment, check=False).returncode
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], sys.argv[2:]))
