# SPDX-License-Identifier: MIT
"""What a node makes sure of before it connects: a name of its own, and a Redis that lets it do its work."""

from __future__ import annotations

import json
import logging
import socket
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from kombu.exceptions import OperationalError
from kombu.utils.encoding import bytes_to_str
from redis.exceptions import NoPermissionError, RedisError, ResponseError

from fleet_runtime.broker import functions, keys, scripts
from fleet_runtime.errors import FleetError
from fleet_runtime.recovery.connections import client as redis_client
from fleet_runtime.settings import FleetSettings

if TYPE_CHECKING:
    from celery import Celery

logger = logging.getLogger(__name__)

REDIS_NEEDED = (7, 0)  # flags of scripts
NAME_WAITS = 45.0  # seconds until a name counts as taken: less than systemd grants a start
SHORT = 1.0  # seconds until the next look


def require_rights(app: Celery, node: str) -> None:
    """Make sure that Redis is new enough and lets this user do what a node does.

    If it is away, the node waits for it, and finds out later.

    Raises:
        FleetError: It is not so.
    """
    user = urlsplit(app.conf.broker_read_url or "").username or "default"
    try:
        with redis_client(app, FleetSettings.from_environment().socket_timeout) as client:
            _require_version(client)
            for command in _harmless(node):
                _try(client, user, command)
            needed = (scripts.RENEW_LEASE, scripts.FETCH_AND_ACK, scripts.REQUEUE_ONE, scripts.DEAD_LETTER)
            functions.require(client, needed)
    except NoPermissionError as error:
        raise FleetError(f"Redis does not let its user {user} connect as a node does: {error}.") from None
    except (OperationalError, OSError, RedisError) as error:
        logger.warning("Redis cannot be asked what this node may do: %s", error)


def require_name(app: Celery, node: str) -> None:
    """Make sure that no other host has a node of this name: each would give away what the other runs.

    A host that was replaced has left a lease behind, which ends; one that lives renews it. Not noticed is a
    host of the same name.

    Raises:
        FleetError: There is one.
    """
    until, first = time.monotonic() + NAME_WAITS, None
    try:
        with redis_client(app, FleetSettings.from_environment().socket_timeout) as client:
            while other := _elsewhere(client, node):
                host, ends = other
                if first is None:
                    first = ends
                    logger.warning("There is a node %s on the host %s. Waiting for the end of its lease.",
                                   node, host)  # fmt: skip
                if ends > first or time.monotonic() > until:
                    raise FleetError(
                        f"the host {host} has a node {node}, too. Of two that have one name, each would give "
                        "away what the other runs. Rename one of them."
                    )
                time.sleep(SHORT)
    except (OperationalError, OSError, RedisError) as error:
        logger.warning("Redis cannot be asked who has this node's name: %s", error)


def _elsewhere(client: Any, node: str) -> tuple[str, float] | None:
    """Return the other host that has a node of this name, and when its lease ends; None if there is none."""
    with client.pipeline(transaction=False) as pipeline:
        pipeline.hget(keys.NODES, node).zscore(keys.LEASES, node).time()
        facts, ends, (seconds, _) = pipeline.execute()
    host = json.loads(facts or "{}").get("host", "")
    if not host or host == socket.gethostname() or ends is None or ends <= seconds:
        return None
    return host, ends


def _try(client: Any, user: str, command: tuple[Any, ...]) -> None:
    """Run a command only to see whether it is permitted.

    Raises:
        FleetError: It is not.
    """
    try:
        client.execute_command(*command)
    except NoPermissionError as error:
        words = " ".join(map(str, command)).strip()
        raise FleetError(
            f"Redis does not let its user {user} do what a node needs: {words} ({error})."
        ) from None
    except ResponseError:
        return  # there is no such script, which is all that was to be known


def _require_version(client: Any) -> None:
    """Refuse a Redis that lacks what the scripts need.

    Raises:
        FleetError: It is too old.
    """
    said = client.execute_command("HELLO")  # which needs no right, unlike INFO
    if not isinstance(said, dict):
        said = dict(zip(said[::2], said[1::2], strict=True))
    about = {bytes_to_str(name): bytes_to_str(value) for name, value in said.items()}
    version = str(about["version"])
    if tuple(int(part) for part in version.split(".")[:2]) < REDIS_NEEDED:
        needed = ".".join(map(str, REDIS_NEEDED))
        raise FleetError(f"this Redis is {version}, and a node needs {needed} or newer.")


def _harmless(node: str) -> list[tuple[Any, ...]]:
    """Return commands that change nothing, one for each right that is used here.

    The queues are left out: without them, a node could not even consume.
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
