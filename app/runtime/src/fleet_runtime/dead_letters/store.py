# SPDX-License-Identifier: MIT
"""Keeps messages that failed for good, each with all that is known of its end.

One script moves a message from the hash of unacknowledged messages of its node into the dead letter. So the
message is always in exactly one of the two, whatever crashes.
"""

from __future__ import annotations

import base64
import hashlib
import json
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from kombu.utils.json import dumps

from fleet_runtime.broker import functions, keys, scripts
from fleet_runtime.broker.errors import explained
from fleet_runtime.broker.unacked import UnackedRef
from fleet_runtime.compat import kombu_channel
from fleet_runtime.dead_letters.model import COUNTED_REASONS, DeadLetter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery import Celery

    from fleet_runtime.dead_letters.model import End, Filter
    from fleet_runtime.settings import FleetSettings

# Seconds that a crash count is kept: as long as a message can be unacknowledged by default.
CRASH_COUNT_TTL_S = 7 * 86400
# Dead letters that are read with one command.
PAGE_SIZE = 200


class Retention(NamedTuple):
    """How many dead letters are kept, and for how many seconds."""

    limit: int
    age: int

    @classmethod
    def of(cls, settings: FleetSettings) -> Self:
        """Return the retention that the settings have."""
        return cls(settings.dead_letter_limit, int(settings.dead_letter_age))


class DeadLetterStore:
    """Reads, requeues and purges the dead letters of a fleet."""

    def __init__(self, channel: Any) -> None:
        """Use a channel of kombu for all commands."""
        self._channel = channel

    def __len__(self) -> int:
        """Return the number of dead letters."""
        with self._channel.conn_or_acquire() as client:
            return int(client.zcard(keys.DEAD))

    def find(self, wanted: Filter) -> Iterator[DeadLetter]:
        """Yield the dead letters that match a filter, the newest first."""
        for ids in self._pages(wanted):
            with self._channel.conn_or_acquire() as client:
                texts = client.hmget(keys.DEAD_LETTERS, ids)
            letters = (DeadLetter.parse(text.decode()) for text in texts if text)
            yield from filter(wanted.matches, letters)

    def requeue(self, letter: DeadLetter) -> bool:
        """Put the message of a dead letter back into its queue.

        Returns:
            Whether the dead letter was still there.

        Raises:
            FleetError: The dead letter has no message.
        """
        payload = letter.revived(datetime.now(UTC))
        message = json.loads(payload)
        priority = kombu_channel.priority_of(self._channel, message)
        queue = kombu_channel.list_of(self._channel, str(letter.queue), priority)  # `revived` has one
        crash_count = keys.crashes(message["properties"]["delivery_tag"])
        return self._remove(letter, [crash_count, queue], [payload])

    def purge(self, letter: DeadLetter) -> bool:
        """Delete a dead letter; return whether it was still there."""
        return self._remove(letter, [], [])

    def _pages(self, wanted: Filter) -> Iterator[list[str]]:
        """Yield pages of ids. All ids are read at once, so that new dead letters shift no page."""
        if wanted.ids:
            ids = list(dict.fromkeys(wanted.ids))
        else:
            with self._channel.conn_or_acquire() as client:
                ids = client.zrange(keys.DEAD, 0, -1)[::-1]
        for start in range(0, len(ids), PAGE_SIZE):
            yield ids[start : start + PAGE_SIZE]

    def _remove(self, letter: DeadLetter, more_keys: list[str], more_arguments: list[str]) -> bool:
        """Run the script `take_dead_letter`."""
        with self._channel.conn_or_acquire() as client:
            names = [keys.DEAD, keys.DEAD_LETTERS, *more_keys]
            arguments = [letter.id, letter.text, *more_arguments]
            return bool(functions.run(client, scripts.TAKE_DEAD_LETTER, names, arguments))


@contextmanager
def open_store(app: Celery) -> Iterator[DeadLetterStore]:
    """Yield the dead letters in the broker of an app.

    Raises:
        FleetError: The broker is away, or refuses a command.
    """
    with explained("The dead letters cannot be reached"), app.connection_for_write() as connection:
        yield DeadLetterStore(connection.default_channel)


def move_message(
    message: Any,
    end: End,
    node: str,
    started: float | None = None,
    held: bool = True,
    *,
    retention: Retention,
) -> bool:
    """Move a message from the unacknowledged messages of a node to the dead letters.

    Args:
        message: A message of kombu.
        end: How the task ended.
        node: Name of the node.
        started: When the task began to run, in seconds since 1970.
        held: Whether the message must still be unacknowledged. If it is not, another node has requeued it,
            and there is no dead letter. False for a task that was acknowledged before it ran.
        retention: How many dead letters are kept, and for how long.

    Returns:
        Whether there is a dead letter now.

    Raises:
        RedisError: The broker is away, or refuses. The message is where it was.
    """
    headers = message.headers if isinstance(message.headers, dict) else {}
    delivery = message.delivery_info
    exchange, routing_key = delivery["exchange"], delivery["routing_key"]
    letter = {
        "id": _text(headers.get("id")) or _id_of_first_protocol(message) or message.delivery_tag,
        "task": _text(headers.get("task")),
        "queue": _queue(message.channel, exchange, routing_key),
        "node": node,
        "started": started,
        "retries": headers.get("retries"),
        **asdict(end),
    }
    record = "" if held else dumps([kombu_channel.stored(message), exchange, routing_key])
    channel = message.channel
    unacked = UnackedRef(channel.unacked_key, channel.unacked_index_key, message.delivery_tag)
    with channel.conn_or_acquire() as client:
        return _store(client, letter, unacked, record, retention, needed=held)


def move_item(
    client: Any,
    raw: bytes | str,
    end: End,
    *,
    node: str,
    retention: Retention,
    queue: str | None = None,
    held: UnackedRef | None = None,
) -> bool:
    """Move an item that is not a message to the dead letters.

    Args:
        client: A client of redis-py.
        raw: The item.
        end: Why it becomes a dead letter.
        node: Name of the node that found it.
        retention: How many dead letters are kept, and for how long.
        queue: The queue that it was fetched from, if it was in one.
        held: Where it is recorded as unacknowledged, if it is.

    Returns:
        Whether there is a dead letter now: not if `held` is given and no such record exists.
    """
    raw = raw.encode() if isinstance(raw, str) else bytes(raw)
    letter = {
        "id": hashlib.sha256(raw).hexdigest()[:32],
        "queue": queue,
        "node": node,
        **_raw(raw),
        **asdict(end),
    }
    return _store(client, letter, held, "null", retention, needed=True)


def count_crashes(message: Any, *, more: bool, record: str = "") -> int:
    """Return how many times the process that ran a message has crashed.

    Args:
        message: A message of kombu.
        more: Whether to count one more crash.
        record: Replaces the record of the unacknowledged message, if it is not empty.
    """
    channel = message.channel
    with channel.conn_or_acquire() as client:
        names = [keys.crashes(message.delivery_tag), channel.unacked_key]
        arguments = [message.delivery_tag, int(more), CRASH_COUNT_TTL_S, record]
        return int(functions.run(client, scripts.COUNT_CRASH, names, arguments))


def _store(
    client: Any,
    letter: dict[str, Any],
    held: UnackedRef | None,
    record: str,
    retention: Retention,
    *,
    needed: bool,
) -> bool:
    """Run the script `dead_letter`."""
    names: list[str] = [keys.DEAD, keys.DEAD_LETTERS]
    arguments: list[Any] = [letter["id"], json.dumps(letter, default=repr), *retention]
    if held:
        names += [keys.crashes(held.tag), held.unacked, held.unacked_index]
        arguments += [held.tag, record, int(needed), 0 if letter["reason"] in COUNTED_REASONS else 1]
    return bool(functions.run(client, scripts.DEAD_LETTER, names, arguments))


def _queue(channel: Any, exchange: str, routing_key: str) -> str | None:
    """Return the queue of a message: of those that its routing key leads to, one that is consumed here."""
    candidates = kombu_channel.queues_of(channel, exchange, routing_key)
    queues = sorted(candidates, key=lambda queue: queue not in channel.active_queues)
    return queues[0] if queues else None


def _id_of_first_protocol(message: Any) -> str | None:
    """Return the id of a task from a message of Celery's first protocol, which has it in its body."""
    body = kombu_channel.decoded_body(message)
    return _text(body.get("id")) if isinstance(body, dict) else None


def _text(value: Any) -> str | None:
    """Return a value if it is text, else None."""
    return value if isinstance(value, str) else None


def _raw(raw: bytes) -> dict[str, str]:
    """Return bytes as a field that JSON can have: as text, or else in base64."""
    try:
        return {"raw": raw.decode()}
    except UnicodeDecodeError:
        return {"raw_base64": base64.b64encode(raw).decode()}
