# SPDX-License-Identifier: MIT
"""Registers the runtime's transport, result backend and pool in place of Celery's, on supported versions.

Celery's setting `broker_transport` names the transport. That does not work with several URLs: when kombu
tries the next one, it uses the scheme of that URL (kombu 5.7, Connection.switch). So several URLs get the
runtime's own schemes, which are `fleet-redis`, `fleet-rediss` and `fleet-sentinel`. A single URL keeps its
scheme: programs that tasks start find the URL in their environment, and may not know another scheme.
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
# The backends of a node, whose Redis user may call the function that stores a result.
STORING_BACKENDS = {
    "redis": "fleet_runtime.worker.results:StoringRedisBackend",
    "rediss": "fleet_runtime.worker.results:StoringRedisBackend",
    "sentinel": "fleet_runtime.worker.results:StoringSentinelBackend",
}
KOMBU_STAYS = "This node uses kombu's own transport, and may lose a message when it dies."
CELERY_STAYS = (
    "This process uses Celery's own result backend, which stores a result in two round trips, and may miss "
    "a result that it waits for over TLS."
)
POOL_STAYS = "This node uses Celery's own pool, which needs more CPU for each task."

# The prefork pools: the runtime's, and Celery's with patched time limits.
POOL = "fleet_runtime.prefork.pool:FastAsynPool"
STOCK_POOL = "fleet_runtime.prefork.time_limits:StockAsynPool"


def select_transport(url: str) -> tuple[str, str | None]:
    """Return the URL of the broker, and the value of `broker_transport`.

    Without support for the version of kombu, the URL is unchanged, and the value is None.

    Args:
        url: The URL, or several, separated by semicolons.
    """
    urls = url.split(";")
    schemes = {each.partition("://")[0] for each in urls}
    if others := schemes - TRANSPORTS.keys():
        logger.warning("%s There is none for %s.", KOMBU_STAYS, ", ".join(sorted(others)))
        return url, None
    if not (is_known(kombu, KOMBU_STAYS) and _is_verified(Feature.TRANSPORT, KOMBU_STAYS)):
        return url, None
    TRANSPORT_ALIASES.update({PREFIX + scheme: path for scheme, path in TRANSPORTS.items()})
    prefixed = ";".join(PREFIX + each for each in urls) if len(urls) > 1 else url
    return prefixed, TRANSPORTS[schemes.pop()]


def select_backend(app: Celery, *, stores: bool) -> None:
    """Register the runtime's result backend with an app.

    Args:
        app: The app.
        stores: Whether this process stores results with a script, as a node does.
    """
    if is_known(celery, CELERY_STAYS):
        backends = STORING_BACKENDS if stores else BACKENDS
        app.loader.override_backends = {**app.loader.override_backends, **backends}


def select_pool(*, own: bool = True) -> None:
    """Select the prefork pool of a node: the runtime's, or Celery's with patched time limits.

    Args:
        own: Whether to select the runtime's pool.
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
