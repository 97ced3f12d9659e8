# SPDX-License-Identifier: MIT
"""Keeps what was revoked revoked: over the restart of a node, a release, a reboot, and on other hosts.

A node of Celery's has it in memory. `control revoke` reaches the nodes that are up; a task with an ETA, or
one that waits in its queue, runs when all of those have been restarted. Here each node that is told also
records it in Redis, and each node reads the record when it starts and when it has connected anew, before it
takes anything. No task costs a question more: it is the node's memory that is asked.

The record is bounded, by time and by number. Redis's clock counts.
"""

from __future__ import annotations

import json
import logging
from functools import wraps
from typing import TYPE_CHECKING, Any

from celery import bootsteps
from celery.utils.functional import maybe_list
from celery.worker import state
from celery.worker.control import Panel
from kombu.utils.encoding import bytes_to_str

from fleet_runtime.broker import keys

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

logger = logging.getLogger(__name__)

AGE = 30 * 86400  # seconds for which something stays revoked
MOST = state.REVOKES_MAX  # ids, and as many stamps; CELERY_WORKER_REVOKES_MAX, by default 50,000
STEP = 1000  # entries in one command
LONGEST = 1000  # characters of an id or a stamp
AGAIN = 5.0  # seconds after the node has connected: by then it hears what is revoked

# Of what each command of Celery's remote control revokes.
COMMANDS = {
    "revoke": lambda task_id=(), **_: (_ids(task_id), []),
    "terminate": lambda task_id=(), **_: (_ids(task_id), []),
    "revoke_by_stamped_headers": lambda headers=(), **_: ([], _stamps(headers)),
}


class Revoked(bootsteps.StartStopStep):  # type: ignore[misc]  # celery ships no types
    """Before a node consumes: learns what was revoked."""

    # The node's memory of it is emptied by nobody, but on a new connection the record may have more.
    requires = ("fleet_runtime.worker.bootsteps:Recovery",)

    def __init__(self, consumer: Any, **options: Any) -> None:
        """Let commands that revoke record it."""
        super().__init__(consumer, **options)
        # Once it has MOST, Celery would forget what is older than three hours.
        state.revoked.expires = max(state.revoked.expires, AGE)
        for name in COMMANDS:
            _let_record(name)

    def start(self, consumer: Any) -> None:
        """Learn it, on each new connection; and again once the node hears what is revoked from now on."""
        learn(consumer)
        consumer.timer.call_after(AGAIN, consumer.call_soon, (_learn_if_connected, consumer))


def _learn_if_connected(consumer: Any) -> None:
    """Learn it, unless the connection is lost: on the next one it is learnt anyhow."""
    if consumer.connection:
        learn(consumer)


def learn(consumer: Any) -> None:
    """Learn from Redis what was revoked. Without an answer, the node goes on with what it knows."""
    try:
        with consumer.connection.default_channel.conn_or_acquire() as client:
            ids, stamps = _recorded(client, keys.REVOKED), _recorded(client, keys.REVOKED_STAMPS)
    except consumer.connection_errors:
        raise  # it is lost, and the node makes a new one
    except Exception as error:
        logger.warning("What was revoked before cannot be read, and may run on this node: %s", error)
        return
    state.merge_revoked([one for one in ids if one not in state.revoked])
    for stamp in stamps:
        header, value = json.loads(stamp)
        known = maybe_list(state.revoked_stamps.get(header)) or []
        if value not in known:
            state.revoked_stamps[header] = [*known, value]


def record(client: Any, key: str, entries: Iterable[str]) -> None:
    """Record that something is revoked, and forget what is too old or too much."""
    seconds, microseconds = client.time()
    now = seconds + microseconds / 1e6
    listed = list(entries)
    for at in range(0, len(listed), STEP):
        client.zadd(key, dict.fromkeys(listed[at : at + STEP], now))
    too_old = client.zrange(key, "-inf", now - AGE, byscore=True, offset=0, num=STEP)
    surplus = max(len(too_old), client.zcard(key) - MOST)
    for _ in range(0, surplus, STEP):  # the oldest of all, each time
        client.zrem(key, *client.zrange(key, 0, min(surplus, STEP) - 1))
        surplus -= STEP


def _recorded(client: Any, key: str) -> list[str]:
    """Return what is recorded, the oldest first."""
    return [bytes_to_str(one) for one in client.zrange(key, 0, -1)]


def _let_record(name: str) -> None:
    """Let a command record what it revokes, before it does so."""
    command, read = Panel.data[name], COMMANDS[name]
    if hasattr(command, "__wrapped__"):
        return

    @wraps(command)
    def recording(panel: Any, *args: Any, **options: Any) -> Any:
        refusal = _try_to_record(panel.consumer, read, options)
        said = command(panel, *args, **options)
        if refusal and isinstance(said, dict) and "ok" in said:
            return {"ok": f"{said['ok']}, but only until the nodes that hear this are restarted: {refusal}"}
        return said

    Panel.data[name] = recording


def _try_to_record(consumer: Any, read: Callable[..., Any], options: dict[str, Any]) -> str:
    """Record what a command revokes; return why that could not be done, if so."""
    try:
        ids, stamps = read(**options)
        with consumer.connection.default_channel.conn_or_acquire() as client:
            for key, entries in ((keys.REVOKED, ids), (keys.REVOKED_STAMPS, stamps)):
                if entries:
                    record(client, key, entries)
    except Exception as error:
        logger.warning("What is revoked cannot be recorded, and is forgotten when this node ends: %s", error)
        return str(error) or type(error).__name__
    return ""


def _ids(given: Any) -> list[str]:
    """Return the ids of tasks that are to be revoked."""
    return [one for one in maybe_list(given) or () if isinstance(one, str) and len(one) <= LONGEST]


def _stamps(given: Any) -> list[str]:
    """Return the stamps by which tasks are to be revoked, each with its header, as JSON."""
    headers = dict(one.split("=", 2)[:2] for one in given) if isinstance(given, list) else dict(given)
    return [one for one in _as_json(headers) if len(one) <= LONGEST]


def _as_json(headers: dict[str, Any]) -> Iterator[str]:
    """Yield each pair of a header and a stamp."""
    for header, stamps in headers.items():
        for stamp in maybe_list(stamps) or ():
            yield json.dumps([header, stamp])
