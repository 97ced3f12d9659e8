# SPDX-License-Identifier: MIT
"""Connections to Redis that recovery opens beside those of the consumer."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery import Celery

# A shorter timeout would fail on a host that is only busy.
SHORTEST_TIMEOUT_S = 1.0


def connect(app: Celery, timeout: float) -> Any:
    """Return a new connection to the broker.

    Args:
        app: The app.
        timeout: Seconds to wait for the connection, and for each reply; at least SHORTEST_TIMEOUT_S.

    Raises:
        OperationalError: The broker does not answer.
    """
    seconds = max(timeout, SHORTEST_TIMEOUT_S)
    options = {"socket_timeout": seconds, "socket_connect_timeout": seconds}
    connection = app.connection_for_read(transport_options=options)
    try:
        connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0)
    except BaseException:
        connection.release()
        raise
    return connection


@contextmanager
def client(app: Celery, timeout: float) -> Iterator[Any]:
    """Yield a client of redis-py on a new connection; see `connect`."""
    with connect(app, timeout) as connection, connection.default_channel.conn_or_acquire() as client:
        yield client


def declare_exchanges(app: Celery, channel: Any) -> None:
    """Tell a channel the types of the app's exchanges, by which it routes. Sends nothing to Redis."""
    for queue in app.amqp.queues.values():
        if queue.exchange is not None and queue.exchange.name:
            queue.exchange(channel).declare()
