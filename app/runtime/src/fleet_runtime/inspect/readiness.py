# SPDX-License-Identifier: MIT
"""Checks whether a node is ready: it answers, consumes its queues and no other, and passed its self-test.

`worker.readiness` runs the self-test when a node starts.
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

from fleet_runtime.broker import keys
from fleet_runtime.broker.errors import explained
from fleet_runtime.errors import FleetError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from celery import Celery

# Seconds that a node has for each answer.
ANSWER_TIMEOUT_S = 1.0
# Seconds between two questions to a node.
POLL_INTERVAL_S = 0.2


@dataclass(frozen=True)
class NodeState:
    """The state of a node, as far as it is known.

    Attributes:
        facts: What the node has published in Redis; empty if it is not alive.
        answer: The queues that it consumes, by its own answer; None without an answer.
    """

    facts: dict[str, Any]
    answer: list[str] | None

    @property
    def is_up(self) -> bool:
        """Whether the node answers, or is too busy to answer."""
        return self.answer is not None or self.is_busy

    @property
    def is_busy(self) -> bool:
        """Whether the node cannot answer because its solo pool runs a task, after its self-test.

        The facts may be older than that task.
        """
        return self.answer is None and self.facts.get("pool") == "solo" and self.has_passed

    @property
    def queues(self) -> list[str]:
        """The queues that the node consumes."""
        return list(self.facts.get("queues", ())) if self.answer is None else self.answer

    @property
    def has_passed(self) -> bool:
        """Whether the node has passed its self-test, or skipped it."""
        return self.facts.get("proved") is not None


def require(app: Celery, node: str, queues: Sequence[str], timeout: float) -> str:
    """Wait until a node is ready.

    Args:
        app: The app.
        node: Full name of the node.
        queues: The queues that it should consume, and no other; if empty, any queues.
        timeout: Seconds to wait.

    Returns:
        A sentence about the node.

    Raises:
        FleetError: The node is not ready. The message names the problem.
    """
    until = time.monotonic() + timeout
    while True:
        seen = _read(app, [node], ANSWER_TIMEOUT_S)[node]
        problem = _problem(node, seen, sorted(queues), timeout)
        if not problem:
            break
        if time.monotonic() > until:
            raise FleetError(problem)
        time.sleep(POLL_INTERVAL_S)
    test = f"has run a task of release {seen.facts['release']} since it started"
    if seen.facts.get("excused"):
        test = f"began without a self-test, since Redis was full, with release {seen.facts['release']}"
    busy = ", and is busy with another one" if seen.is_busy else ""
    return f"{node} consumes {', '.join(seen.queues)}, {test}{busy}."


def consumed(app: Celery, nodes: Sequence[str], timeout: float) -> dict[str, list[str]]:
    """Return the queues that each node consumes, for nodes that answer or are too busy to answer.

    Args:
        app: The app.
        nodes: Full names of the nodes.
        timeout: Seconds for all answers together.

    Raises:
        FleetError: The broker cannot be asked.
    """
    return {node: seen.queues for node, seen in _read(app, nodes, timeout).items() if seen.is_up}


def _read(app: Celery, nodes: Sequence[str], timeout: float) -> dict[str, NodeState]:
    """Return the state of nodes, by their answers and by Redis."""
    with explained("The broker cannot be asked"):
        answers = app.control.inspect(destination=list(nodes), timeout=timeout).active_queues() or {}
        with app.connection_for_write() as connection, connection.default_channel.conn_or_acquire() as client:
            pipeline = client.pipeline(transaction=False).time().hmget(keys.NODES, nodes)
            for node in nodes:
                pipeline.zscore(keys.LEASES, node)
            clock, found, *leases = pipeline.execute()
    facts = [
        json.loads(text) if text and ends is not None and ends > clock[0] else {}
        for text, ends in zip(found, leases, strict=True)
    ]
    return {
        node: NodeState(
            known if _is_alive(known) else {}, _names(node, answers[node]) if node in answers else None
        )
        for node, known in zip(nodes, facts, strict=True)
    }


def _is_alive(facts: dict[str, Any]) -> bool:
    """Return whether the process that has published these facts is alive, as far as it is known here."""
    if facts.get("host") != socket.gethostname():
        return bool(facts)
    try:
        with suppress(PermissionError):  # the process of another user, which is alive
            os.kill(facts["pid"], 0)  # sends nothing
    except ProcessLookupError:
        return False
    return True


def _problem(node: str, seen: NodeState, wanted: list[str], timeout: float) -> str:
    """Return what is wrong with a node, in a sentence; an empty string if it is ready."""
    if not (seen.facts and seen.is_up):
        return f"{node} does not answer."
    if not seen.has_passed and seen.facts.get("unproved"):
        return f"{node} has failed its self-test: {seen.facts['unproved']}"
    if not seen.has_passed:
        return f"{node} did not pass its self-test within {timeout:g} seconds, and takes no other task."
    if refused := seen.facts.get("refused"):
        listed = "; ".join(f"{queue} ({reason})" for queue, reason in sorted(refused.items()))
        return f"{node} cannot consume what Redis refuses: {listed}"
    if not seen.queues or seen.queues != (wanted or seen.queues):
        found = ", ".join(seen.queues) or "nothing"
        return f"{node} should consume {', '.join(wanted) or 'something'}, and consumes {found}."
    return ""


def _names(node: str, queues: Sequence[dict[str, str]]) -> list[str]:
    """Return the names of the queues in a node's answer, without the node's own queues.

    These are the queue of its self-test, and that of `worker_direct`.
    """
    own = worker_direct(node).name
    others = [
        queue
        for queue in queues
        if queue["name"] != own and not queue["name"].startswith(keys.SELF_TEST_PREFIX)
    ]
    return sorted(queue.get("alias") or queue["name"] for queue in others)
