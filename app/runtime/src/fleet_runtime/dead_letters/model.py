# SPDX-License-Identifier: MIT
"""What a dead letter is: why a message failed for good, how it ended, and what is kept of it."""

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

LONGEST = 20_000  # characters of an error or a traceback; the message itself is kept whole


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


def _is_past(expires: Any, now: datetime) -> bool:
    """Return whether a time of a message's header has passed."""
    try:
        then = datetime.fromisoformat(expires)
    except (TypeError, ValueError):
        return False
    return (then if then.tzinfo else then.replace(tzinfo=UTC)) <= now
