# SPDX-License-Identifier: MIT
"""Carries the in-flight messages of a node over to a new connection at the level `standard`.

There kombu's transport and QoS are its own, so this uses public names of kombu only. A message that moves to
another channel counts as prefetched there, and is acknowledged through it. An acknowledgement that cannot be
sent is remembered, and sent on the next connection.
"""

from __future__ import annotations

import logging
from functools import wraps
from typing import TYPE_CHECKING, Any, NamedTuple

from kombu.transport import virtual

from fleet_runtime.recovery.inflight import InFlight

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)


class Unsettled(NamedTuple):
    """A message that Celery has acknowledged or rejected, and Redis may not know of it.

    Attributes:
        message: The message.
        requeue: Whether it is requeued, if it is rejected; None if it is acknowledged.
    """

    message: Any
    requeue: bool | None

    def settle(self) -> None:
        """Acknowledge or reject it, unless that is done."""
        if self.message.acknowledged:
            return
        if self.requeue is None:
            self.message.ack()
        else:
            self.message.reject(requeue=self.requeue)


class StandardInFlight(InFlight):
    """The messages that this node has fetched and not acknowledged, at the level `standard`."""

    unsettled: dict[str, Unsettled]

    def adopt(self, channel: Any) -> set[str]:
        """Acknowledge messages through this channel from now on.

        Returns:
            The delivery tags of messages that this process runs or has yet to acknowledge, which must not be
            requeued.
        """
        self._track_received()
        self.qos = channel.qos
        self.qos.restore_at_shutdown = False  # until the node stops: kombu would requeue what still runs here
        messages = {request.message.delivery_tag: request.message for request in self._running()}
        messages |= {tag: unsettled.message for tag, unsettled in tuple(self.unsettled.items())}
        for tag, message in messages.items():
            message.channel = channel
            # It counts as prefetched. It is not recorded again: what was requeued meanwhile would come back
            # once more.
            virtual.QoS.append(self.qos, message, tag)
        self.settle()
        return set(messages)

    def settling(self, strategy: Callable[..., Any]) -> Callable[..., Any]:
        """Return a strategy whose requests are acknowledged and rejected here."""

        @wraps(strategy)
        def take(message: Any, body: Any, ack: Any, reject: Any, callbacks: Any, **options: Any) -> Any:
            def on_ack(log: Any, errors: Any) -> None:
                self._settle_soon(Unsettled(message, None))

            def on_reject(log: Any, errors: Any, requeue: bool = False) -> None:
                self._settle_soon(Unsettled(message, requeue))

            return strategy(message, body, on_ack, on_reject, callbacks, **options)

        return take

    def settle(self) -> None:
        """Acknowledge or reject all messages that wait for it."""
        for tag in tuple(self.unsettled):
            self._settle(tag)

    def on_stop(self) -> None:
        """Let kombu requeue unacknowledged messages when the channel is closed, but only if the node stops.

        If an error ends the node, they are requeued as messages of a dead node, so that the crash is counted.
        """
        if self.qos is not None:
            self.qos.restore_at_shutdown = not (self.crashed or self.goes_on())

    def record(self, channel: Any) -> None:
        """Record nothing: kombu records each message as it delivers it."""

    def unacked(self) -> list[Any]:
        """Return the unacknowledged messages of this node: of tasks that run, wait, or have an ETA."""
        return [request.message for request in {*self.active(), *self.unstarted()}]

    def _settle_soon(self, unsettled: Unsettled) -> None:
        """Settle a message in the thread of the node's loop; any thread may call this."""
        tag = unsettled.message.delivery_tag
        self.unsettled[tag] = unsettled  # before Celery takes the request for acknowledged
        self._consumer.call_soon_ack(self._settle, tag)

    def _settle(self, tag: str) -> None:
        """Settle a message, unless that is done. If it fails, the next heartbeat or connection tries it."""
        if (unsettled := self.unsettled.get(tag)) is None:
            return
        try:
            unsettled.settle()
        except Exception as error:  # of a closed channel, kombu raises an AttributeError, too
            logger.warning("The message %s cannot be acknowledged now, and will be later: %r", tag, error)
            return
        if self.unsettled.get(tag) is unsettled:
            del self.unsettled[tag]
