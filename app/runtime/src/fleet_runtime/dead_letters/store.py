# SPDX-License-Identifier: MIT
"""Keeps what failed for good: for each message a letter, with all that is known of its end.

A message goes from the hash of what its node holds into its letter by one script. So it is never in both, and
never in neither, whatever dies.
"""

from __future__ import annotations

import base64
import hashlib
import json
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any

from kombu.exceptions import OperationalError
from kombu.utils.json import dumps
from redis.exceptions import RedisError

from fleet_runtime.broker import functions, keys, scripts
from fleet_runtime.broker.unacked import UnackedRef
from fleet_runtime.compat import kombu_channel
from fleet_runtime.dead_letters.model import COUNTED, Letter
from fleet_runtime.errors import FleetError
from fleet_runtime.settings import FleetSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery import Celery

    from fleet_runtime.dead_letters.model import End, Filter

LOSSES_TTL = 7 * 86400  # seconds that deaths are remembered: as long as messages are held at most
PAGE = 200  # letters in one answer of Redis


class DeadLetters:
    """The letters of a fleet, for who looks at them."""

    def __init__(self, channel: Any) -> None:
        """Look through a channel of kombu's."""
        self._channel = channel

    def __len__(self) -> int:
        """Return how many there are."""
        with self._channel.conn_or_acquire() as client:
            return int(client.zcard(keys.DEAD))

    def find(self, wanted: Filter) -> Iterator[Letter]:
        """Yield letters, the newest first."""
        for ids in self._pages(wanted):
            with self._channel.conn_or_acquire() as client:
                texts = client.hmget(keys.DEAD_LETTERS, ids)
            letters = (Letter.parse(text.decode()) for text in texts if text)
            yield from filter(wanted.fits, letters)

    def requeue(self, letter: Letter) -> bool:
        """Put a message back into its queue; return whether the letter was still there."""
        payload = letter.revived(datetime.now(UTC))
        message = json.loads(payload)
        priority = kombu_channel.priority_of(self._channel, message)
        queue = kombu_channel.list_of(
            self._channel, str(letter.queue), priority
        )  # `revived` has refused none
        losses = keys.losses(message["properties"]["delivery_tag"])
        return self._take(letter, [losses, queue], [payload])

    def purge(self, letter: Letter) -> bool:
        """Throw a letter away; return whether it was still there."""
        return self._take(letter, [], [])

    def _pages(self, wanted: Filter) -> Iterator[list[str]]:
        """Yield ids, some at a time, from one look at all: what comes meanwhile shifts no page."""
        if wanted.ids:
            ids = list(dict.fromkeys(wanted.ids))
        else:
            with self._channel.conn_or_acquire() as client:
                ids = client.zrange(keys.DEAD, 0, -1)[::-1]
        for start in range(0, len(ids), PAGE):
            yield ids[start : start + PAGE]

    def _take(self, letter: Letter, more_keys: list[str], more_arguments: list[str]) -> bool:
        """Call the script."""
        with self._channel.conn_or_acquire() as client:
            names = [keys.DEAD, keys.DEAD_LETTERS, *more_keys]
            words = [letter.id, letter.text, *more_arguments]
            return bool(functions.run(client, scripts.TAKE_DEAD_LETTER, names, words))


@contextmanager
def looking(app: Celery) -> Iterator[DeadLetters]:
    """Yield the letters of an app's broker.

    Raises:
        FleetError: The broker is away, or refuses.
    """
    try:
        with app.connection_for_write() as connection:
            yield DeadLetters(connection.default_channel)
    except (OperationalError, RedisError, OSError) as error:
        raise FleetError(f"The dead letters cannot be reached: {error}") from error


def bury(message: Any, end: End, *, node: str, started: float | None = None, held: bool = True) -> bool:
    """Move a message from what a node holds to the dead letters.

    Args:
        message: It, as kombu has it.
        end: How it ended.
        node: The node's name.
        started: When it began to run.
        held: Whether the node must still hold it. If it does not, somebody has given it back to its queue,
            and it is not dead. False for a task that was acknowledged before it ran.

    Returns:
        Whether there is a letter now.

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
    hold = UnackedRef(channel.unacked_key, channel.unacked_index_key, message.delivery_tag)
    with channel.conn_or_acquire() as client:
        return _bury(client, letter, hold, record, needed=held)


def bury_raw(
    client: Any,
    raw: bytes | str,
    end: End,
    *,
    node: str,
    queue: str | None = None,
    held: UnackedRef | None = None,
) -> bool:
    """Move what is no message to the dead letters.

    Args:
        client: A client of redis-py's.
        raw: What it is.
        end: Why it is here.
        node: Who found it.
        queue: Where it was, if in a queue. It was taken from there already.
        held: Where it is, if a node holds it.

    Returns:
        Whether there is a letter now; not if it was to be held and is not.
    """
    raw = raw.encode() if isinstance(raw, str) else bytes(raw)
    letter = {
        "id": hashlib.sha256(raw).hexdigest()[:32],
        "queue": queue,
        "node": node,
        **_raw(raw),
        **asdict(end),
    }
    return _bury(client, letter, held, record="null", needed=True)


def count_losses(message: Any, *, more: bool, record: str = "") -> int:
    """Return how many times the process that ran a message died.

    Args:
        message: It, as kombu has it.
        more: Whether it happened once more.
        record: What the node holds from now on instead of the record that it has; nothing to leave that.
    """
    channel = message.channel
    with channel.conn_or_acquire() as client:
        names = [keys.losses(message.delivery_tag), channel.unacked_key]
        words = [message.delivery_tag, int(more), LOSSES_TTL, record]
        return int(functions.run(client, scripts.COUNT_CRASH, names, words))


@cache
def settings() -> FleetSettings:
    """Return the settings of this process, which are read for once: they are asked for with each failure."""
    return FleetSettings.from_environment()


def _bury(client: Any, letter: dict[str, Any], held: UnackedRef | None, record: str, *, needed: bool) -> bool:
    """Call the script."""
    limit, age = settings().dead_letter_limit, int(settings().dead_letter_age)
    names: list[str] = [keys.DEAD, keys.DEAD_LETTERS]
    arguments: list[Any] = [letter["id"], json.dumps(letter, default=repr), limit, age]
    if held:
        names += [keys.losses(held.tag), held.unacked, held.unacked_index]
        arguments += [held.tag, record, int(needed), 0 if letter["reason"] in COUNTED else 1]
    return bool(functions.run(client, scripts.DEAD_LETTER, names, arguments))


def _queue(channel: Any, exchange: str, routing_key: str) -> str | None:
    """Return the queue that a message came from: of those that it would be sent to, one consumed here."""
    found = kombu_channel.queues_of(channel, exchange, routing_key)
    queues = sorted(found, key=lambda queue: queue not in channel.active_queues)
    return queues[0] if queues else None


def _id_of_first_protocol(message: Any) -> str | None:
    """Return the task's id from a message of Celery's first protocol, which has it in its body."""
    body = kombu_channel.decoded_body(message)
    return _text(body.get("id")) if isinstance(body, dict) else None


def _text(value: Any) -> str | None:
    """Return a text; nothing for anything else."""
    return value if isinstance(value, str) else None


def _raw(raw: bytes) -> dict[str, str]:
    """Return bytes as JSON can have them."""
    try:
        return {"raw": raw.decode()}
    except UnicodeDecodeError:
        return {"raw_base64": base64.b64encode(raw).decode()}
