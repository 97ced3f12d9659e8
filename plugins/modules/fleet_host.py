#!/usr/bin/python
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Refuse a host that a service could not run on, before anything is changed there."""

from __future__ import annotations

DOCUMENTATION = r"""
module: fleet_host
short_description: Refuse a host that a service could not run on
version_added: 0.1.0
description:
  - Looks for what only the host can tell. The port of the service is taken by another one. With
    I(data_dir), the host has no such address, its disk is too small for an append-only file, or it has a
    Redis that this collection did not set up, whose data would be lost.
  - All findings are in one message. It changes nothing.
options:
  bind:
    description:
      - Addresses that the service shall listen on; an asterisk is all.
      - One with a dash before it may be missing.
    type: list
    elements: str
    required: true
  port: {description: The port of the service., type: int, required: true}
  unit: {description: "Its systemd unit, which may have the port already.", type: str, required: true}
  prefix:
    description: What the names of its variables begin with, for the messages, such as V(redis) for
      C(redis_port).
    type: str
    required: true
  data_dir: {description: Directory of Redis's data., type: path}
  disk_space: {description: "Bytes that its data may need. With I(data_dir).", type: int}
  marker: {description: "File that only this collection's Redis has. With I(data_dir).", type: path}
extends_documentation_fragment:
  - fleet.celery.attributes
  - fleet.celery.attributes.info
author: The celery-fleet contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Refuse a host that Redis could not run on
  fleet.celery.fleet_host:
    bind: [127.0.0.1]
    port: 6379
    unit: redis-server.service
    prefix: redis
    data_dir: /var/lib/redis
    disk_space: 2147483648
    marker: /etc/systemd/system/redis-server.service.d/fleet.conf

- name: Refuse a port that is taken
  fleet.celery.fleet_host:
    bind: ["*"]
    port: 5555
    unit: nginx.service
    prefix: flower
"""

RETURN = r"""# """

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
    """Find programs that listen where the service shall, and are not it."""
    bind = [address.lstrip("-") for address in params["bind"]]
    yield from fleet_sockets.taken(bind, params["port"], params["unit"], f"{params['prefix']}_port")


def foreign_addresses(params: dict[str, Any]) -> Iterator[str]:
    """Find addresses that no interface of the host has."""
    for address in params["bind"]:
        if address.startswith("-") or address == "*":  # Redis itself takes these as optional, or as all
            continue
        try:
            family, kind, protocol, _name, place = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind, protocol) as probe:
                probe.bind(place)
        except OSError as error:
            variable = f"{params['prefix']}_bind"
            yield f"{variable} has {address}, which is not an address of this host ({error.strerror})."


def small_disk(params: dict[str, Any]) -> Iterator[str]:
    """Find a disk without room for the data, those that are there already not counted."""
    data = there = Path(params["data_dir"])
    while not there.exists():
        there = there.parent
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
        not Path(params["marker"]).exists()
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


def findings(params: dict[str, Any], run: Run) -> Iterator[str]:
    """Find everything because of which the service could not run."""
    yield from taken(params)
    if params["data_dir"]:
        yield from foreign_addresses(params)
        yield from small_disk(params)
        yield from somebody_elses(params, run)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "bind": {"type": "list", "elements": "str", "required": True},
            "port": {"type": "int", "required": True},
            "unit": {"type": "str", "required": True},
            "prefix": {"type": "str", "required": True},
            "data_dir": {"type": "path"},
            "disk_space": {"type": "int"},
            "marker": {"type": "path"},
        },
        required_together=[("data_dir", "disk_space", "marker")],
        supports_check_mode=True,
    )
    if found := list(findings(module.params, module.run_command)):
        module.fail_json(
            msg="This host cannot run the service, and nothing was changed.\n- " + "\n- ".join(found)
        )
    module.exit_json(changed=False)


if __name__ == "__main__":
    main()
