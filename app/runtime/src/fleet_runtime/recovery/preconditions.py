# SPDX-License-Identifier: MIT
"""Checks that a node makes before it connects: that its name is free, and that Redis lets it do its work."""

from __future__ import annotations

import json
import logging
import socket
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from kombu.utils.encoding import bytes_to_str
from redis.exceptions import NoPermissionError, ResponseError

from fleet_runtime.broker import functions, keys, scripts
from fleet_runtime.broker.errors import BROKER_ERRORS
from fleet_runtime.errors import FleetError
from fleet_runtime.recovery.connections import client as redis_client

if TYPE_CHECKING:
    from celery import Celery

logger = logging.getLogger(__name__)

# The scripts have flags, which came with Redis 7.0.
MINIMUM_REDIS = (7, 0)
# Seconds after which a name counts as taken: less than systemd grants for a start.
NAME_TIMEOUT_S = 45.0
# Seconds between two checks of a name.
POLL_INTERVAL_S = 1.0


def require_rights(app: Celery, node: str, timeout: float) -> None:
    """Make sure that Redis is new enough, and that its user may do what a node does.

    If Redis is away, nothing is refused: the node waits for Redis, and fails later.

    Args:
        app: The app.
        node: Name of the node.
        timeout: Seconds to wait for each reply of Redis.

    Raises:
        FleetError: Redis is too old, or its user lacks a right.
    """
    user = urlsplit(app.conf.broker_read_url or "").username or "default"
    try:
        with redis_client(app, timeout) as client:
            _require_version(client)
            for command in _probing_commands(node):
                _require_permission(client, user, command)
            needed = (scripts.RENEW_LEASE, scripts.FETCH_AND_ACK, scripts.REQUEUE_ONE, scripts.DEAD_LETTER)
            functions.require(client, needed)
    except NoPermissionError as error:
        raise FleetError(f"Redis does not let its user {user} connect as a node does: {error}.") from None
    except BROKER_ERRORS as error:
        logger.warning("Redis cannot be asked what this node may do: %s", error)


def require_name(app: Celery, node: str, timeout: float) -> None:
    """Make sure that no other host has a node of this name: each would requeue what the other runs.

    A host that was replaced may have left a lease, which ends; a host that is alive renews its lease. Two
    hosts of the same host name are not noticed.

    Args:
        app: The app.
        node: Name of the node.
        timeout: Seconds to wait for each reply of Redis.

    Raises:
        FleetError: Another host has a node of this name.
    """
    until, first = time.monotonic() + NAME_TIMEOUT_S, None
    try:
        with redis_client(app, timeout) as client:
            while holder := _other_host(client, node):
                host, ends = holder
                if first is None:
                    first = ends
                    logger.warning("There is a node %s on the host %s. Waiting for the end of its lease.",
                                   node, host)  # fmt: skip
                if ends > first or time.monotonic() > until:
                    raise FleetError(
                        f"the host {host} has a node {node}, too. Each of them would requeue what the other "
                        "runs. Rename one of them."
                    )
                time.sleep(POLL_INTERVAL_S)
    except BROKER_ERRORS as error:
        logger.warning("Redis cannot be asked which host has this node's name: %s", error)


def _other_host(client: Any, node: str) -> tuple[str, float] | None:
    """Return the other host that has a node of this name, and when its lease ends; None without one."""
    with client.pipeline(transaction=False) as pipeline:
        pipeline.hget(keys.NODES, node).zscore(keys.LEASES, node).time()
        facts, ends, (seconds, _) = pipeline.execute()
    host = json.loads(facts or "{}").get("host", "")
    if not host or host == socket.gethostname() or ends is None or ends <= seconds:
        return None
    return host, ends


def _require_permission(client: Any, user: str, command: tuple[Any, ...]) -> None:
    """Run a command to see whether it is permitted.

    Raises:
        FleetError: It is not permitted.
    """
    try:
        client.execute_command(*command)
    except NoPermissionError as error:
        text = " ".join(map(str, command)).strip()
        raise FleetError(
            f"Redis does not let its user {user} do what a node needs: {text} ({error})."
        ) from None
    except ResponseError:
        return  # another error means that the command is permitted


def _require_version(client: Any) -> None:
    """Refuse a Redis that is older than MINIMUM_REDIS.

    Raises:
        FleetError: Redis is too old.
    """
    reply = client.execute_command("HELLO")  # which needs no right, unlike INFO
    if not isinstance(reply, dict):
        reply = dict(zip(reply[::2], reply[1::2], strict=True))
    server = {bytes_to_str(name): bytes_to_str(value) for name, value in reply.items()}
    version = str(server["version"])
    if tuple(int(part) for part in version.split(".")[:2]) < MINIMUM_REDIS:
        needed = ".".join(map(str, MINIMUM_REDIS))
        raise FleetError(f"this Redis is {version}, and a node needs {needed} or newer.")


def _probing_commands(node: str) -> list[tuple[Any, ...]]:
    """Return commands that change nothing, one for each right that recovery uses.

    The rights on queues are left out: without them, a node could not even consume.
    """
    unacked, index, mutex = keys.unacked(node), keys.unacked_index(node), keys.unacked_mutex(node)
    return [
        ("TIME",),
        ("ZSCORE", keys.LEASES, node),
        ("ZRANGE", keys.LEASES, 0, 0),
        ("ZADD", keys.LEASES, "XX", 0, ""),
        ("ZREM", keys.LEASES, ""),
        ("HSET", keys.NODES, node, "{}"),
        ("HDEL", keys.NODES, node),
        ("HSCAN", unacked, 0, "COUNT", 1),
        ("HEXISTS", unacked, ""),
        ("HLEN", unacked),
        ("HDEL", unacked, ""),
        ("ZREM", index, ""),
        ("DEL", mutex),
    ]
