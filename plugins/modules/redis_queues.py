#!/usr/bin/python
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which rights users.acl still gives, that the inventory gives no more, and what still uses them."""

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_queues
short_description: Tell which rights were given up, and what still uses the queues among them
version_added: 0.1.0
description:
  - A queue was given up if users.acl lets somebody use it, and I(queues) does not name it.
  - Without I(password), only the file is read. With it, Redis is asked who still consumes such a queue, and
    how many messages are in it, or held by a node that took them from it.
  - Before selectors, users.acl let clients use the bindings of every exchange. Such a file is told of, and
    with I(password), which exchanges lead to a queue of the fleet and are neither in I(queues) nor in
    I(exchanges).
  - Changes nothing.
options:
  acl_file: {description: Place of users.acl., type: path, required: true}
  queues: {description: Every queue that the inventory names., type: list, elements: str, required: true}
  exchanges:
    description: Every other exchange that the inventory names.
    type: list
    elements: str
    default: []
  password: {description: "The user's password. Empty: ask no Redis.", required: false, default: ""}
extends_documentation_fragment:
  - fleet.celery.attributes
  - fleet.celery.attributes.info
  - fleet.celery.redis
  - fleet.celery.redis.login
author: The celery-fleet contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: See which queues were given up
  fleet.celery.redis_queues:
    acl_file: /etc/redis/users.acl
    queues: [default, email]
    host: 127.0.0.1
    port: 6379
    ca_file: /etc/fleet/tls/ca.crt
    password: "{{ redis_passwords.admin }}"
  register: queues
"""

RETURN = r"""
former: {description: Queues that were given up., returned: success, type: list, elements: str}
consumers:
  description: The nodes that consume each of them still, or may, since they have not proved themselves yet.
  returned: success
  type: dict
messages: {description: How many messages there are of each; of no others., returned: success, type: dict}
any_script: {description: Whether users.acl lets clients load scripts., returned: success, type: bool}
any_exchange:
  description: Whether users.acl has the bindings of all exchanges.
  returned: success
  type: bool
exchanges:
  description: The exchanges that are used still, and that nobody names, where I(any_exchange) and with
    I(password).
  returned: success
  type: list
  elements: str
used: {description: Those of which there is either., returned: success, type: list, elements: str}
"""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible_collections.fleet.celery.plugins.module_utils import runtime_keys as keys
from ansible_collections.fleet.celery.plugins.module_utils.fleet_keys import (
    BINDING,
    PRIORITIES,
    SEPARATOR,
    living,
)
from ansible_collections.fleet.celery.plugins.module_utils.redis_desired import parse_acl
from ansible_collections.fleet.celery.plugins.module_utils.redis_tls import (
    StrangeServerError,
    login_arguments,
    redis,
    verified_login,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any


# Characters of patterns for other lists, such as reply queues, which no queue of the inventory has.
NO_NAME = re.compile(r"[*?]")

# The rule for the lists of a queue's priorities, as this release of the role or one before has written it:
# the name, two bytes of kombu's, and which priorities.
OF_A_QUEUE = re.compile(r"[(%RW]*~(?P<queue>.+)\?\?\[[0-9-]+\]\)?")


def queues_of(acl: str) -> set[str]:
    """Return the queues that the users of an ACL file may use."""
    rules = {rule for rules in parse_acl(acl.splitlines()).values() for rule in rules}
    found = (OF_A_QUEUE.fullmatch(rule) for rule in rules)
    return {one["queue"] for one in found if one and not NO_NAME.search(one["queue"])}


def consumers_of(client: Any, queues: Iterable[str]) -> dict[str, list[str]]:
    """Return the living nodes that consume each queue, or may, as they have not run their self-test."""
    nodes = living(client)
    facts = {node: json.loads(text) for node, text in client.hgetall(keys.NODES).items() if node in nodes}
    found = {
        queue: sorted(
            node
            for node in nodes
            if facts.get(node, {}).get("proved") is None or queue in facts[node].get("queues", ())
        )
        for queue in queues
    }
    return {queue: consumers for queue, consumers in found.items() if consumers}


def messages_of(client: Any, queues: Iterable[str]) -> dict[str, int]:
    """Return how many messages wait in each queue, or are held by a node that took them from it."""
    named = {*client.zrange(keys.LEASES, 0, -1), *client.hkeys(keys.NODES)}
    places = [place(text) for node in named for text in client.hvals(keys.unacked(node))]
    found = {
        queue: sum(client.llen(queue + step) for step in PRIORITIES) + places.count(queue) for queue in queues
    }
    return {queue: count for queue, count in found.items() if count}


def exchanges_of(client: Any, queues: Iterable[str]) -> set[str]:
    """Return the exchanges that lead to one of these queues."""
    return {
        key.removeprefix(BINDING)
        for key in client.scan_iter(f"{BINDING}*", count=1000, _type="set")
        if any(member.rpartition(SEPARATOR)[2] in queues for member in client.smembers(key))
    }


def place(record: str) -> str:
    """Return the queue, or kombu's routing key, of a message that is held; nothing if it is none."""
    try:
        _unused, _unused, name = json.loads(record)
    except ValueError:
        return ""
    return str(name)


def former_rights(params: dict[str, Any]) -> tuple[list[str], bool, bool]:
    """Return what was given up, and users.acl still has.

    Returns:
        The queues, whether there are the bindings of all exchanges, and whether clients may load scripts.
    """
    file = Path(params["acl_file"])
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    users = parse_acl(text.splitlines())
    any_exchange = any(rule.lstrip("(%RW").strip("~)") == f"{BINDING}*" for rule in users.get("web", []))
    any_script = any("+script|load" in rules for rules in users.values())
    return sorted(queues_of(text) - set(params["queues"])), any_exchange, any_script


class NoClientError(Exception):
    """There is something to ask Redis for, and python3-redis is missing."""


def look(params: dict[str, Any]) -> dict[str, Any]:
    """Return the module's result.

    Raises:
        NoClientError: Redis has to be asked, and there is no client; a bare host has nothing to ask for.
        StrangeServerError: It is no server that one may send a password to.
        TimeoutError: It does not answer.
    """
    former, any_exchange, any_script = former_rights(params)
    consumers: dict[str, list[str]] = {}
    messages: dict[str, int] = {}
    exchanges: set[str] = set()
    if (former or any_exchange) and params["password"]:
        if redis is None:
            raise NoClientError
        client = verified_login(params)
        consumers, messages = consumers_of(client, former), messages_of(client, former)
        if any_exchange:
            queues = {*params["queues"], *former}
            exchanges = exchanges_of(client, queues) - queues - {*params["exchanges"]}
    return {
        "changed": False,
        "former": former,
        "consumers": consumers,
        "messages": messages,
        "any_script": any_script,
        "any_exchange": any_exchange,
        "exchanges": sorted(exchanges),
        "used": [queue for queue in former if queue in consumers or queue in messages],
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **login_arguments(),
            "acl_file": {"type": "path", "required": True},
            "queues": {"type": "list", "elements": "str", "required": True},
            "exchanges": {"type": "list", "elements": "str", "default": []},
            "password": {"type": "str", "default": "", "no_log": True},
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        result = look(params)
    except NoClientError:
        module.fail_json(msg=missing_required_lib("redis"))
    except (StrangeServerError, redis.exceptions.RedisError, OSError) as error:
        module.fail_json(
            msg=f"Redis at {params['host']}:{params['port']} cannot be asked: {str(error) or 'no answer'}"
        )
    module.exit_json(**result)


if __name__ == "__main__":
    main()
