# SPDX-License-Identifier: MIT
"""Sends the events of tasks together, four times a second.

Celery's node sends them at each turn of its loop, so that with events each task costs half as much CPU again
(55 %, celery 5.7); a gevent node even sends each by itself.
"""

from __future__ import annotations

from typing import Any

from celery import bootsteps

EVERY = 0.25  # seconds
MOST = 500  # events that are sent at once


class Together(bootsteps.StartStopStep):  # type: ignore[misc]  # celery ships no types
    """Collects the events of a node's tasks, and sends them after EVERY seconds, or when there are MOST."""

    requires = ("celery.worker.consumer.events:Events",)

    def __init__(self, consumer: Any, **options: Any) -> None:
        """Remember the consumer, whose dispatcher is made anew with each connection."""
        super().__init__(consumer, **options)
        self._consumer = consumer
        self._waits = False

    def start(self, consumer: Any) -> None:
        """Let the dispatcher of a new connection collect events; where events are off, there is none."""
        self._waits = False  # what waited may have gone with the connection
        events = consumer.event_dispatcher
        if events is None:  # there are none, and no heartbeats
            return
        events.buffer_group, events.buffer_limit = frozenset({"task"}), MOST
        events.on_send_buffered = self._on_event

    def _on_event(self) -> None:
        """Ask for one sending of what is collected; called with each event, by any thread."""
        if not self._waits:
            self._waits = True
            hub = self._consumer.hub
            if hub is None:
                self._begin()
            else:
                hub.call_soon(self._begin)

    def _begin(self) -> None:
        """Set the timer, in the thread of the node's loop."""
        self._consumer.timer.call_after(EVERY, self._send)

    def _send(self) -> None:
        """Send what is collected, in one message."""
        self._waits = False
        events = self._consumer.event_dispatcher
        if events is not None:
            events.flush()
