# SPDX-License-Identifier: MIT
"""Puts the runtime's own transport and result backend in the place of Celery's, where they are known to work.

The transport is named by Celery's setting `broker_transport`. With several URLs that would not do: as kombu
tries the next one, it goes by its scheme (kombu 5.7, Connection.switch). So there the URLs get the runtime's
own schemes, which are `fleet-redis`, `fleet-rediss` and `fleet-sentinel`. A single URL keeps its own, because
programs that tasks start find it in their environment, and they may know no others.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import billiard
import celery
import kombu
from celery.concurrency import prefork
from kombu.transport import TRANSPORT_ALIASES
from kombu.utils.imports import symbol_by_name

from fleet_runtime.broker.schemes import PREFIX
from fleet_runtime.compat.surface import Feature, first_change
from fleet_runtime.compat.versions import is_known

if TYPE_CHECKING:
    from celery import Celery

logger = logging.getLogger(__name__)

TRANSPORTS = {
    "redis": "fleet_runtime.worker.transports:NodeTransport",
    "rediss": "fleet_runtime.worker.transports:NodeTransport",
    "sentinel": "fleet_runtime.worker.transports:NodeSentinelTransport",
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

# The pools of processes: the runtime's own, and Celery's with mended time limits.
POOL = "fleet_runtime.prefork.pool:Pool"
STOCK_POOL = "fleet_runtime.prefork.time_limits:StockPool"


def select_transport(url: str) -> tuple[str, str | None]:
    """Return a broker's URL, or several, and what `broker_transport` is to be.

    Both stay as Celery has them if this kombu is none that the transport was tested with.
    """
    urls = url.split(";")
    schemes = {one.partition("://")[0] for one in urls}
    if others := schemes - TRANSPORTS.keys():
        logger.warning("%s There is none for %s.", KOMBU_STAYS, ", ".join(sorted(others)))
        return url, None
    if not (is_known(kombu, KOMBU_STAYS) and _is_verified(Feature.TRANSPORT, KOMBU_STAYS)):
        return url, None
    TRANSPORT_ALIASES.update({PREFIX + scheme: path for scheme, path in TRANSPORTS.items()})
    own = ";".join(PREFIX + one for one in urls) if len(urls) > 1 else url
    return own, TRANSPORTS[schemes.pop()]


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
    if known and _is_verified(Feature.POOL, POOL_STAYS):
        prefork.TaskPool.Pool = symbol_by_name(POOL if own else STOCK_POOL)


def _is_verified(feature: Feature, otherwise: str) -> bool:
    """Return whether all names that a feature relies on are as verified; if one is not, log which."""
    change = first_change(feature)
    if change is not None:
        logger.warning("%s Somebody has changed %s.", otherwise, change)
    return change is None
