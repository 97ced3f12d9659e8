"""Lets a node prove that it works: for a while it consumes from a queue of its own, too.

The broker's queues belong to all nodes, so a task in one of them says nothing about this node.
"""

# Celery ships no types.
# mypy: disable-error-code="untyped-decorator"
from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery.worker.control import control_command, ok
from kombu import Exchange, Queue

from fleet_runtime import keys

if TYPE_CHECKING:
    from celery.worker.consumer import Consumer

LONGEST = 60.0  # seconds after which a node stops by itself, if whoever asked is gone


@control_command()
def fleet_listen(state: Any, **_: Any) -> dict[str, str]:
    """Consume from the queue of this node's own."""
    state.consumer.call_soon(_listen, state.consumer)
    return ok("listens")  # type: ignore[no-any-return]


@control_command()
def fleet_unlisten(state: Any, **_: Any) -> dict[str, str]:
    """Consume from it no more."""
    state.consumer.call_soon(_unlisten, state.consumer)
    return ok("listens no more")  # type: ignore[no-any-return]


def _listen(consumer: Consumer) -> None:
    """Begin, with nothing declared: no exchange leads to it, and no trace of it stays."""
    name = keys.proofs(consumer.hostname)
    if consumer.task_consumer is None or consumer.task_consumer.consuming_from(name):
        return
    consumer.task_consumer.add_queue(Queue(name, Exchange(""), routing_key=name, no_declare=True))
    consumer.task_consumer.consume()
    consumer.timer.call_after(LONGEST, _unlisten, (consumer,))


def _unlisten(consumer: Consumer) -> None:
    """End; with another connection it has ended already."""
    if consumer.task_consumer is not None:
        consumer.task_consumer.cancel_by_queue(keys.proofs(consumer.hostname))
