# SPDX-License-Identifier: MIT
"""Asks whether a node works: it answers, consumes its queues and no other, and has run a task.

The task is the one with which each node begins: see `probation`.
"""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from celery.utils.nodenames import worker_direct
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from fleet_runtime.broker import keys
from fleet_runtime.errors import FleetError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from celery import Celery

ANSWER = 1.0  # seconds that a node has for an answer, each time
PAUSE = 0.2  # seconds until it is asked again


@dataclass(frozen=True)
class Seen:
    """What is known of a node now.

    Attributes:
        facts: What it says of itself in Redis; empty if it does not live.
        answer: The queues that it consumes, by its own answer; None if there was none.
    """

    facts: dict[str, Any]
    answer: list[str] | None

    @property
    def is_there(self) -> bool:
        """Whether it answers, or cannot and need not."""
        return self.answer is not None or self.is_busy

    @property
    def is_busy(self) -> bool:
        """Whether it cannot answer, because it runs a task, after its proof, where it would.

        What it says of itself may be older than that task.
        """
        return self.answer is None and self.facts.get("pool") == "solo" and self.has_proved

    @property
    def queues(self) -> list[str]:
        """What it consumes."""
        return list(self.facts.get("queues", ())) if self.answer is None else self.answer

    @property
    def has_proved(self) -> bool:
        """Whether it has run a task."""
        return self.facts.get("proved") is not None


def require(app: Celery, node: str, queues: Sequence[str], timeout: float) -> str:
    """Wait until a node works, and say how that is known.

    Args:
        app: The app.
        node: Its full name.
        queues: What it should consume, and nothing else; if there are none, anything.
        timeout: Seconds.

    Raises:
        FleetError: It does not; the message tells what is wrong.
    """
    until = time.monotonic() + timeout
    while True:
        seen = _look(app, [node], ANSWER)[node]
        problem = _problem(node, seen, sorted(queues), timeout)
        if not problem:
            break
        if time.monotonic() > until:
            raise FleetError(problem)
        time.sleep(PAUSE)
    proof = f"has run a task of release {seen.facts['release']} since it started"
    if seen.facts.get("excused"):
        proof = f"began without a proof, since Redis was full, with release {seen.facts['release']}"
    busy = ", is busy with one that it took since" if seen.is_busy else ""
    return f"{node} consumes {', '.join(seen.queues)}, {proof}{busy}."


def consumed(app: Celery, nodes: Sequence[str], timeout: float) -> dict[str, list[str]]:
    """Return what nodes consume, for each that answers, or that is busy with a task which keeps it from that.

    Args:
        app: The app.
        nodes: Their full names.
        timeout: Seconds for all answers together.

    Raises:
        FleetError: The broker cannot be asked.
    """
    return {node: seen.queues for node, seen in _look(app, nodes, timeout).items() if seen.is_there}


def _look(app: Celery, nodes: Sequence[str], timeout: float) -> dict[str, Seen]:
    """Ask some nodes, and Redis."""
    try:
        said = app.control.inspect(destination=list(nodes), timeout=timeout).active_queues() or {}
        with app.connection_for_write() as connection, connection.default_channel.conn_or_acquire() as client:
            pipeline = client.pipeline(transaction=False).time().hmget(keys.NODES, nodes)
            for node in nodes:
                pipeline.zscore(keys.LEASES, node)
            clock, found, *leases = pipeline.execute()
    except (OperationalError, RedisError, OSError) as error:
        raise FleetError(f"The broker cannot be asked: {error}") from error
    facts = [
        json.loads(text) if text and ends is not None and ends > clock[0] else {}
        for text, ends in zip(found, leases, strict=True)
    ]
    return {
        node: Seen(known if _lives(known) else {}, _names(node, said[node]) if node in said else None)
        for node, known in zip(nodes, facts, strict=True)
    }


def _lives(facts: dict[str, Any]) -> bool:
    """Return whether the process that said this still lives, as far as can be known here."""
    if facts.get("host") != socket.gethostname():
        return bool(facts)
    try:
        with suppress(PermissionError):  # it is somebody else's, and there
            os.kill(facts["pid"], 0)  # sends nothing
    except ProcessLookupError:
        return False
    return True


def _problem(node: str, seen: Seen, wanted: list[str], timeout: float) -> str:
    """Return what is wrong with a node, in a sentence; nothing if it works."""
    if not (seen.facts and seen.is_there):
        return f"{node} does not answer."
    if not seen.has_proved and seen.facts.get("unproved"):
        return f"{node} ran a task for a proof, and it failed: {seen.facts['unproved']}"
    if not seen.has_proved:
        return f"{node} did not run a task within {timeout:g} seconds, and takes no other."
    if refused := seen.facts.get("refused"):
        listed = "; ".join(f"{queue} ({reason})" for queue, reason in sorted(refused.items()))
        return f"{node} cannot consume what Redis refuses: {listed}"
    if not seen.queues or seen.queues != (wanted or seen.queues):
        found = ", ".join(seen.queues) or "nothing"
        return f"{node} should consume {', '.join(wanted) or 'something'}, and consumes {found}."
    return ""


def _names(node: str, said: Sequence[dict[str, str]]) -> list[str]:
    """Return the queues in a node's answer by the inventory's names, without those that it has for itself.

    These are the one for its proof, and that of `worker_direct`.
    """
    own = worker_direct(node).name
    others = [
        queue for queue in said if queue["name"] != own and not queue["name"].startswith(keys.PROOFS_PREFIX)
    ]
    return sorted(queue.get("alias") or queue["name"] for queue in others)
