"""Puts the runtime's own transport and result backend in the place of Celery's, where they are known to work.

The transport is named by Celery's setting `broker_transport`. With several URLs that would not do: as kombu
tries the next one, it goes by its scheme (kombu 5.7, Connection.switch). So there the URLs get the runtime's
own schemes, which are `fleet-redis`, `fleet-rediss` and `fleet-sentinel`. A single URL keeps its own, because
programs that tasks start find it in their environment, and they may know no others.
"""

from __future__ import annotations

import inspect
import logging
from typing import TYPE_CHECKING

import billiard
import celery
import kombu
from celery.concurrency import prefork
from kombu.transport import TRANSPORT_ALIASES
from kombu.utils.imports import symbol_by_name

from fleet_runtime.compat.versions import is_known

if TYPE_CHECKING:
    from collections.abc import Mapping

    from celery import Celery

logger = logging.getLogger(__name__)

PREFIX = "fleet-"
TRANSPORTS = {
    "redis": "fleet_runtime.transport.channel:Transport",
    "rediss": "fleet_runtime.transport.channel:Transport",
    "sentinel": "fleet_runtime.transport.channel:SentinelTransport",
}
BACKENDS = {
    "redis": "fleet_runtime.worker.results:RedisBackend",
    "rediss": "fleet_runtime.worker.results:RedisBackend",
    "sentinel": "fleet_runtime.worker.results:SentinelBackend",
}
# Those of a node, whose Redis user may call the function that stores a result.
STORING_BACKENDS = {
    "redis": "fleet_runtime.worker.results:StoringRedisBackend",
    "rediss": "fleet_runtime.worker.results:StoringRedisBackend",
    "sentinel": "fleet_runtime.worker.results:StoringSentinelBackend",
}
KOMBU_STAYS = "This node takes messages by kombu's own transport, and may lose one when it dies."
CELERY_STAYS = (
    "This process uses Celery's own result backend, which stores a result in two round trips, and may miss "
    "one that it waits for over TLS."
)
POOL_STAYS = "This node hands tasks to its processes by Celery's own pool, with more CPU for each."

# The parameters of what the transport overrides, or calls where kombu and redis-py do not expect it.
PARAMETERS = {
    "kombu.transport.redis:Channel": {
        "_connparams": "self asynchronous",
        "conn_or_acquire": "self client",
        "basic_consume": "self queue args kwargs",
        "_basic_cancel": "self consumer_tag",
        "_queue_bind": "self exchange routing_key pattern queue",
        "_size": "self queue",
        "_receive": "self",
        "_receive_one": "self c",
        "close": "self",
        "_close_clients": "self",
        "_on_connection_disconnect": "self connection",
        "_create_client": "self asynchronous",
        "_q_for_pri": "self queue pri",
        "_get_message_priority": "self message reverse",
        "_lookup": "self exchange routing_key default",
        "maybe_refresh_binding_expiry": "self",
    },
    "kombu.transport.redis:SentinelChannel": {"_sentinel_managed_pool": "self asynchronous"},
    "kombu.transport.redis:QoS": {
        "append": "self message delivery_tag",
        "ack": "self delivery_tag",
        "reject": "self delivery_tag requeue",
        "restore_by_tag": "self tag client leftmost",
        "restore_visible": "self start num interval",
    },
    "kombu.transport.redis:MultiChannelPoller": {
        "get": "self callback timeout",
        "handle_event": "self fileno event",
        "on_poll_start": "self",
        "on_readable": "self fileno",
        "maybe_restore_messages": "self",
        "maybe_check_brpop_health": "self",
        "_register": "self channel client type",
        "_register_LISTEN": "self channel",
        "_client_registered": "self channel client cmd",
    },
    "kombu.transport.redis:Transport": {"register_with_event_loop": "self connection loop"},
    "redis.connection:AbstractConnection": {
        "read_response": "self disable_decoding timeout disconnect_on_error push_request",
        "can_read": "self timeout",
        "send_packed_command": "self command check_health",
        "pack_commands": "self commands",
    },
    "redis._parsers.base:PushNotificationsParser": {
        "set_invalidation_push_handler": "self invalidation_push_handler_func"
    },
}

# The same of the pool.
POOL = "fleet_runtime.prefork.pool:Pool"
STOCK_POOL = "fleet_runtime.prefork.time_limits:StockPool"
POOL_PARAMETERS = {
    "celery.concurrency.asynpool:AsynPool": {
        "_create_write_handlers": "self hub pack dumps protocol",
        "_create_timelimit_handlers": "self hub",
        "_on_soft_timeout": "self job soft hard hub",
        "_on_hard_timeout": "self job",
        "flush": "self",
        "process_flush_queues": "self proc",
        "destroy_queues": "self queues proc",
        "_worker_active": "self worker",
    },
    "celery.concurrency.asynpool:ResultHandler": {
        "_make_process_result": "self hub",
        "_finish_partial_read": "self fd proc",
    },
    "celery.concurrency.asynpool:Worker": {"on_loop_start": "self pid", "_make_recv_method": "self conn"},
    "billiard.connection:Connection": {"_send": "self buf write"},
}


def select_transport(url: str) -> tuple[str, str | None]:
    """Return a broker's URL, or several, and what `broker_transport` is to be.

    Both stay as Celery has them if this kombu is none that the transport was tested with.
    """
    urls = url.split(";")
    schemes = {one.partition("://")[0] for one in urls}
    if others := schemes - TRANSPORTS.keys():
        logger.warning("%s There is none for %s.", KOMBU_STAYS, ", ".join(sorted(others)))
        return url, None
    if not is_known(kombu, KOMBU_STAYS) or _changed(PARAMETERS, KOMBU_STAYS):
        return url, None
    TRANSPORT_ALIASES.update({PREFIX + scheme: path for scheme, path in TRANSPORTS.items()})
    own = ";".join(PREFIX + one for one in urls) if len(urls) > 1 else url
    return own, TRANSPORTS[schemes.pop()]


def without_prefix(url: str) -> str:
    """Return a broker's URL with the scheme that kombu knows."""
    return url.removeprefix(PREFIX)


def select_backend(app: Celery, *, stores: bool) -> None:
    """Let an app wait for results by the runtime's own backend.

    Args:
        app: The app.
        stores: Whether this process stores results by a script, as a node does.
    """
    if is_known(celery, CELERY_STAYS):
        backends = STORING_BACKENDS if stores else BACKENDS
        app.loader.override_backends = {**app.loader.override_backends, **backends}


def select_pool(*, own: bool = True) -> None:
    """Let a node with processes run them by the runtime's own pool, or by Celery's with mended time limits.

    Args:
        own: Whether to select the runtime's own.
    """
    known = is_known(celery, POOL_STAYS) and is_known(billiard, POOL_STAYS)
    if known and not _changed(POOL_PARAMETERS, POOL_STAYS):
        prefork.TaskPool.Pool = symbol_by_name(POOL if own else STOCK_POOL)


def _changed(expected: Mapping[str, Mapping[str, str]], otherwise: str) -> bool:
    """Return whether something that the runtime relies on is not what it was tested with; and say so."""
    for place, functions in expected.items():
        for name, parameters in functions.items():
            function = inspect.unwrap(getattr(symbol_by_name(place), name, _changed))
            if " ".join(inspect.signature(function).parameters) != parameters:
                logger.warning("%s Somebody has changed %s.%s.", otherwise, place, name)
                return True
    return False
