# SPDX-License-Identifier: MIT
"""Each user of Redis may do what its component needs, and nothing else.

Redis itself says what it would let a user do (ACL DRYRUN), so nothing here can hurt the fleet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import redis

if TYPE_CHECKING:
    from tests.fleet.support.fleet import Fleet

pytestmark = pytest.mark.group("redis")

COMPONENTS = ["worker", "beat", "flower", "web", "ops", "health"]

# {queue} is a queue of the fleet, {db} its database.
MAY = {
    "worker": [
        "BRPOP {queue} 1",
        "LPUSH {queue} x",
        "HSET unacked:x y z",
        "ZADD unacked_index:x 1 y",
        "ZADD fleet:leases 1 x",
        "HSET fleet:nodes x y",
        "HSET fleet:dead:letters x y",
        "INCR fleet:losses:x",
        "SETEX celery-task-meta-x 1 y",
        "PUBLISH celery-task-meta-x y",
        "PUBLISH /{db}.celeryev/worker.heartbeat x",
        "PSUBSCRIBE /{db}.celery.pidbox",
        "SADD _kombu.binding.celery.pidbox x",
    ],
    "beat": [
        "LPUSH {queue} x",
        "SMEMBERS _kombu.binding.{queue}",
        "HGET redbeat:x definition",
        "ZRANGEBYSCORE redbeat::schedule 0 1",
        "SET redbeat::lock x",
    ],
    "flower": [
        "LLEN {queue}",
        "PSUBSCRIBE /{db}.celeryev/*",
        "PUBLISH /{db}.celery.pidbox x",
        "BRPOP {uuid}.reply.celery.pidbox 1",
        "GET celery-task-meta-x",
        "HGETALL fleet:nodes",
        "ZRANGE fleet:leases 0 -1",
    ],
    "web": [
        "LPUSH {queue} x",
        "SADD _kombu.binding.{queue} x",
        "GET celery-task-meta-x",
        "SUBSCRIBE celery-task-meta-x",
        "DEL celery-task-meta-x",
    ],
    "ops": [
        "LLEN {queue}",
        "DEL {queue}",
        "HLEN unacked:x",
        "ZRANGE fleet:leases 0 -1",
        "HGETALL fleet:nodes",
        "HDEL fleet:dead:letters x",
        "PUBLISH /{db}.celery.pidbox x",
        "BRPOP {uuid}.reply.celery.pidbox 1",
        "GET celery-task-meta-x",
    ],
    "health": ["PING", "ROLE"],
}

MUST_NOT = {
    "worker": ["SET redbeat::lock x", "GET redbeat::schedule", "LPUSH other x", "SUBSCRIBE other"],
    "beat": [
        "BRPOP {queue} 1",
        "LRANGE {queue} 0 -1",
        "HGET unacked:x y",
        "HGET fleet:dead:letters x",
        "GET celery-task-meta-x",
        "PUBLISH /{db}.celery.pidbox x",
        "LPUSH other x",
    ],
    "flower": [
        "BRPOP {queue} 1",
        "LRANGE {queue} 0 -1",
        "SET celery-task-meta-x y",
        "HGET unacked:x y",
        "HGET fleet:dead:letters x",
        "HGETALL fleet:dead:letters",
        "ZADD fleet:leases 0 x",
        "ZRANGE unacked_index:x 0 -1",
        "GET redbeat::lock",
    ],
    "web": [
        "BRPOP {queue} 1",
        "RPOP {queue}",
        "LRANGE {queue} 0 -1",
        "HGET unacked:x y",
        "HGET fleet:dead:letters x",
        "SET redbeat::lock x",
        "PUBLISH /{db}.celery.pidbox x",
        "PSUBSCRIBE /{db}.celeryev/*",
        "LPUSH other x",
        "SET other x",
    ],
    "ops": [
        "SET celery-task-meta-x y",
        "HDEL unacked:x y",
        "ZREM unacked_index:x y",
        "ZADD fleet:leases 1 x",
        "SET redbeat::lock x",
        "LPUSH other x",
    ],
    "health": ["LLEN {queue}", "GET celery-task-meta-x", "PUBLISH other x", "SUBSCRIBE other", "INFO"],
}

# Commands that take the server over, show all of it, or delete it: only admin has them.
ADMINS = [
    "ACL LIST",
    "ACL SETUSER web on",
    "BGSAVE",
    "CLIENT KILL 127.0.0.1:1",
    "CLIENT LIST",
    "CONFIG GET *",
    "CONFIG SET maxmemory 1",
    "DEBUG OBJECT x",
    "EVAL return 0",
    "FLUSHALL",
    "FLUSHDB",
    "FUNCTION LIST",
    "KEYS *",
    "MIGRATE 127.0.0.1 1 x 0 1",
    "MODULE LIST",
    "MONITOR",
    "RANDOMKEY",
    "REPLICAOF NO ONE",
    "SCAN 0",
    "SCRIPT FLUSH",
    "SHUTDOWN NOSAVE",
    "SUBSCRIBE *",
    "SWAPDB 0 1",
]


def answers(fleet: Fleet, user: str, commands: list[str]) -> dict[str, bool]:
    """Return whether Redis would let a user run each command."""
    names = {
        "queue": fleet.queues[0],
        "db": fleet.group("redis")[0].variables["fleet_redis_db"],
        "uuid": "3bb2a0d6-3a9c-3d0c-a3cc-3f8e8b1f9b4e",
    }
    with fleet.broker.connect("admin") as client:
        return {c: client.acl_dryrun(user, *c.format(**names).split()) == "OK" for c in commands}


@pytest.mark.parametrize("user", COMPONENTS)
def test_user_may(fleet: Fleet, user: str) -> None:
    """A user may do what its component lives by."""
    assert [command for command, may in answers(fleet, user, MAY[user]).items() if not may] == []


@pytest.mark.parametrize("user", COMPONENTS)
def test_user_must_not(fleet: Fleet, user: str) -> None:
    """A user cannot read, write or hear what is another's."""
    assert [command for command, may in answers(fleet, user, MUST_NOT[user]).items() if may] == []


@pytest.mark.parametrize("user", COMPONENTS)
def test_only_admin_may(fleet: Fleet, user: str) -> None:
    """Nobody but the administrator runs the server."""
    assert [command for command, may in answers(fleet, user, ADMINS).items() if may] == []


def test_admin_may(fleet: Fleet) -> None:
    """The administrator may do all of it, so the answers above are not simply always no."""
    assert [command for command, may in answers(fleet, "admin", ADMINS).items() if not may] == []


def test_denial_is_enforced(fleet: Fleet) -> None:
    """What Redis says it would deny, it does deny: an application cannot read the tasks of others."""
    with (
        fleet.broker.expected_denials(),
        fleet.broker.connect("web") as client,
        pytest.raises(redis.exceptions.NoPermissionError),
    ):
        client.lrange(fleet.queues[0], 0, -1)


@pytest.mark.afterwards
def test_nothing_was_denied(fleet: Fleet) -> None:
    """In all that the fleet did since the suite began, faults included, no component was denied anything."""
    denials = [
        f"{entry['username']}: {entry['reason']} {entry['object']} ({entry['client-info']})"
        for entry in fleet.broker.denials()
    ]
    assert denials == []
