# SPDX-License-Identifier: MIT
"""Reads what Redis publishes to a subscribed connection, without waiting for it.

kombu waits until an item is whole, without a time limit (kombu 5.7, Channel._receive_one; redis-py 8.1,
PubSub.parse_response). A part of an item, or of a TLS record, wakes it. The rest comes late, or never if the
network has failed: then the loop of a node stands still, or a mailbox with a greenlet of its own, for which
the node waits as it stops.
"""

from __future__ import annotations

from queue import Empty
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from fleet_runtime.compat import redis_reads


class NotYet(Empty):
    """No whole item has come. Its rest wakes the poller of the connection."""


def read(client: Any) -> Any:
    """Return the next item; None in place of the reply to a health check.

    Args:
        client: A PubSub of redis-py.

    Raises:
        NotYet: There is no item, a part of one, or no connection now.
        ConnectionError: The connection is lost. It is closed now.
        ResponseError: Redis refuses a subscription.
    """
    connection = client.connection
    if connection is None or connection._sock is None:
        raise NotYet
    try:
        item = redis_reads.read(connection, timeout=0)
    except RedisTimeoutError:
        raise NotYet from None
    except (RedisConnectionError, OSError):
        connection.disconnect()
        raise
    if client.is_health_check_response(item):
        client.health_check_response_counter -= 1
        return None
    return item
