# SPDX-License-Identifier: MIT
"""The module redis_queues: which queues were given up, and what still uses them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import redis
from ansible_collections.fleet.celery.plugins.module_utils.fleet_keys import PRIORITIES
from ansible_collections.fleet.celery.plugins.modules import redis_queues
from ansible_collections.fleet.celery.plugins.modules.redis_queues import look, queues_of
from fleet_runtime.broker import keys

from tests.unit.redis_server import PASSWORDS, Server

if TYPE_CHECKING:
    from collections.abc import Sequence


def found(
    server: Server, *queues: str, password: str = PASSWORDS["admin"], exchanges: Sequence[str] = ()
) -> dict[str, Any]:
    """Return what the module finds when the inventory names some queues."""
    params = {
        "acl_file": str(server.directory / "users.acl"),
        "queues": list(queues),
        "exchanges": list(exchanges),
        "host": "127.0.0.1",
        "port": server.port,
        "ca_file": str(server.directory / "ca.crt"),
        "timeout": 5,
        "user": "admin",
        "password": password,
        "db": 0,
    }
    result = look(params)
    assert not result.pop("changed")
    return result


def add(client: redis.Redis, node: str, *queues: str, lease: float = 30, proved: bool = True) -> None:
    """Let there be a node."""
    now: Any = client.time()
    client.zadd(keys.LEASES, {node: now[0] + lease})
    client.hset(keys.NODES, node, json.dumps({"queues": queues, "proved": now[0] if proved else None}))


def test_without_a_password_the_file_says_which_were_given_up(server: Server) -> None:
    """Redis may not run; before the first run there is not even its client on the host."""
    assert found(server, "default", password="")["former"] == ["email"]
    assert found(server, "default", "email", "new", password="")["former"] == []


def test_before_there_is_a_file_none_was_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a bare host in check mode, which has no client of Redis yet."""
    monkeypatch.setattr(redis_queues, "redis", None)
    (server.directory / "users.acl").rename(server.directory / "elsewhere")
    try:
        assert found(server, "new")["former"] == []
    finally:
        (server.directory / "elsewhere").rename(server.directory / "users.acl")


def test_what_nobody_uses_is_not_used(server: Server, client: redis.Redis) -> None:
    """A node that consumes another queue does not, nor one whose lease has ended."""
    add(client, "one@w1", "default")
    add(client, "two@w1", "email", lease=-1)
    result = found(server, "default")
    assert (result["former"], result["consumers"], result["messages"], result["used"]) == (
        ["email"],
        {},
        {},
        [],
    )


@pytest.mark.parametrize("proved", [True, False])
def test_nodes_that_consume_it_are_named(server: Server, client: redis.Redis, proved: bool) -> None:
    """Or that may soon."""
    add(client, "one@w1", *(["default", "email"] if proved else []), proved=proved)
    result = found(server, "default")
    assert result["consumers"] == {"email": ["one@w1"]}
    assert result["used"] == ["email"]


@pytest.mark.parametrize("step", PRIORITIES)
def test_messages_that_wait_are_counted(server: Server, client: redis.Redis, step: str) -> None:
    client.rpush(f"email{step}", "a", "b")
    client.rpush("default", "c")
    result = found(server, "default")
    assert (result["messages"], result["used"]) == ({"email": 2}, ["email"])


@pytest.mark.parametrize("lease", [30, -1])
def test_messages_that_are_held_are_counted(server: Server, client: redis.Redis, lease: float) -> None:
    """The nodes that may consume them; a node that requeues them needs the right to do so."""
    add(client, "one@w1", "default", lease=lease)
    client.hset(keys.unacked("one@w1"), "a", '[{"body": ""}, "", "email"]')
    client.hset(keys.unacked("one@w1"), "b", '[{"body": ""}, "", "default"]')
    client.hset(keys.unacked("one@w1"), "c", "no message")
    result = found(server, "default")
    assert (result["messages"], result["used"]) == ({"email": 1}, ["email"])


def test_who_uses_a_queue_keeps_the_right(server: Server) -> None:
    """Until nobody does; what the role renders then has the others only."""
    rendered = server.role(redis_queues=["default"], __redis_queues={"former": ["email"]}).template(
        "users.acl.j2"
    )
    assert sorted(rendered.splitlines()) == sorted((server.directory / "users.acl").read_text().splitlines())
    assert " ~email " not in server.role(redis_queues=["default"]).template("users.acl.j2")


OLD = "user web on #digest ~default ~default??[369] ~_kombu.binding.* resetchannels -@all +sadd\n"


def test_a_file_from_before_selectors_has_all_exchanges(server: Server) -> None:
    """They stay anybody's until the inventory names those that the app has besides its queues."""
    file = server.directory / "users.acl"
    now = file.read_text()
    client = server.client("admin")
    client.sadd("_kombu.binding.shop", "orders\x06\x16\x06\x16default")
    client.sadd("_kombu.binding.gone", "x\x06\x16\x06\x16a queue that is no more")
    client.sadd("_kombu.binding.default", "default\x06\x16\x06\x16default")
    assert not found(server, "default", "email")["any_exchange"]
    try:
        file.write_text(OLD)
        assert found(server, "default", "email", password="")["any_exchange"]
        result = found(server, "default", "email")
        assert (result["former"], result["exchanges"]) == ([], ["shop"])
        assert found(server, "default", "email", exchanges=["shop"])["exchanges"] == []
        wide = server.role(__redis_queues={"any_exchange": True}).template("users.acl.j2")
        file.write_text(wide)
        assert found(server, "default", "email", password="")["any_exchange"]
    finally:
        file.write_text(now)
        client.delete("_kombu.binding.shop", "_kombu.binding.gone", "_kombu.binding.default")


@pytest.mark.parametrize("steps", ["??[369]", "??[1-9]"])
def test_queues_of_each_release_of_the_role_are_known(steps: str) -> None:
    control = f"~*@*.celery.pidbox ~*@*.celery.pidbox{steps}"
    rules = f"(%W~a %W~a{steps} +lpush) (~b ~b{steps} {control} +llen) ~c{steps}"
    assert queues_of(f"user web on {rules}\n") == {"a", "b", "c"}


@pytest.mark.parametrize(("rule", "may"), [("+script|load ", True), ("+script|exists ", False), ("", False)])
def test_who_could_load_scripts_is_told(server: Server, rule: str, may: bool) -> None:
    """Of the file that is there, whichever user it is; nothing is asked of Redis."""
    file = server.directory / "users.acl"
    now = file.read_text()
    try:
        file.write_text(f"user beat on #digest -@all +ping {rule}(~redbeat:* +get)\n")
        assert found(server, "default", password="")["any_script"] is may
    finally:
        file.write_text(now)
