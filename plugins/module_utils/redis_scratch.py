# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A Redis without port and data, which reads a redis.conf and tells what it makes of it."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import time
from pathlib import Path

from ansible_collections.fleet.celery.plugins.module_utils.redis_desired import SCRATCH_ARGUMENTS
from ansible_collections.fleet.celery.plugins.module_utils.redis_tls import new_client, redis


def scratch_config(text: str) -> dict[str, str]:
    """Return all directives of a server that read a redis.conf.

    Raises:
        ValueError: Redis does not start with it; the message has the server's log.
    """
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        file, place, log = (directory / part for part in ("redis.conf", "socket", "log"))
        file.write_text(text)
        arguments = SCRATCH_ARGUMENTS | {"dir": name, "unixsocket": str(place)}
        options = [word for name, value in arguments.items() for word in (f"--{name}", *value.split(" "))]
        with log.open("w") as out, subprocess.Popen(["redis-server", file, *options], stdout=out) as server:
            client = new_client(unix_socket_path=str(place))
            try:
                while server.poll() is None:
                    with contextlib.suppress(redis.exceptions.ConnectionError):
                        found: dict[str, str] = client.config_get("*")
                        return found
                    time.sleep(0.02)
            finally:
                server.kill()
        raise ValueError(f"Redis does not start with redis.conf:\n{log.read_text()}")
