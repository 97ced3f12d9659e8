# SPDX-License-Identifier: MIT
"""Connections of their own for what must not wait for the node's, and what such a connection must know."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery import Celery

SHORTEST_TIMEOUT_S = 1.0


def connect(app: Celery, timeout: float) -> Any:
    """Return a connection, apart from all others, that waits no longer than this for an answer."""
    options = {
        "socket_timeout": max(timeout, SHORTEST_TIMEOUT_S),
        "socket_connect_timeout": max(timeout, SHORTEST_TIMEOUT_S),
    }
    connection = app.connection_for_read(transport_options=options)
    try:
        connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0)
    except BaseException:
        connection.release()
        raise
    return connection


@contextmanager
def client(app: Celery, timeout: float) -> Iterator[Any]:
    """Yield a client of Redis on a connection of its own."""
    with connect(app, timeout) as connection, connection.default_channel.conn_or_acquire() as client:
        yield client


def declare_exchanges(app: Celery, channel: Any) -> None:
    """Tell a channel of what types the app's exchanges are, which decides who gets a message.

    Asks no Redis.
    """
    for queue in app.amqp.queues.values():
        if queue.exchange is not None and queue.exchange.name:
            queue.exchange(channel).declare()
