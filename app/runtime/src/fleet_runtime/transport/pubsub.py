# SPDX-License-Identifier: MIT
"""Reads what Redis publishes to a connection that has subscribed, and never waits for it.

kombu waits until an item is whole, without a time limit (kombu 5.7, Channel._receive_one; redis-py 8.1,
PubSub.parse_response). What wakes it may be a part of one, or of a TLS record, whose rest comes late or, if
the network has failed, never: then a node's loop stands still, or a mailbox that has a greenlet of its own,
for which the node waits as it stops.
"""

from __future__ import annotations

from queue import Empty
from typing import Any

from redis.exceptions import ConnectionError as NoConnectionError
from redis.exceptions import TimeoutError as NotThere


class NotYet(Empty):
    """No whole item has come; its rest wakes whoever watches the connection."""


def read(client: Any) -> Any:
    """Return the next item; None in place of the answer to a check of the connection.

    Args:
        client: A PubSub of redis-py.

    Raises:
        NotYet: There is none, or a part of one, or no connection now.
        NoConnectionError: The connection is lost, and closed now.
        ResponseError: Redis refuses a subscription.
    """
    connection = client.connection
    if connection is None or connection._sock is None:
        raise NotYet
    try:
        item = connection.read_response(disconnect_on_error=False, push_request=True, timeout=0)
    except NotThere:
        raise NotYet from None
    except (NoConnectionError, OSError):
        connection.disconnect()
        raise
    if client.is_health_check_response(item):
        client.health_check_response_counter -= 1
        return None
    return item
