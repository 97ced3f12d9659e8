# SPDX-License-Identifier: MIT
"""The role redis: a real redis-server with the rendered users.acl, and the rights of each user on it."""

from __future__ import annotations

import contextlib
import re
import socket
from typing import TYPE_CHECKING

import pytest
import redis

from tests.unit.redis_server import PASSWORDS, USERS, Server, running

if TYPE_CHECKING:
    from pathlib import Path

# As kombu makes the name of a reply queue.
UUID = "3bb2a0d6-3a9c-3d0c-a3cc-3f8e8b1f9b4e"

PERMITTED = {
    "worker": """
        BRPOP default 1
        BRPOP default\x06\x163 default\x06\x169 1
        CLIENT TRACKING OFF
        CLIENT CACHING YES
        EXISTS default default\x06\x163
        LINDEX default -1
        RPOP default
        LPUSH email message
        RPUSH default message
        HSET unacked:default-1@worker1 tag message
        ZADD unacked_index:default-1@worker1 1 tag
        SET unacked_mutex:default-1@worker1 1
        HSCAN unacked:default-1@worker1 0
        HEXISTS unacked:default-1@worker1 tag
        HLEN unacked:default-1@worker1
        ZADD fleet:leases 1 default-1@worker1
        ZSCORE fleet:leases default-1@worker1
        HSET fleet:nodes default-1@worker1 facts
        HSET fleet:dead:letters id letter
        ZCARD fleet:dead
        INCR fleet:losses:tag
        SET fleet:once:key 1
        SETEX celery-task-meta-1 60 result
        PUBLISH celery-task-meta-1 result
        ZADD celery-taskset-meta-1.j 1 part
        SADD _kombu.binding.celery.pidbox x
        LPUSH {UUID}.reply.celery.pidbox answer
        PUBLISH /0.celeryev/task.succeeded event
        PSUBSCRIBE /0.celeryev/worker.*
        PSUBSCRIBE /0.celery.pidbox
        FCALL fleet_0 2 default unacked:default-1@worker1
        INCRBY celery-taskset-meta-1.t 1
        RPUSH celery-taskset-meta-1.j part
        LRANGE celery-taskset-meta-1.j 0 -1
        SMEMBERS _kombu.binding.an-exchange-that-is-gone
        CLIENT SETNAME node
    """,
    "beat": """
        LPUSH default message
        SMEMBERS _kombu.binding.default
        HSET redbeat:task definition x
        SET redbeat::lock 1
        ZADD redbeat::schedule 1 redbeat:task
        PUBLISH /0.celeryev/task.sent event
        SUBSCRIBE celery-task-meta-1
    """,
    "flower": """
        LPUSH default message
        LLEN default
        GET celery-task-meta-1
        PSUBSCRIBE /0.celeryev/*
        PUBLISH /0.celery.pidbox request
        BRPOP {UUID}.reply.celery.pidbox 1
        HGETALL fleet:nodes
        ZRANGE fleet:leases 0 -1
    """,
    "web": """
        LPUSH default message
        LPUSH default\x06\x163 message
        GET celery-task-meta-1
        DEL celery-task-meta-1
        SUBSCRIBE celery-task-meta-1
        SET celery-taskset-meta-1 group
        SMEMBERS _kombu.binding.default
    """,
    "ops": """
        LPUSH default message
        DEL default
        LLEN default\x06\x166
        HLEN unacked:default-1@worker1
        ZRANGE fleet:leases 0 -1 WITHSCORES
        HGETALL fleet:nodes
        LINDEX default -1
        HDEL fleet:dead:letters id
        ZREM fleet:dead id
        HSET fleet:drained worker1 reason
        HDEL fleet:drained worker1
        DEL fleet:losses:tag
        INFO
        GET celery-task-meta-1
        SUBSCRIBE celery-task-meta-1
        PUBLISH /0.celery.pidbox request
        BRPOP {UUID}.reply.celery.pidbox 1
    """,
    "health": """
        PING
        ROLE
    """,
    "admin": """
        CONFIG GET maxmemory
        ACL LIST
        INFO
        FLUSHALL
    """,
}

REFUSED = {
    "worker": """
        BRPOP other 1
        LPUSH other message
        HSET unacked tag message
        GET redbeat:task
        PSUBSCRIBE *
        PSUBSCRIBE /1.celeryev/worker.*
        SUBSCRIBE other
    """,
    "beat": """
        BRPOP default 1
        LRANGE default 0 -1
        LPUSH other message
        HGET unacked:default-1@worker1 tag
        HGET fleet:dead:letters id
        SETEX celery-task-meta-1 60 forged
        GET celery-task-meta-1
        PUBLISH /0.celery.pidbox request
    """,
    "flower": """
        BRPOP default 1
        LRANGE default 0 -1
        HGET unacked:default-1@worker1 tag
        HGET fleet:dead:letters id
        HGETALL fleet:dead:letters
        ZRANGE unacked_index:default-1@worker1 0 -1
        ZADD fleet:leases 0 default-1@worker1
        SETEX celery-task-meta-1 60 forged
        GET redbeat:task
    """,
    "web": """
        BRPOP default 1
        LRANGE default 0 -1
        LPUSH other message
        HGET unacked:default-1@worker1 tag
        HGET fleet:dead:letters id
        PUBLISH /0.celery.pidbox shutdown
        PSUBSCRIBE /0.celeryev/*
        LPUSH fleet:proof:default-1@worker1 message
        GET redbeat:task
    """,
    "ops": """
        LPUSH fleet:proof:default-1@worker1 message
        HDEL unacked:default-1@worker1 tag
        DEL unacked:default-1@worker1
        HSET unacked:default-1@worker1 tag message
        ZADD fleet:leases 1 default-1@worker1
        HSET fleet:nodes default-1@worker1 facts
        SETEX celery-task-meta-1 60 forged
        SET redbeat::lock 1
        LPUSH other message
    """,
    "health": """
        INFO
        GET celery-task-meta-1
        LPUSH default message
        SUBSCRIBE celery-task-meta-1
    """,
}

# What nobody but the administrator needs, and what would read, change or stop everything.
ADMINISTRATION = """
    ACL LIST
    ACL SETUSER web +@all
    BGREWRITEAOF
    CLIENT KILL TYPE normal
    CONFIG GET maxmemory
    CONFIG SET maxmemory 0
    DEBUG SLEEP 1
    EVAL return 0
    FLUSHALL
    FLUSHDB
    FUNCTION LIST
    KEYS *
    MONITOR
    REPLICAOF 192.0.2.1 6379
    SCAN 0
    SHUTDOWN
    SYNC
"""


def rows(table: dict[str, str]) -> list[tuple[str, str]]:
    """Return each user with each of its commands."""
    return [(user, line.strip()) for user, lines in table.items() for line in lines.strip().splitlines()]


def dry_run(admin: redis.Redis, user: str, command: str) -> str:
    """Return Redis's own verdict on a command of a user, which is not run."""
    return str(admin.execute_command("ACL DRYRUN", user, *command.replace("{UUID}", UUID).split(" ")))


@pytest.fixture(scope="module")
def admin(server: Server) -> redis.Redis:
    """A client that may do everything."""
    return server.client("admin")


@pytest.mark.parametrize("user", USERS)
def test_user_logs_in_with_a_hostile_password(server: Server, user: str) -> None:
    assert server.client(user).ping()
    with pytest.raises(redis.exceptions.AuthenticationError):
        server.client(user, "wrong").ping()


@pytest.mark.parametrize(("user", "command"), rows(PERMITTED))
def test_user_may(admin: redis.Redis, user: str, command: str) -> None:
    assert dry_run(admin, user, command) == "OK"


@pytest.mark.parametrize(("user", "command"), rows(REFUSED))
def test_user_may_not(admin: redis.Redis, user: str, command: str) -> None:
    assert "no permissions" in dry_run(admin, user, command)


@pytest.mark.parametrize("user", [user for user in USERS if user != "admin"])
@pytest.mark.parametrize(("_", "command"), rows({"nobody": ADMINISTRATION}))
def test_nobody_else_may_administrate(admin: redis.Redis, user: str, _: str, command: str) -> None:
    assert "no permissions" in dry_run(admin, user, command)


def test_nobody_gets_in_without_a_password(server: Server) -> None:
    anonymous = server.client("default", "")
    with pytest.raises(redis.exceptions.RedisError, match=r"WRONGPASS|invalid username"):
        anonymous.ping()
    with pytest.raises(redis.exceptions.AuthenticationError):
        server.client("", "").ping()


def test_plaintext_is_refused(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), 5) as plain:
        plain.sendall(b"PING\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert b"PONG" not in plain.recv(100)


def test_nobody_is_in_the_file_in_clear(server: Server) -> None:
    text = (server.directory / "users.acl").read_text()
    assert not any(password in text for password in PASSWORDS.values())
    assert len(re.findall(r" #[0-9a-f]{64} ", text)) == len(USERS) + 1
    assert {line.split()[1] for line in text.splitlines()} == {*USERS, "default", "functions"}


def test_two_passwords_are_taken_while_one_is_replaced(tmp_path: Path) -> None:
    previous = {user: f"the one of {user} before" for user in USERS}
    with running(tmp_path, redis_previous_passwords=previous) as server:
        for user, password in PASSWORDS.items():
            assert server.client(user, previous[user]).ping()
            assert server.client(user, password).ping()
            with pytest.raises(redis.exceptions.AuthenticationError):
                server.client(user, "wrong").ping()
        assert "web" in server.client("admin").acl_users()


def test_a_transaction_survives_a_restart(server: Server) -> None:
    # Redis loads the append-only file as `default`, and would silently drop what that user may not do
    writer = server.client("worker").pipeline(transaction=True)
    writer.hset("unacked:one", "tag", "message").zadd("unacked_index:one", {"tag": 1}).execute()
    server.stop()
    server.start()
    reader = server.client("worker")
    assert reader.hget("unacked:one", "tag") == "message"
    assert reader.zrange("unacked_index:one", 0, -1) == ["tag"]
    assert "AOF-loading-client" not in server.log()


def test_another_database_has_channels_of_its_own(server: Server) -> None:
    text = server.role(redis_db=3).template("users.acl.j2")
    assert "&/3.celeryev/*" in text
    assert "&/0." not in text


def test_client_setinfo_is_named_only_where_redis_knows_it(server: Server) -> None:
    for known in (False, True):
        text = server.role(__redis_has_client_setinfo=known).template("users.acl.j2")
        assert ("+client|setinfo" in text) is known


def test_every_user_is_documented_and_has_a_password(server: Server) -> None:
    spec = server.role().read("meta/argument_specs.yml")["argument_specs"]["main"]["options"][
        "redis_passwords"
    ]
    assert set(server.role().evaluate("__redis_users")) == set(spec["options"]) == set(USERS)
