"""Asks a node for a proof that it works: it answers, consumes its queues and no other, and runs a task."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from fleet_runtime import keys, probe
from fleet_runtime.errors import FleetError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from celery import Celery

ANSWER = 1.0  # seconds that a node has for an answer, each time
PAUSE = 0.2  # seconds until it is asked again


def require(app: Celery, node: str, queues: Sequence[str], timeout: float) -> str:
    """Wait until a node works, and say how it has proved that.

    Args:
        app: The app.
        node: Its full name.
        queues: What it should consume, and nothing else; if there are none, anything.
        timeout: Seconds.

    Raises:
        FleetError: It does not; the message tells what is wrong.
    """
    until = time.monotonic() + timeout
    consumed = ", ".join(_require_consumption(app, node, queues, until))
    queue = keys.proofs(node)
    listen = {"destination": [node], "reply": True, "timeout": ANSWER}
    try:
        app.control.broadcast("fleet_listen", **listen)
        answer = probe.ask(app, [queue], max(ANSWER, until - time.monotonic()))[queue]
    finally:
        app.control.broadcast("fleet_unlisten", **listen)
        _forget(app, queue)
    if answer.node:
        return f"{node} consumes {consumed}, and ran a task of release {answer.release}."
    if answer.error:
        raise FleetError(f"{node} ran a task for a proof, and it failed: {answer.error}")
    if running := _is_full(app, node):
        return f"{node} consumes {consumed}, and runs {running} tasks, as many as it may."
    raise FleetError(f"{node} consumes its queues, but did not run a task within {timeout:g} seconds.")


def _require_consumption(app: Celery, node: str, queues: Sequence[str], until: float) -> list[str]:
    """Wait until a node consumes these queues, or any, and return which it does.

    Raises:
        FleetError: It does not, until then.
    """
    while True:
        said = app.control.inspect(destination=[node], timeout=ANSWER).active_queues() or {}
        consumed = _names(said[node]) if node in said else None
        if consumed and consumed == (sorted(queues) or consumed):
            return consumed
        if time.monotonic() > until:
            break
        time.sleep(PAUSE)
    if consumed is None:
        raise FleetError(f"{node} does not answer.")
    found = ", ".join(consumed) or "nothing"
    wanted = ", ".join(sorted(queues)) or "something"
    raise FleetError(f"{node} should consume {wanted}, and consumes {found}.")


def _names(said: Sequence[dict[str, str]]) -> list[str]:
    """Return the names of queues in a node's answer, without the one for its proof."""
    names = (queue["name"] for queue in said)
    return sorted(name for name in names if not name.startswith(keys.PROOFS_PREFIX))


def _is_full(app: Celery, node: str) -> int:
    """Return how many tasks a node runs, if it has room for no other; else 0.

    A node that has begun, by now, to run as many as it may, works as well as one that ran ours.
    """
    inspect = app.control.inspect(destination=[node], timeout=ANSWER)
    active, stats = (said.get(node) for said in (inspect.active() or {}, inspect.stats() or {}))
    if not active or not stats:
        return 0
    others = [task for task in active if task["name"] != probe.NAME]
    most = stats.get("pool", {}).get("max-concurrency", 1)
    return len(others) if len(others) >= most else 0


def _forget(app: Celery, queue: str) -> None:
    """Remove what is left of a queue: a task that nobody ran."""
    with app.connection_for_write() as connection, connection.default_channel as channel:
        channel.client.delete(*(channel._q_for_pri(queue, step) for step in channel.priority_steps))
