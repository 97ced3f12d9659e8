# SPDX-License-Identifier: MIT
"""When each node was started and stopped last, and how often it fell: what goes with its lease otherwise."""

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

MOST = 10  # falls that are kept of each node
SHORT = 60.0  # seconds: a node that ends sooner than this was not stopped by a release


@dataclass(frozen=True)
class History:
    """A node's; all times are in seconds since 1970.

    Attributes:
        started: When it was started last; 0 if it never was.
        left: When it last gave up its lease as it was stopped; 0 if it never did.
        falls: Starts after it had died, or within a minute after the one before; the newest last.
    """

    started: float = 0.0
    left: float = 0.0
    falls: tuple[float, ...] = ()

    @property
    def seen(self) -> float:
        """When the node was last known to begin or to end; 0 if never."""
        return max(self.started, self.left)


def begins(client: Any, node: str) -> None:
    """Note that a node was started."""
    now, before = round(time.time(), 1), _of(client, node)
    died, soon = before.left < before.started, now - before.started < SHORT
    falls = (*before.falls, now)[-MOST:] if before.started and (died or soon) else before.falls
    _write(client, node, History(now, before.left, falls))


def leaves(client: Any, node: str) -> None:
    """Note that a node was stopped."""
    before = _of(client, node)
    _write(client, node, History(before.started, round(time.time(), 1), before.falls))


def read(told: Mapping[bytes, bytes]) -> dict[str, History]:
    """Return what is known of each node, from what Redis has under `keys.HISTORY`."""
    return {node.decode(): _read(text) for node, text in told.items()}


def _read(text: bytes) -> History:
    """Return what is known of one node, as it was written."""
    said = json.loads(text)
    return History(said["started"], said["left"], tuple(said["falls"]))


def _of(client: Any, node: str) -> History:
    """Return what is known of one node."""
    told = client.hget(keys.HISTORY, node)
    return _read(told) if told else History()


def _write(client: Any, node: str, history: History) -> None:
    """Write it; a node does its work without."""
    try:
        client.hset(keys.HISTORY, node, json.dumps(asdict(history)))
    except RedisError as error:
        logger.debug("The start or the end of this node is not noted: %s", error)
