#!/usr/bin/python
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask Flower which nodes are online, as a user's browser would: by nginx, with TLS and the password."""

from __future__ import annotations

DOCUMENTATION = r"""
module: flower_health
short_description: Wait until Flower shows every expected node as online, and nothing without the password
version_added: 0.1.0
description:
  - Healthy is a Flower that shows each expected node as online, and shows nothing without the password.
  - It changes nothing. If Flower is not healthy in time, the message ends with the journal of its unit.
options:
  url: {description: "Where nginx listens, without a path.", type: str, required: true}
  username: {description: Name that nginx asks for., type: str, required: true}
  password: {description: Its password., type: str, required: true}
  previous_password: {description: One that must open nothing any more., type: str, default: ""}
  ca_file: {description: CA certificate that nginx's must chain to., type: path, required: true}
  certificate: {description: File of the certificate that nginx must show., type: path, default: ""}
  expected: {description: Nodes that must be online., type: list, elements: str, default: []}
  any_node: {description: "Whether any node must be, if it is not known which.", type: bool, default: false}
  timeout: {description: Seconds to wait for one answer., type: int, default: 15}
  retries: {description: How often an unhealthy Flower is asked again., type: int, default: 30}
  delay: {description: Seconds between two questions., type: int, default: 2}
  unit: {description: Flower's systemd unit., type: str, default: flower.service}
extends_documentation_fragment:
  - fleet.celery.attributes
  - fleet.celery.attributes.info
author: The celery-fleet contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Wait until Flower shows every node
  fleet.celery.flower_health:
    url: https://127.0.0.1:5555
    username: flower
    password: "{{ flower_password }}"
    ca_file: /etc/fleet/tls/ca.crt
    expected: [default-1@worker1]
  no_log: true
"""

RETURN = r"""# """

import json
import ssl
import time
from typing import TYPE_CHECKING
from urllib.error import HTTPError
from urllib.parse import urlsplit

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.urls import open_url
from ansible_collections.fleet.celery.plugins.module_utils.certificates import certificate_of
from ansible_collections.fleet.celery.plugins.module_utils.fleet_systemd import journal

if TYPE_CHECKING:
    from typing import Any

UNAUTHORIZED = 401


class UnhealthyError(Exception):
    """Flower is not well; the message says in which way."""


def ask(params: dict[str, Any], path: str, **credentials: Any) -> str:
    """Return what a path answers.

    Raises:
        HTTPError: It refuses.
        UnhealthyError: Nobody answers.
    """
    try:
        answer = open_url(
            params["url"] + path, timeout=params["timeout"], ca_path=params["ca_file"], **credentials
        )
        return str(answer.read().decode())
    except HTTPError:
        raise
    except (OSError, ValueError) as error:  # no connection, no trust, no answer in time
        raise UnhealthyError(f"nobody answers there ({error})") from None


def login(username: str, password: str) -> dict[str, Any]:
    """Return what makes open_url send a password."""
    return {"url_username": username, "url_password": password, "force_basic_auth": True}


def examine(params: dict[str, Any]) -> None:
    """Look at Flower once.

    Raises:
        UnhealthyError: It is not well.
    """
    try:
        shown = json.loads(
            ask(params, "/api/workers?status=true", **login(params["username"], params["password"]))
        )
    except HTTPError as error:
        raise UnhealthyError(f"it answers {error.code} {error.reason}") from None
    except ValueError:
        raise UnhealthyError("what it answers is not Flower's") from None
    missing = [node for node in params["expected"] if not shown.get(node)]
    if missing:
        raise UnhealthyError(f"it does not show as online: {', '.join(missing)}")
    if params["any_node"] and not any(shown.values()):
        raise UnhealthyError("it shows no node as online; or are the hosts of all nodes drained?")
    if params["certificate"]:
        refuse_other_certificate(params)


def refuse_open_door(params: dict[str, Any]) -> None:
    """Refuse a Flower that shows something without a password, or with the one before.

    Raises:
        UnhealthyError: It does.
    """
    refuse_opening(params, "without a password")
    if params["previous_password"]:
        given = login(params["username"], params["previous_password"])
        refuse_opening(params, "with the previous password", **given)


def refuse_opening(params: dict[str, Any], how: str, **credentials: Any) -> None:
    """Refuse a Flower that opens in some way.

    Raises:
        UnhealthyError: It does.
    """
    try:
        ask(params, "/metrics", **credentials)
    except HTTPError as error:
        if error.code == UNAUTHORIZED:
            return
        raise UnhealthyError(f"{how} it answers {error.code}, not {UNAUTHORIZED}") from None
    raise UnhealthyError(f"it shows /metrics {how}")


def refuse_other_certificate(params: dict[str, Any]) -> None:
    """Refuse an nginx that shows another certificate than it should.

    Raises:
        UnhealthyError: It does, or there is none that it should show.
    """
    file, address = params["certificate"], urlsplit(params["url"])
    try:
        shown = ssl.get_server_certificate((address.hostname, address.port), timeout=params["timeout"])
        if certificate_of(file) != ssl.PEM_cert_to_DER_cert(shown):
            raise UnhealthyError(f"nginx does not show the certificate in {file}; site.yml has it read that")
    except (OSError, ValueError) as error:
        raise UnhealthyError(str(error)) from None


def wait(params: dict[str, Any]) -> None:
    """Wait until Flower is well.

    Raises:
        UnhealthyError: It never was.
    """
    for left in range(params["retries"], -1, -1):
        try:
            return examine(params)
        except UnhealthyError:
            if left == 0:
                raise
        time.sleep(params["delay"])
    return None


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "username": {"type": "str", "required": True},
            "password": {"type": "str", "required": True, "no_log": True},
            "previous_password": {"type": "str", "default": "", "no_log": True},
            "ca_file": {"type": "path", "required": True},
            "certificate": {"type": "path", "default": ""},
            "expected": {"type": "list", "elements": "str", "default": []},
            "any_node": {"type": "bool", "default": False},
            "timeout": {"type": "int", "default": 15},
            "retries": {"type": "int", "default": 30},
            "delay": {"type": "int", "default": 2},
            "unit": {"type": "str", "default": "flower.service"},
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        wait(params)
        refuse_open_door(params)
    except UnhealthyError as problem:
        url, unit = params["url"], params["unit"]
        told = journal(module.run_command, unit)
        module.fail_json(msg=f"Flower at {url} is not well: {problem}\n--- journal of {unit} ---\n{told}")
    module.exit_json(changed=False)


if __name__ == "__main__":
    main()
