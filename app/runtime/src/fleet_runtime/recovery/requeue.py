# SPDX-License-Identifier: MIT
"""Requeues the unacknowledged messages of a node that died.

A script moves each message from the hash of unacknowledged messages to its queue in one step. So a message
moves once, even if several nodes try, and wherever one of them is interrupted.

The node itself requeues them when it starts again, or another node does when the lease has ended. The unit of
the node does it before either, once its processes are gone: `python -m fleet_runtime.recovery.requeue`. That
needs no app and does not import Celery, so it is much faster than the start of a node.
"""

from __future__ import annotations

import json
import logging
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from kombu import Connection
from kombu.utils.encoding import bytes_to_str
from redis.exceptions import RedisError, ResponseError

from fleet_runtime.broker import functions, keys, scripts
from fleet_runtime.broker.unacked import UnackedRef
from fleet_runtime.errors import FleetError
from fleet_runtime.messages.headers import RECOVERED
from fleet_runtime.settings import FleetSettings
from fleet_runtime.transport.qos import redelivered

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

logger = logging.getLogger(__name__)

# Bytes that one call of the script moves at most: Redis does nothing else meanwhile.
BATCH_BYTES = 1_000_000
# For the unit of a dead node: seconds to wait for each reply of Redis, and for all messages. The next start
# of the node waits for the unit, and requeues the rest.
UNIT_TIMEOUT_S, UNIT_DURATION_S = 2.0, 5.0


class Message(NamedTuple):
    """A message with the keys of its queues in Redis."""

    tag: str
    text: str
    queues: list[str]


def forget(client: Any, node: str, *, if_dead: bool) -> bool:
    """Delete all keys of a node, unless it has unacknowledged messages.

    Args:
        client: A client of redis-py.
        node: Name of the node.
        if_dead: Whether to delete nothing if the lease of the node has not ended.

    Returns:
        Whether the keys are deleted.
    """
    own = (keys.unacked, keys.unacked_index, keys.unacked_mutex, keys.self_test_queue)
    names = [keys.LEASES, keys.NODES, *(key(node) for key in own)]
    return bool(functions.run(client, scripts.FORGET_NODE, names, [node, int(if_dead)]))


@dataclass
class UnackedRestorer:
    """Requeues the unacknowledged messages of a node.

    Attributes:
        channel: A channel of kombu that knows the queues of the app.
        node: The node that holds the messages.
        step: Messages that one call of the script moves.
        keep: Delivery tags of messages that stay.
        if_dead: Stop as soon as the node has a lease.
        died: Mark the messages as recovered, so that the crash is counted.
        until: When to stop, by the monotonic clock.
        on_unroutable: Called with the tag, the record and the error of a message that has no queue. Without
            it, such a message stays.
    """

    channel: Any
    node: str
    step: int
    keep: Collection[str] = ()
    if_dead: bool = True
    died: bool = True
    until: float = float("inf")
    on_unroutable: Callable[[str, bytes, Exception], None] | None = None

    def run(self) -> int:
        """Requeue the messages, and return how many."""
        moved = 0
        for messages in _batches(self._messages(), self.step):
            count = self._move(messages)
            if count < 0:
                logger.info("%s is alive again, and keeps the rest of its messages.", self.node)
                break
            moved += count
            if time.monotonic() > self.until:
                break
        return moved

    def _messages(self) -> Iterator[Message]:
        """Yield the messages that can be requeued."""
        with self.channel.conn_or_acquire() as client:
            cursor = -1
            while cursor:
                cursor, records = client.hscan(keys.unacked(self.node), max(cursor, 0), count=self.step)
                for tag, record in records.items():
                    name = bytes_to_str(tag)
                    if name not in self.keep and (message := self._parse(name, record)):
                        yield message

    def _parse(self, tag: str, record: bytes) -> Message | None:
        """Return the message of a record; None if it cannot be parsed, or has no queue."""
        try:
            headers = {RECOVERED: True} if self.died else {}
            # A broadcast was for this node alone, and in no list.
            return Message(tag, *redelivered(self.channel, record, fanout=False, **headers))
        except (OSError, RedisError):
            raise
        except Exception as error:
            if self.on_unroutable:
                self.on_unroutable(tag, record, error)
            return None

    def _move(self, messages: list[Message]) -> int:
        """Move messages with one call of the script, or one by one if Redis refuses one of them."""
        names = [keys.LEASES, keys.unacked(self.node), keys.unacked_index(self.node)]
        arguments: list[Any] = [self.node, int(self.if_dead)]
        for message in messages:
            names += [queue for queue in message.queues if queue not in names]
            indexes = [names.index(queue) + 1 for queue in message.queues]
            arguments += [message.tag, message.text, len(indexes), *indexes]
        try:
            with self.channel.conn_or_acquire() as client:
                return int(functions.run(client, scripts.REQUEUE_UNACKED, names, arguments))
        except ResponseError as error:
            if len(messages) == 1:
                logger.error("A message of %s for %s cannot be requeued: %s",
                             self.node, ", ".join(messages[0].queues), error)  # fmt: skip
                return 0
        moved = 0
        for message in messages:
            count = self._move([message])
            if count < 0:
                return count
            moved += count
        return moved


def restore_unacked(channel: Any, node: str, finder: str, settings: FleetSettings, **options: Any) -> int:
    """Requeue the unacknowledged messages of a node; a message that has no queue becomes a dead letter.

    Args:
        channel: A channel that knows the exchanges of the app.
        node: The node that holds the messages.
        finder: The node that requeues them.
        settings: Have the number of messages of one step, and the retention of dead letters.
        options: Other attributes of `UnackedRestorer`.

    Returns:
        How many messages were requeued.
    """

    def move_unroutable(tag: str, record: bytes, error: Exception) -> None:
        """Move a message to the dead letters."""
        # Imported when there is such a message: what the unit of a node runs must start fast.
        from fleet_runtime.dead_letters import store
        from fleet_runtime.dead_letters.model import End, Reason
        from fleet_runtime.logging import redact

        what = redact.described(error)  # no more of it, because the error may quote the record
        logger.error("The message %s of %s goes to the dead letters: %s", tag, node, what)
        held = UnackedRef(keys.unacked(node), keys.unacked_index(node), tag)
        try:
            with channel.conn_or_acquire() as client:
                end = End.of(Reason.UNDECODABLE, error)
                retention = store.Retention.of(settings)
                store.move_item(client, record, end, node=finder, retention=retention, held=held)
        except ResponseError as refusal:
            logger.error("It cannot be moved there, and stays where it is: %s", refusal)

    options = {"on_unroutable": move_unroutable, **options}
    return UnackedRestorer(channel, node, settings.give_back_step, **options).run()


def main() -> None:
    """Requeue the messages of the node of this unit, whose processes are gone.

    A failure is only printed, for the journal: the node requeues the rest when it starts.
    """
    try:
        settings = FleetSettings.from_environment()
        if not settings.node:
            raise FleetError("FLEET_NODE is not set.")
        moved = _restore_without_app(settings)
    except Exception as error:
        print(f"<4>The messages of this node are requeued when it starts: {error}")
        return
    if moved:
        print(f"<4>Requeued what {settings.node} held when it died: {moved} messages.")


def _restore_without_app(settings: FleetSettings) -> int:
    """Requeue the messages of a node by the facts that it has published, and return how many."""
    node = settings.node
    options = {
        "ack_emulation": False,
        "socket_timeout": UNIT_TIMEOUT_S,
        "socket_connect_timeout": UNIT_TIMEOUT_S,
    }
    tls = settings.broker_tls or None
    with Connection(settings.broker_url, ssl=tls, transport_options=options) as connection:
        connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0)
        channel = connection.default_channel
        with channel.conn_or_acquire() as client:
            facts = json.loads(client.hget(keys.NODES, node) or "{}")
        if facts.get("host", "") not in ("", socket.gethostname()):
            return 0  # this unit was refused: another host has a node of its name, which may be alive
        channel.priority_steps = facts.get("priority_steps", channel.priority_steps)  # those of the app
        for exchange, kind in facts.get("exchanges", {}).items():
            channel.exchange_declare(exchange, kind)
        until = time.monotonic() + UNIT_DURATION_S
        return UnackedRestorer(channel, node, settings.give_back_step, if_dead=False, until=until).run()


def _batches(messages: Iterable[Message], count: int) -> Iterator[list[Message]]:
    """Yield lists of at most `count` messages, and of at most BATCH_BYTES unless one message is larger."""
    batch: list[Message] = []
    size = 0
    for message in messages:
        if batch and (len(batch) >= count or size + len(message.text) > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(message)
        size += len(message.text)
    if batch:
        yield batch


if __name__ == "__main__":
    main()
