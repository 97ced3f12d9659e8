#!/usr/bin/python
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What Redis knows of the nodes of some hosts: can the fleet do without them? And have it forget them."""

from __future__ import annotations

DOCUMENTATION = r"""
module: fleet_nodes
short_description: Tell whether the fleet can do without the nodes of some hosts, and have Redis forget them
version_added: 0.1.0
description:
  - Runs where Redis can be reached with python3-redis, which is its own host.
  - Nodes count as the hosts' by their names, C(<pool>-<n>@<host>).
options:
  state:
    description:
      - C(redundant) fails if a queue would have no consumer without these nodes, as the leases are now. It
        changes nothing.
      - C(absent) waits until these nodes hold no message, and removes their leases, bindings, what they
        said of themselves, and the notes of which hosts are drained. What a node held that ended badly is
        given back by others when its lease has ended. Fails if nobody gives it back in time, and if a node
        lives.
      - C(wanted) tells Redis which I(nodes), and which I(beat), the inventory wants, for C(fleet status). Of
        I(hosts) it leaves what was told before. On a host without Redis a run in check mode says that it
        would be told.
    type: str
    choices: [redundant, absent, wanted]
    required: true
  override:
    description: Variable of the playbook by which one says that what is sent there may wait, for the message.
    type: str
    default: ""
  nodes: {description: "With C(wanted), each node with its queues.", type: dict, default: {}}
  idle_queues:
    description: With C(wanted), queues that no node is to consume.
    type: list
    elements: str
    default: []
  beat:
    description: With C(wanted), the scheduler of the Beat that the inventory wants; empty if it wants none.
    type: str
    default: ""
  hosts: {description: "The hosts' parts of the nodes' names.", type: list, elements: str, required: true}
  wait: {description: Seconds until messages that no node requeues are an error., type: int, default: 120}
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
extends_documentation_fragment:
  - fleet.celery.attributes
  - fleet.celery.redis
  - fleet.celery.redis.login
author: The celery-fleet contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Have Redis forget the nodes of a host that is gone
  fleet.celery.fleet_nodes:
    state: absent
    hosts: [worker2]
    host: 192.0.2.11
    port: 6379
    ca_file: /etc/fleet/tls/ca.crt
    password: "{{ fleet_secrets.redis_admin }}"
  delegate_to: redis1
"""

RETURN = r"""
nodes: {description: Nodes that Redis knew., returned: success, type: list, elements: str}
"""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible_collections.fleet.celery.plugins.module_utils import runtime_keys as keys
from ansible_collections.fleet.celery.plugins.module_utils.fleet_keys import (
    BINDINGS,
    PIDBOX,
    SEPARATOR,
    leases,
    living,
)
from ansible_collections.fleet.celery.plugins.module_utils.redis_tls import (
    StrangeServerError,
    login_arguments,
    redis,
    verified_login,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

PAUSE = 1.0  # seconds between two looks


class NodesError(Exception):
    """The fleet cannot do without these nodes yet; the message says why."""


class Nodes:
    """The nodes of some hosts, as Redis knows them."""

    def __init__(self, client: Any, hosts: Iterable[str]) -> None:
        """Take a client that may do everything, and the hosts' parts of the names."""
        self.client = client
        self.hosts = set(hosts)

    def are_ours(self, node: str) -> bool:
        """Whether a node is on one of the hosts."""
        return node.partition("@")[2] in self.hosts

    def known(self) -> list[str]:
        """Return every node of the hosts that Redis has something of."""
        bound = {member.rpartition(SEPARATOR)[2] for key in BINDINGS for member in self.client.smembers(key)}
        controlled = {queue.removesuffix(f".{PIDBOX}") for queue in bound if queue.endswith(f".{PIDBOX}")}
        held = {key.partition(":")[2] for key in self.client.scan_iter(f"{keys.UNACKED}:*", count=1000)}
        told = {name for key in (keys.NODES, keys.WANTED, keys.HISTORY) for name in self.client.hkeys(key)}
        named = {*leases(self.client), *told, *controlled, *held}
        return sorted(node for node in named if self.are_ours(node))

    def consumers(self) -> dict[str, set[str]]:
        """Return the nodes that live and consume it, for each queue."""
        facts = {node: json.loads(text) for node, text in self.client.hgetall(keys.NODES).items()}
        found: dict[str, set[str]] = {}
        for node in living(self.client):
            for queue in facts.get(node, {}).get("queues", ()):
                found.setdefault(queue, set()).add(node)
        return found

    def orphans(self) -> list[str]:
        """Return the queues that only nodes of these hosts consume now."""
        return sorted(queue for queue, nodes in self.consumers().items() if all(map(self.are_ours, nodes)))

    def forget(self, node: str) -> bool:
        """Forget a node; return whether it was dead and held nothing."""
        own = [
            keys.unacked(node),
            keys.unacked_index(node),
            keys.unacked_mutex(node),
            keys.self_test_queue(node),
        ]
        names = [keys.LEASES, keys.NODES, *own]
        forgotten = bool(self.client.eval(keys.FORGET_NODE, len(names), *names, node, "1"))
        if forgotten:
            queue = f"{node}.{PIDBOX}"
            with self.client.pipeline() as pipeline:
                pipeline.delete(queue)
                for key in BINDINGS:
                    pipeline.srem(key, SEPARATOR.join(["", "", queue]))
                pipeline.hdel(keys.WANTED, node)
                pipeline.hdel(keys.HISTORY, node)
                pipeline.execute()
        return forgotten

    def forget_all(self, wait: float, sleep: Callable[[float], None] = time.sleep) -> list[str]:
        """Forget all nodes of the hosts, each as soon as it holds nothing; return which Redis knew.

        Raises:
            NodesError: One of them lives, or nobody gives back what it holds.
        """
        nodes = left = self.known()
        began = leases(self.client)
        until = time.monotonic() + wait
        while left := [node for node in left if not self.forget(node)]:
            now = leases(self.client)
            if alive := [node for node in left if now.get(node, 0) > began.get(node, 0)]:
                raise NodesError(f"{', '.join(alive)} still runs: it has renewed its lease. Stop it first.")
            if time.monotonic() > until:
                raise NodesError(self.explain(left, wait))
            sleep(PAUSE)
        return nodes

    def drained(self) -> list[str]:
        """Return which of the hosts Redis knows as drained."""
        return sorted(self.hosts.intersection(self.client.hkeys(keys.DRAINED)))

    def forget_drained(self) -> bool:
        """Forget that hosts are drained; return whether any was."""
        hosts = self.drained()
        return bool(hosts and self.client.hdel(keys.DRAINED, *hosts))

    def explain(self, nodes: Iterable[str], wait: float) -> str:
        """Return why nodes cannot be forgotten."""
        held = {node: self.client.hlen(keys.unacked(node)) for node in nodes}
        told = ", ".join(f"{node} holds {number} messages" for node, number in held.items())
        others = [node for node in living(self.client) if not self.are_ours(node)]
        why = (
            f"none of the {len(others)} other nodes gave them back within {wait:g} s. Their journals say why"
            if others
            else "no other node lives that would give them back. Start one, on another host"
        )
        return f"{told}; {why}. Then run this again. Nothing was removed."


def want(client: Any, params: Mapping[str, Any], *, check: bool) -> dict[str, Any]:
    """Tell Redis which nodes, and which Beat, the inventory wants, and return the module's result."""
    before = client.hgetall(keys.WANTED)
    wanted = {keys.IDLE_QUEUES: json.dumps(sorted(params["idle_queues"]))}
    wanted |= {node: text for node, text in before.items() if node.partition("@")[2] in params["hosts"]}
    for node, queues in params["nodes"].items():
        known = json.loads(before.get(node, "{}"))
        since = known.get("since", round(time.time(), 1))
        wanted[node] = json.dumps({"queues": sorted(queues), "since": since})
    beat = json.loads(client.get(keys.WANTED_BEAT) or '{"scheduler": ""}')
    is_news_of_beat = beat["scheduler"] != params["beat"]
    if is_news_of_beat:
        beat = {"scheduler": params["beat"], "since": round(time.time(), 1)}
    surplus = before.keys() - wanted.keys()
    changed = bool(surplus) or wanted != before or is_news_of_beat
    if changed and not check:
        with client.pipeline() as pipeline:
            pipeline.hset(keys.WANTED, mapping=wanted)
            if params["beat"]:
                pipeline.set(keys.WANTED_BEAT, json.dumps(beat))
            else:
                pipeline.delete(keys.WANTED_BEAT)
            for name in surplus:
                pipeline.hdel(keys.WANTED, name)
                pipeline.hdel(keys.HISTORY, name)
            pipeline.execute()
    return {"changed": changed, "nodes": sorted(params["nodes"])}


def apply(nodes: Nodes, params: Mapping[str, Any], *, check: bool) -> dict[str, Any]:
    """Do what the state asks for, and return the module's result."""
    if params["state"] == "wanted":
        return want(nodes.client, params, check=check)
    if params["state"] == "redundant":
        if orphans := nodes.orphans():
            anyway = f", or say -e {params['override']}=true" if params["override"] else ""
            raise NodesError(
                f"nobody else consumes {', '.join(orphans)} now, whatever the inventory says. Have another "
                f"host do so first (site.yml, playbooks/health.yml){anyway}. Nothing was changed."
            )
        return {"changed": False, "nodes": nodes.known()}
    known = nodes.known() if check else nodes.forget_all(params["wait"])
    marked = bool(nodes.drained()) if check else nodes.forget_drained()
    return {"changed": bool(known) or marked, "nodes": known}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **login_arguments(),
            "state": {"type": "str", "choices": ["redundant", "absent", "wanted"], "required": True},
            "nodes": {"type": "dict", "default": {}},
            "idle_queues": {"type": "list", "elements": "str", "default": []},
            "beat": {"type": "str", "default": ""},
            "hosts": {"type": "list", "elements": "str", "required": True},
            "override": {"type": "str", "default": ""},
            "wait": {"type": "int", "default": 120},
        },
        supports_check_mode=True,
    )
    params = module.params
    if module.check_mode and params["state"] == "wanted" and not Path(params["ca_file"]).exists():
        module.exit_json(
            changed=True, nodes=sorted(params["nodes"])
        )  # a bare host, which gets all that first
    if redis is None:
        module.fail_json(msg=missing_required_lib("redis"))
    try:
        nodes = Nodes(verified_login(params), params["hosts"])
        result = apply(nodes, params, check=module.check_mode)
    except NodesError as error:
        module.fail_json(msg=str(error))
    except (StrangeServerError, redis.exceptions.RedisError, OSError) as error:
        module.fail_json(
            msg=f"Redis at {params['host']}:{params['port']} cannot be asked: {str(error) or 'no answer'}"
        )
    module.exit_json(**result)


if __name__ == "__main__":
    main()
