# SPDX-License-Identifier: MIT
"""Keeps revoked tasks revoked after a restart of nodes, a release or a reboot, and on other hosts.

A node of Celery keeps revoked tasks in memory. `control revoke` reaches the nodes that run; a task with an
ETA, or one that waits in its queue, runs when all of those have been restarted. Here each node that gets the
command also records it in Redis. Each node reads the record when it starts and when it has reconnected,
before it fetches. A task costs no further command: the node looks it up in its memory.

The record is limited by age and by number. The clock of Redis counts.
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
from fleet_runtime.compat.surface import is_own

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

logger = logging.getLogger(__name__)

# Seconds for which a task stays revoked.
MAX_AGE_S = 30 * 86400
# Ids that are kept, and as many stamps: CELERY_WORKER_REVOKES_MAX, by default 50,000.
MAX_ENTRIES = state.REVOKES_MAX
# Entries in one command.
BATCH_SIZE = 1000
# Characters of an id or a stamp that is recorded.
MAX_LENGTH = 1000
# Seconds after which a node that has connected reads the record again: by then it gets new commands.
SECOND_READ_S = 5.0

# The ids and the stamps that each command of Celery's remote control revokes, from its arguments.
COMMANDS = {
    "revoke": lambda task_id=(), **_: (_ids(task_id), []),
    "terminate": lambda task_id=(), **_: (_ids(task_id), []),
    "revoke_by_stamped_headers": lambda headers=(), **_: ([], _stamps(headers)),
}


class Revoked(bootsteps.StartStopStep):
    """Reads the revoked tasks before a node consumes."""

    # It reads on each new connection, because the record may have more than the memory of the node.
    requires = ("fleet_runtime.worker.bootsteps:Recovery",)

    def __init__(self, consumer: Any, **options: Any) -> None:
        """Patch the commands that revoke, so that they record it."""
        super().__init__(consumer, **options)
        # With MAX_ENTRIES, Celery would forget entries that are older than three hours.
        state.revoked.expires = max(state.revoked.expires, MAX_AGE_S)
        for name in COMMANDS:
            _patch_command(name)

    def start(self, consumer: Any) -> None:
        """Read the record on a new connection, and once more when the node gets new commands."""
        read(consumer)
        consumer.timer.call_after(SECOND_READ_S, consumer.call_soon, (_read_if_connected, consumer))


def _read_if_connected(consumer: Any) -> None:
    """Read the record, unless the connection is lost: the next one reads it anyway."""
    if consumer.connection:
        read(consumer)


def read(consumer: Any) -> None:
    """Read the revoked tasks from Redis into the memory of the node. An error is only logged.

    Raises:
        OperationalError: The connection is lost, and the node reconnects.
    """
    try:
        with consumer.connection.default_channel.conn_or_acquire() as client:
            ids, stamps = _recorded(client, keys.REVOKED), _recorded(client, keys.REVOKED_STAMPS)
    except consumer.connection_errors:
        raise
    except Exception as error:
        logger.warning("Tasks that were revoked before cannot be read, and may run on this node: %s", error)
        return
    state.revoked.update([task_id for task_id in ids if task_id not in state.revoked])
    for stamp in stamps:
        header, value = json.loads(stamp)
        known = maybe_list(state.revoked_stamps.get(header)) or []
        if value not in known:
            state.revoked_stamps[header] = [*known, value]


def record(client: Any, key: str, entries: Iterable[str]) -> None:
    """Record revoked entries, and delete those that are too old, or more than MAX_ENTRIES.

    Args:
        client: A client of redis-py.
        key: `keys.REVOKED` or `keys.REVOKED_STAMPS`.
        entries: Ids of tasks, or stamps as JSON.
    """
    seconds, microseconds = client.time()
    now = seconds + microseconds / 1e6
    new = list(entries)
    for start in range(0, len(new), BATCH_SIZE):
        client.zadd(key, dict.fromkeys(new[start : start + BATCH_SIZE], now))
    too_old = client.zrange(key, "-inf", now - MAX_AGE_S, byscore=True, offset=0, num=BATCH_SIZE)
    surplus = max(len(too_old), client.zcard(key) - MAX_ENTRIES)
    for _ in range(0, surplus, BATCH_SIZE):  # the oldest of all, each time
        client.zrem(key, *client.zrange(key, 0, min(surplus, BATCH_SIZE) - 1))
        surplus -= BATCH_SIZE


def _recorded(client: Any, key: str) -> list[str]:
    """Return the recorded entries, the oldest first."""
    return [bytes_to_str(entry) for entry in client.zrange(key, 0, -1)]


def _patch_command(name: str) -> None:
    """Let a command of remote control record its tasks before it revokes them."""
    command, parse = Panel.data[name], COMMANDS[name]
    if is_own(command):
        return

    @wraps(command)
    def recording(panel: Any, *args: Any, **options: Any) -> Any:
        refusal = _try_to_record(panel.consumer, parse, options)
        reply = command(panel, *args, **options)
        if refusal and isinstance(reply, dict) and "ok" in reply:
            return {"ok": f"{reply['ok']}, but only until the nodes that hear this are restarted: {refusal}"}
        return reply

    Panel.data[name] = recording


def _try_to_record(consumer: Any, parse: Callable[..., Any], options: dict[str, Any]) -> str:
    """Record the tasks that a command revokes; return the reason if that failed, else an empty string."""
    try:
        ids, stamps = parse(**options)
        with consumer.connection.default_channel.conn_or_acquire() as client:
            for key, entries in ((keys.REVOKED, ids), (keys.REVOKED_STAMPS, stamps)):
                if entries:
                    record(client, key, entries)
    except Exception as error:
        logger.warning("Revoked tasks cannot be recorded, and are forgotten when this node ends: %s", error)
        return str(error) or type(error).__name__
    return ""


def _ids(value: Any) -> list[str]:
    """Return the task ids in an argument of a command."""
    return [each for each in maybe_list(value) or () if isinstance(each, str) and len(each) <= MAX_LENGTH]


def _stamps(value: Any) -> list[str]:
    """Return the stamps in an argument of a command, each with its header, as JSON."""
    headers = dict(pair.split("=", 2)[:2] for pair in value) if isinstance(value, list) else dict(value)
    pairs = [[header, stamp] for header, stamps in headers.items() for stamp in maybe_list(stamps) or ()]
    return [stamp for stamp in map(json.dumps, pairs) if len(stamp) <= MAX_LENGTH]
