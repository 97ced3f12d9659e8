# SPDX-License-Identifier: MIT
"""When each node last started and stopped, and how often it crashed: this outlives the lease of the node."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from fleet_runtime.broker import keys

if TYPE_CHECKING:
    from collections.abc import Mapping

logger = logging.getLogger(__name__)

# Crashes that are kept for each node.
CRASHES_KEPT = 10
# A node that starts again sooner than this was not stopped by a release.
SHORTEST_RUN_S = 60.0


@dataclass(frozen=True)
class History:
    """The history of a node. All times are in seconds since 1970. Redis has these fields as JSON.

    Attributes:
        started: When the node last started; 0 if it never did.
        left: When the node last gave up its lease, as it was stopped; 0 if it never did.
        falls: Starts after a crash, or within SHORTEST_RUN_S of the start before; the newest last.
    """

    started: float = 0.0
    left: float = 0.0
    falls: tuple[float, ...] = ()

    @property
    def seen(self) -> float:
        """When the node was last known to start or to stop; 0 if never."""
        return max(self.started, self.left)


def record_start(client: Any, node: str) -> None:
    """Record that a node has started."""
    now, before = round(time.time(), 1), _read(client, node)
    crashed, soon = before.left < before.started, now - before.started < SHORTEST_RUN_S
    falls = (*before.falls, now)[-CRASHES_KEPT:] if before.started and (crashed or soon) else before.falls
    _write(client, node, History(now, before.left, falls))


def record_stop(client: Any, node: str) -> None:
    """Record that a node stops."""
    before = _read(client, node)
    _write(client, node, History(before.started, round(time.time(), 1), before.falls))


def parse(entries: Mapping[bytes, bytes]) -> dict[str, History]:
    """Return the history of each node, from the hash `keys.HISTORY`."""
    return {node.decode(): _parse(text) for node, text in entries.items()}


def _parse(text: bytes) -> History:
    """Return the history of a node from its JSON."""
    values = json.loads(text)
    return History(values["started"], values["left"], tuple(values["falls"]))


def _read(client: Any, node: str) -> History:
    """Return the history of a node; an empty one if Redis has none."""
    text = client.hget(keys.HISTORY, node)
    return _parse(text) if text else History()


def _write(client: Any, node: str, history: History) -> None:
    """Store the history of a node. An error is only logged: the node works without it."""
    try:
        client.hset(keys.HISTORY, node, json.dumps(asdict(history)))
    except RedisError as error:
        logger.debug("The start or the stop of this node is not recorded: %s", error)
