# SPDX-License-Identifier: MIT
"""The module fleet_nodes: whether the fleet can do without some nodes, and how Redis forgets them."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
import redis
from ansible_collections.fleet.celery.plugins.module_utils.fleet_keys import BINDINGS, SEPARATOR
from ansible_collections.fleet.celery.plugins.modules.fleet_nodes import Nodes, NodesError, apply
from fleet_runtime.broker import keys

LEASE = 30.0
ABSENT = {"state": "absent", "wait": 0}
REDUNDANT = {"state": "redundant", "override": "fleet_drain_anyway"}


def add(
    client: redis.Redis, node: str, lease: float = LEASE, held: int = 0, queues: tuple[str, ...] = ("q",)
) -> None:
    """Let there be a node, as the runtime and kombu write it down."""
    now: Any = client.time()
    client.zadd(keys.LEASES, {node: now[0] + lease})
    client.hset(keys.NODES, node, json.dumps({"queues": queues}))
    for number in range(held):
        client.hset(keys.unacked(node), str(number), "[]")
        client.zadd(keys.unacked_index(node), {str(number): 1})
    for key in BINDINGS:
        client.sadd(key, SEPARATOR.join(["", "", f"{node}.celery.pidbox"]))


def traces(client: redis.Redis, host: str) -> list[str]:
    """Return every key in whose name or members a host is."""
    found = []
    for key in client.scan_iter():
        content = {
            "zset": lambda key: client.zrange(key, 0, -1),
            "hash": client.hgetall,
            "set": client.smembers,
            "string": client.get,
            "list": lambda key: client.lrange(key, 0, -1),
        }[str(client.type(key))](key)
        if f"@{host}" in f"{key} {content}":
            found.append(key)
    return sorted(found)


def test_nodes_that_have_ended_are_forgotten(client: redis.Redis) -> None:
    """And those of other hosts are not."""
    for node in ("a-1@w2", "b-1@w2"):
        add(client, node, lease=-1)
    add(client, "a-1@w1")
    client.rpush("a-1@w2.celery.pidbox", "asked for something")
    client.rpush(keys.self_test_queue("a-1@w2"), "not run")
    client.set(keys.unacked_mutex("a-1@w2"), "1")
    others = traces(client, "w1")
    assert apply(Nodes(client, ["w2"]), ABSENT, check=False) == {
        "changed": True,
        "nodes": ["a-1@w2", "b-1@w2"],
    }
    assert traces(client, "w2") == []
    assert traces(client, "w1") == others
    assert not apply(Nodes(client, ["w2"]), ABSENT, check=False)["changed"]


def test_a_host_is_not_one_whose_name_it_ends_with(client: redis.Redis) -> None:
    add(client, "a-1@new-w2", lease=-1)
    assert Nodes(client, ["w2"]).known() == []


def test_check_mode_forgets_nothing(client: redis.Redis) -> None:
    add(client, "a-1@w2", lease=-1)
    before = traces(client, "w2")
    assert apply(Nodes(client, ["w2"]), ABSENT, check=True)["changed"]
    assert traces(client, "w2") == before


def test_what_a_node_holds_is_waited_for(client: redis.Redis) -> None:
    """Others give it back, message by message."""
    add(client, "a-1@w2", lease=-1, held=3)

    def give_one_back(_: float) -> None:
        """Do what another node does meanwhile."""
        client.hdel(keys.unacked("a-1@w2"), *client.hkeys(keys.unacked("a-1@w2"))[:1])

    assert Nodes(client, ["w2"]).forget_all(60, give_one_back) == ["a-1@w2"]
    assert traces(client, "w2") == []


def test_a_lease_is_waited_for(client: redis.Redis) -> None:
    """A node that was killed leaves one behind, which ends."""
    add(client, "a-1@w2")
    assert Nodes(client, ["w2"]).forget_all(60, lambda _: client.zadd(keys.LEASES, {"a-1@w2": 1})) == [
        "a-1@w2"
    ]


def test_what_nobody_gives_back_is_not_removed(client: redis.Redis) -> None:
    add(client, "a-1@w2", lease=-1, held=2)
    with pytest.raises(NodesError, match="a-1@w2 holds 2 messages; no other node lives"):
        Nodes(client, ["w2"]).forget_all(0, lambda _: None)
    add(client, "a-1@w1")
    with pytest.raises(NodesError, match="none of the 1 other nodes gave them back within 0 s"):
        Nodes(client, ["w2"]).forget_all(0, lambda _: None)
    assert client.hlen(keys.unacked("a-1@w2")) == 2


def test_a_node_that_lives_is_not_forgotten(client: redis.Redis) -> None:
    """Although the operator says that its host is gone."""
    add(client, "a-1@w2")
    with pytest.raises(NodesError, match="a-1@w2 still runs"):
        Nodes(client, ["w2"]).forget_all(60, lambda _: client.zincrby(keys.LEASES, 10, "a-1@w2"))
    assert client.zscore(keys.LEASES, "a-1@w2")


def test_a_queue_needs_another_consumer_that_lives(client: redis.Redis) -> None:
    add(client, "a-1@w1", queues=("a",))
    add(client, "b-1@w1", lease=-1, queues=("b",))
    add(client, "a-1@w2", queues=("a", "b", "c"))
    with pytest.raises(NodesError, match=r"nobody else consumes b, c now.*or say -e fleet_drain_anyway=true"):
        apply(Nodes(client, ["w2"]), REDUNDANT, check=False)
    assert not apply(Nodes(client, ["w1"]), REDUNDANT, check=False)["changed"]


def test_a_host_that_is_forgotten_is_not_drained_any_more(client: redis.Redis) -> None:
    """Or one of its name that comes later would be shown as such. Check mode tells, and removes nothing."""
    client.hset(keys.DRAINED, mapping={"w1": "{}", "w2": "{}"})
    for check, changed, left in ((True, True, ["w1", "w2"]), (False, True, ["w1"]), (False, False, ["w1"])):
        assert apply(Nodes(client, ["w2"]), ABSENT, check=check)["changed"] is changed
        assert sorted(client.hkeys(keys.DRAINED)) == left


def want(
    client: redis.Redis, nodes: dict[str, list[str]], *unknown: str, beat: str = "", check: bool = False
) -> bool:
    """Say which nodes are wanted, and which Beat; return whether that was news."""
    params = {"state": "wanted", "nodes": nodes, "hosts": unknown, "idle_queues": ["rare"], "beat": beat}
    return bool(apply(Nodes(client, unknown), params, check=check)["changed"])


def test_what_is_wanted_is_told_once(client: redis.Redis) -> None:
    """Since when stays; what is not wanted any more goes, but not of hosts of which a run knows nothing."""
    assert want(client, {"a-1@w1": ["a"], "a-2@w1": ["a"], "b-1@w2": ["b"]}, check=True)
    assert not client.exists(keys.WANTED)
    assert want(client, {"a-1@w1": ["a"], "a-2@w1": ["a"], "b-1@w2": ["b"]})
    first = client.hget(keys.WANTED, "a-1@w1")
    assert not want(client, {"a-1@w1": ["a"], "a-2@w1": ["a"]}, "w2")
    client.hset(keys.HISTORY, "a-2@w1", "{}")
    assert want(client, {"a-1@w1": ["a"]}, "w2")
    assert set(client.hkeys(keys.WANTED)) == {"a-1@w1", "b-1@w2", keys.IDLE_QUEUES}
    assert client.hget(keys.WANTED, "a-1@w1") == first
    assert not client.exists(keys.HISTORY)
    assert json.loads(str(client.hget(keys.WANTED, keys.IDLE_QUEUES))) == ["rare"]


def test_a_beat_that_is_wanted_is_told_once(client: redis.Redis) -> None:
    """With since when; another scheduler is news, and so is none."""
    assert want(client, {}, beat="redbeat")
    first = json.loads(str(client.get(keys.WANTED_BEAT)))
    assert first == {"scheduler": "redbeat", "since": pytest.approx(time.time(), abs=600)}
    assert not want(client, {}, beat="redbeat")
    assert want(client, {}, beat="persistent")
    assert json.loads(str(client.get(keys.WANTED_BEAT)))["scheduler"] == "persistent"
    assert want(client, {})
    assert not client.exists(keys.WANTED_BEAT)
    assert not want(client, {})


def test_the_field_in_which_older_releases_recorded_a_beat_goes(client: redis.Redis) -> None:
    """`fleet status` would take it for a node."""
    client.hset(keys.WANTED, "beat", json.dumps({"scheduler": "redbeat", "since": 1}))
    assert want(client, {}, beat="redbeat")
    assert set(client.hkeys(keys.WANTED)) == {keys.IDLE_QUEUES}


def test_a_host_that_is_forgotten_is_not_wanted_any_more(client: redis.Redis) -> None:
    """What there was of its nodes goes as well."""
    want(client, {"a-1@w1": ["a"], "a-1@w2": ["a"]})
    client.hset(keys.HISTORY, mapping={"a-1@w2": "{}"})
    assert apply(Nodes(client, ["w2"]), ABSENT, check=False)["changed"]
    assert traces(client, "w2") == []
    assert client.hexists(keys.WANTED, "a-1@w1")
