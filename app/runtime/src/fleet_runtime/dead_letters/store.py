"""Keeps what failed for good: for each message a letter, with all that is known of its end.

A message goes from the hash of what its node holds into its letter by one script. So it is never in both, and
never in neither, whatever dies.
"""

from __future__ import annotations

import base64
import hashlib
import json
import traceback
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from enum import StrEnum
from fnmatch import fnmatchcase
from functools import cache
from typing import TYPE_CHECKING, Any, Self

from kombu.exceptions import OperationalError
from kombu.utils.json import dumps
from redis.exceptions import RedisError

from fleet_runtime.broker import functions, keys, oom
from fleet_runtime.errors import FleetError
from fleet_runtime.recovery.requeue import RECOVERED
from fleet_runtime.settings import FleetSettings

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from celery import Celery

LOSSES_TTL = 7 * 86400  # seconds that deaths are remembered: as long as messages are held at most
PAGE = 200  # letters in one answer of Redis
LONGEST = 20_000  # characters of an error or a traceback; the message itself is kept whole

# Writes the letter first: a Redis that is full refuses that, and then nothing has been done.
# KEYS: dead, letters [, losses, unacked, unacked_index]
# ARGV: id, letter, limit, age [, tag, record, needed, deliveries before the count of losses]
BURY = """
local dead, letters, losses, unacked, index = unpack(KEYS)
local id, letter, limit, age, tag, record, needed, deliveries = unpack(ARGV)
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local more = string.format(',"died":%.3f', now)
if unacked then
  local held = redis.call('HGET', unacked, tag)
  if not held and needed == '1' then
    return 0
  end
  if record == '' then
    record = held
  end
  local received = redis.call('ZSCORE', index, tag)
  if received then
    more = more .. string.format(',"received":%.3f', received)
  end
  local lost = redis.call('GET', losses) or 0
  more = more .. string.format(',"deliveries":%d', deliveries + lost)
  more = more .. ',"record":' .. record
end
redis.call('HSET', letters, id, string.sub(letter, 1, -2) .. more .. '}')
redis.call('ZADD', dead, now, id)
if unacked then
  redis.call('HDEL', unacked, tag)
  redis.call('ZREM', index, tag)
  redis.call('DEL', losses)
end
local function drop(ids)
  for _, one in ipairs(ids) do
    redis.call('ZREM', dead, one)
    redis.call('HDEL', letters, one)
  end
end
drop(redis.call('ZRANGE', dead, '-inf', now - age, 'BYSCORE', 'LIMIT', 0, 100))
local surplus = redis.call('ZCARD', dead) - limit
if surplus > 0 then
  drop(redis.call('ZRANGE', dead, 0, math.min(surplus, 100) - 1))
end
redis.call('EXPIRE', dead, age)
redis.call('EXPIRE', letters, age)
return 1
"""

# Takes a letter away, if it is still the one that was looked at, and puts its message into a queue, if told.
# KEYS: dead, letters [, losses, queue]
# ARGV: id, letter [, message]
TAKE = """
local dead, letters, losses, queue = unpack(KEYS)
local id, letter, message = unpack(ARGV)
if redis.call('HGET', letters, id) ~= letter then
  return 0
end
if queue then
  redis.call('LPUSH', queue, message)
  redis.call('DEL', losses)
end
redis.call('HDEL', letters, id)
redis.call('ZREM', dead, id)
return 1
"""

# Counts that the process that ran a message died, if told, and says how many did so far.
# KEYS: losses, unacked. ARGV: tag, how many more, how long to remember, a record instead of the one held
COUNT = (
    oom.ALLOWED
    + """
local losses, unacked = unpack(KEYS)
local tag, more, memory, record = unpack(ARGV)
local count = tonumber(redis.call('GET', losses) or 0)
if more == '1' then
  count = redis.call('INCR', losses)
  redis.call('EXPIRE', losses, memory)
end
if record ~= '' and redis.call('HEXISTS', unacked, tag) == 1 then
  redis.call('HSET', unacked, tag, record)
end
return count
"""
)


class Reason(StrEnum):
    """Why a message is here."""

    FAILED = "failed"  # an exception, after as many retries as its task asked for
    TIMEOUT = "timeout"  # killed at its hard time limit
    REJECTED = "rejected"  # Reject(requeue=False)
    EXPIRED = "expired"
    UNREGISTERED = "unregistered"  # no such task in this app
    UNDECODABLE = "undecodable"  # its body, or its serializer is not accepted
    INVALID = "invalid"  # a message, but none of a task
    MALFORMED = "malformed"  # no message at all
    LOST = "lost"  # its process died, and its task wants no other try
    POISON = "poison"  # the processes that ran it died, too often


# The count of losses has the last delivery already.
COUNTED = frozenset({Reason.LOST, Reason.POISON})


@dataclass(frozen=True)
class End:
    """How a task ended."""

    reason: Reason
    error: str = ""
    traceback: str = ""

    @classmethod
    def of(cls, reason: Reason, error: BaseException | None, text: str | None = None) -> Self:
        """Return the end by an exception, with its traceback as text where it has none itself."""
        if error is None:
            return cls(reason)
        if text is None:
            text = "".join(traceback.format_exception(error)) if error.__traceback__ else ""
        return cls(reason, _short(f"{type(error).__name__}: {_said_by(error)}"), _short(text))


@dataclass(frozen=True)
class Held:
    """Where a node keeps what it has taken from a queue."""

    unacked: str
    index: str
    tag: str


@dataclass(frozen=True)
class Letter:
    """What is kept of a message.

    Attributes:
        id: Of the task; for what has none, the delivery tag, or a hash.
        task: Its name.
        queue: Where it came from, and goes back to.
        node: Which one had it in the end.
        died: When it got here, in seconds since 1970, as the other times are, by the clock of Redis.
        received: When the node took it from its queue.
        started: When it began to run; None if it did not, or if that is not known.
        deliveries: How many times a node took it to run it, or to find that it cannot.
        retries: How many there had been.
        record: The message as it was in Redis, with its exchange and its routing key.
        raw: What was in the queue, or in the place of a record, if that is no message.
        raw_base64: The same, if it is no text.
        text: The letter as it is in Redis.
    """

    id: str
    reason: str
    died: float
    task: str | None = None
    queue: str | None = None
    node: str | None = None
    received: float | None = None
    started: float | None = None
    deliveries: int | None = None
    retries: int | None = None
    error: str = ""
    traceback: str = ""
    record: Any = None
    raw: str | None = None
    raw_base64: str | None = None
    text: str = field(default="", repr=False)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return a letter from what Redis has; what another release says besides is left out."""
        known = {each.name for each in fields(cls)}
        found = {name: value for name, value in json.loads(text).items() if name in known}
        return cls(**{**found, "text": text})

    @property
    def message(self) -> dict[str, Any] | None:
        """The message, if there is one."""
        return self.record[0] if self.record else None

    def revived(self, now: datetime) -> str:
        """Return the message as it goes back into its queue: as if it had never been delivered.

        Raises:
            FleetError: There is nothing that could go back.
        """
        if not (self.message and self.queue):
            raise FleetError(f"{self.id} cannot go back into a queue: it is no message.")
        message = deepcopy(self.message)
        headers = message.get("headers")
        if isinstance(headers, dict):
            headers.pop("redelivered", None)
            headers.pop(RECOVERED, None)
            if headers.get("retries"):
                headers["retries"] = 0
            if _is_past(headers.get("expires"), now):
                headers["expires"] = None  # or it would be dropped at once
        message["properties"].get("delivery_info", {}).pop("redelivered", None)
        return json.dumps(message)


@dataclass(frozen=True)
class Filter:
    """Which letters are meant; what is not said does not matter."""

    ids: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    queues: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    since: float | None = None

    def __bool__(self) -> bool:
        """Return whether anything is said."""
        return any((self.ids, self.tasks, self.queues, self.reasons, self.since is not None))

    def fits(self, letter: Letter) -> bool:
        """Return whether a letter is meant. Names of tasks may be patterns, such as `shop.*`."""
        return (
            (not self.ids or letter.id in self.ids)
            and (not self.tasks or any(fnmatchcase(letter.task or "", name) for name in self.tasks))
            and (not self.queues or letter.queue in self.queues)
            and (not self.reasons or letter.reason in self.reasons)
            and (self.since is None or letter.died >= self.since)
        )


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
        priority = self._channel._get_message_priority(message, reverse=False)
        queue = self._channel._q_for_pri(letter.queue, priority)
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
            return bool(functions.run(client, TAKE, names, words))


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
    record = "" if held else dumps([message._raw, exchange, routing_key])
    channel = message.channel
    hold = Held(channel.unacked_key, channel.unacked_index_key, message.delivery_tag)
    with channel.conn_or_acquire() as client:
        return _bury(client, letter, hold, record, needed=held)


def bury_raw(
    client: Any, raw: bytes | str, end: End, *, node: str, queue: str | None = None, held: Held | None = None
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
        return int(functions.run(client, COUNT, names, words))


@cache
def settings() -> FleetSettings:
    """Return the settings of this process, which are read for once: they are asked for with each failure."""
    return FleetSettings.from_environment()


def _bury(client: Any, letter: dict[str, Any], held: Held | None, record: str, *, needed: bool) -> bool:
    """Call the script."""
    limit, age = settings().dead_letter_limit, int(settings().dead_letter_age)
    names: list[str] = [keys.DEAD, keys.DEAD_LETTERS]
    arguments: list[Any] = [letter["id"], json.dumps(letter, default=repr), limit, age]
    if held:
        names += [keys.losses(held.tag), held.unacked, held.index]
        arguments += [held.tag, record, int(needed), 0 if letter["reason"] in COUNTED else 1]
    return bool(functions.run(client, BURY, names, arguments))


def _queue(channel: Any, exchange: str, routing_key: str) -> str | None:
    """Return the queue that a message came from: of those that it would be sent to, one consumed here."""
    found: Iterable[str] = channel._lookup(exchange, routing_key)
    queues = sorted(found, key=lambda queue: queue not in channel.active_queues)
    return queues[0] if queues else None


def _id_of_first_protocol(message: Any) -> str | None:
    """Return the task's id from a message of Celery's first protocol, which has it in its body."""
    body = message._decoded_cache
    return _text(body.get("id")) if isinstance(body, dict) else None


def _text(value: Any) -> str | None:
    """Return a text; nothing for anything else."""
    return value if isinstance(value, str) else None


def _said_by(error: BaseException) -> str:
    """Return the text of an exception, which may be one of a task's own, and have none."""
    try:
        return str(error)
    except Exception as another:
        return f"(its text cannot be read: {type(another).__name__})"


def _short(text: str) -> str:
    """Return a text without what is too much of it, which is in the middle."""
    half = LONGEST // 2
    return text if len(text) <= LONGEST else f"{text[:half]}\n[...]\n{text[-half:]}"


def _raw(raw: bytes) -> dict[str, str]:
    """Return bytes as JSON can have them."""
    try:
        return {"raw": raw.decode()}
    except UnicodeDecodeError:
        return {"raw_base64": base64.b64encode(raw).decode()}


def _is_past(expires: Any, now: datetime) -> bool:
    """Return whether a time of a message's header has passed."""
    try:
        then = datetime.fromisoformat(expires)
    except (TypeError, ValueError):
        return False
    return (then if then.tzinfo else then.replace(tzinfo=UTC)) <= now
