# SPDX-License-Identifier: MIT
"""The data of a dead letter: why and how a message failed for good, and what is kept of it."""

from __future__ import annotations

import json
import traceback
from copy import deepcopy
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any, Self

from fleet_runtime.errors import FleetError
from fleet_runtime.messages.headers import RECOVERED

# Longest error text or traceback that is kept, in characters. The message itself is kept whole.
TEXT_LIMIT = 20_000


class Reason(StrEnum):
    """Why a message became a dead letter."""

    FAILED = "failed"  # the task raised an exception, and has no retries left
    TIMEOUT = "timeout"  # the task was killed at its hard time limit
    REJECTED = "rejected"  # the task raised Reject(requeue=False)
    EXPIRED = "expired"
    UNREGISTERED = "unregistered"  # the app has no such task
    UNDECODABLE = "undecodable"  # the body cannot be decoded, or its serializer is not accepted
    INVALID = "invalid"  # a message, but not one of a task
    MALFORMED = "malformed"  # not a message at all
    LOST = "lost"  # the process crashed, and the task is not to be redelivered
    POISON = "poison"  # the task has crashed its process too often


# Reasons for which the crash count already includes the last delivery.
COUNTED_REASONS = frozenset({Reason.LOST, Reason.POISON})


@dataclass(frozen=True)
class End:
    """How a task ended."""

    reason: Reason
    error: str = ""
    traceback: str = ""

    @classmethod
    def of(cls, reason: Reason, error: BaseException | None, text: str | None = None) -> Self:
        """Return the end of a task by an exception.

        Args:
            reason: Why the message becomes a dead letter.
            error: The exception, if there is one.
            text: The traceback. By default it is taken from the exception.
        """
        if error is None:
            return cls(reason)
        if text is None:
            text = "".join(traceback.format_exception(error)) if error.__traceback__ else ""
        return cls(reason, _shorten(f"{type(error).__name__}: {_text_of(error)}"), _shorten(text))


@dataclass(frozen=True)
class DeadLetter:
    """The record of a message that failed for good.

    All times are in seconds since 1970, by the clock of Redis.

    Attributes:
        id: Id of the task. Without one: the delivery tag, or a hash of the item.
        reason: See `Reason`.
        died: When it became a dead letter.
        task: Name of the task.
        queue: The queue that it came from, and that a requeue puts it into.
        node: The node that held it last.
        received: When the node fetched it from its queue.
        started: When it began to run; None if it did not, or if that is not known.
        deliveries: How many times a node fetched it, whether it could be run or not.
        retries: How many retries the task had.
        error: The exception, as one line of text.
        traceback: The traceback of the exception.
        record: The message as Redis had it, with its exchange and its routing key.
        raw: The item of the queue or of the record, if it is not a message.
        raw_base64: The same, if it is not text.
        text: The dead letter as Redis has it.
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
        """Return a dead letter from its JSON in Redis. Fields that another release added are ignored."""
        known = {each.name for each in fields(cls)}
        values = {name: value for name, value in json.loads(text).items() if name in known}
        return cls(**{**values, "text": text})

    @property
    def message(self) -> dict[str, Any] | None:
        """The message; None if the item was not one."""
        return self.record[0] if self.record else None

    def revived(self, now: datetime) -> str:
        """Return the message as JSON for its queue, as if it had never been delivered.

        Args:
            now: The current time. An expiry before it is removed, or the message would be dropped at once.

        Raises:
            FleetError: The dead letter has no message.
        """
        if not (self.message and self.queue):
            raise FleetError(f"{self.id} cannot be requeued: it is not a message.")
        message = deepcopy(self.message)
        headers = message.get("headers")
        if isinstance(headers, dict):
            headers.pop("redelivered", None)
            headers.pop(RECOVERED, None)
            if headers.get("retries"):
                headers["retries"] = 0
            if _is_past(headers.get("expires"), now):
                headers["expires"] = None
        message["properties"].get("delivery_info", {}).pop("redelivered", None)
        return json.dumps(message)


@dataclass(frozen=True)
class Filter:
    """Which dead letters to select. An empty field selects all.

    Attributes:
        ids: Ids of tasks.
        tasks: Names of tasks, or patterns such as `shop.*`.
        queues: Names of queues.
        reasons: Values of `Reason`.
        since: Earliest time, in seconds since 1970.
    """

    ids: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    queues: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    since: float | None = None

    def __bool__(self) -> bool:
        """Return whether any field is set."""
        return any((self.ids, self.tasks, self.queues, self.reasons, self.since is not None))

    def matches(self, letter: DeadLetter) -> bool:
        """Return whether a dead letter is selected."""
        return (
            (not self.ids or letter.id in self.ids)
            and (not self.tasks or any(fnmatchcase(letter.task or "", name) for name in self.tasks))
            and (not self.queues or letter.queue in self.queues)
            and (not self.reasons or letter.reason in self.reasons)
            and (self.since is None or letter.died >= self.since)
        )


def _text_of(error: BaseException) -> str:
    """Return the text of an exception. An exception of a task may fail to give one."""
    try:
        return str(error)
    except Exception as another:
        return f"(its text cannot be read: {type(another).__name__})"


def _shorten(text: str) -> str:
    """Return a text with its middle left out, if it is longer than TEXT_LIMIT."""
    half = TEXT_LIMIT // 2
    return text if len(text) <= TEXT_LIMIT else f"{text[:half]}\n[...]\n{text[-half:]}"


def _is_past(expires: Any, now: datetime) -> bool:
    """Return whether the time in an `expires` header has passed."""
    try:
        time = datetime.fromisoformat(expires)
    except (TypeError, ValueError):
        return False
    return (time if time.tzinfo else time.replace(tzinfo=UTC)) <= now
