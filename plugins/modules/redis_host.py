#!/usr/bin/python
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Refuse a host that Redis could not run on, before anything on it is changed."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: redis_host
short_description: Refuse a host that Redis could not run on
description:
  - Looks for what only the host can tell. Its port is taken, it has no such address, its disk is too small
    for the append-only file, or it has a Redis of somebody else's, whose data would be lost.
  - All findings are in one message. It changes nothing.
options:
  bind: {description: Addresses that Redis shall listen on., type: list, elements: str, required: true}
  port: {description: Its TLS port., type: int, required: true}
  unit: {description: Its systemd unit., type: str, required: true}
  data_dir: {description: Directory of its data., type: path, required: true}
  disk_space: {description: Bytes that its data may need., type: int, required: true}
  mark: {description: File that only this project's Redis has., type: path, required: true}
author: celery-fleet
"""

EXAMPLES = r"""
- name: Refuse a host that Redis could not run on
  fleet.celery.redis_host:
    bind: [127.0.0.1]
    port: 6379
    unit: redis-server.service
    data_dir: /var/lib/redis
    disk_space: 2147483648
    mark: /etc/systemd/system/redis-server.service.d/fleet.conf
"""

import shutil
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.fleet.celery.plugins.module_utils import fleet_sockets

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from ansible_collections.fleet.celery.plugins.module_utils.fleet_systemd import Run

GIB = 1024**3


def taken(params: dict[str, Any]) -> Iterator[str]:
    """Find those who listen where Redis shall, and are not it."""
    bind = [address.lstrip("-") for address in params["bind"]]  # a dash: Redis may do without this one
    yield from fleet_sockets.taken(bind, params["port"], params["unit"], "redis_port")


def foreign_addresses(params: dict[str, Any]) -> Iterator[str]:
    """Find addresses that no interface of the host has."""
    for address in params["bind"]:
        if address.startswith("-") or address == "*":  # Redis itself takes these as optional, or as all
            continue
        try:
            family, kind, protocol, _, place = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind, protocol) as probe:
                probe.bind(place)
        except OSError as error:
            yield f"redis_bind has {address}, which is not an address of this host ({error.strerror})."


def small_disk(params: dict[str, Any]) -> Iterator[str]:
    """Find a disk without room for the data, those that are there already not counted."""
    data = Path(params["data_dir"])
    there = next(path for path in (data, *data.parents) if path.exists())
    own = sum(path.stat().st_size for path in data.rglob("*") if path.is_file())
    free = shutil.disk_usage(there).free
    needed = params["disk_space"]
    if free + own < needed:
        yield (
            f"{there} has {free / GIB:.1f} GiB free, and Redis may need {needed / GIB:.1f} GiB there: twice "
            "redis_maxmemory, since the append-only file is rewritten beside the old one. Give it a larger "
            "disk, lower redis_maxmemory, or set redis_disk_space to what your data will really need."
        )


def somebody_elses(params: dict[str, Any], run: Run) -> Iterator[str]:
    """Find a Redis, or its data, that was here before."""
    data = Path(params["data_dir"])
    if (
        not Path(params["mark"]).exists()
        and run(["systemctl", "is-active", "--quiet", params["unit"]])[0] == 0
    ):
        yield (
            f"{params['unit']} runs, and was not set up by this role. Its data would be lost. Move it to "
            f"another host, or stop it (systemctl disable --now {params['unit']}) and move {data} away."
        )
    elif (data / "dump.rdb").exists() and not list(data.glob("appendonly*")):
        yield (
            f"{data} has a dump.rdb and no append-only file. A Redis with an append-only file starts empty "
            "beside it, and the dump would be lost. Move it away."
        )


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "bind": {"type": "list", "elements": "str", "required": True},
            "port": {"type": "int", "required": True},
            "unit": {"type": "str", "required": True},
            "data_dir": {"type": "path", "required": True},
            "disk_space": {"type": "int", "required": True},
            "mark": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    params = module.params
    findings = [
        *taken(params),
        *foreign_addresses(params),
        *small_disk(params),
        *somebody_elses(params, module.run_command),
    ]
    if findings:
        module.fail_json(
            msg="Redis cannot run on this host, and nothing was changed.\n- " + "\n- ".join(findings)
        )
    module.exit_json(changed=False)


if __name__ == "__main__":
    main()
