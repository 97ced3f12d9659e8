# SPDX-License-Identifier: MIT
"""Registers the runtime's transport, result backend and pool in place of Celery's, at the level `full`.

Celery's setting `broker_transport` names the transport. That does not work with several URLs: when kombu
tries the next one, it uses the scheme of that URL (kombu 5.7, Connection.switch). So several URLs get the
runtime's own schemes, which are `fleet-redis`, `fleet-rediss` and `fleet-sentinel`. A single URL keeps its
scheme: programs that tasks start find the URL in their environment, and may not know another scheme.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery.concurrency import prefork
from kombu.transport import TRANSPORT_ALIASES
from kombu.utils.imports import symbol_by_name

from fleet_runtime.broker.schemes import PREFIX
from fleet_runtime.compat import surface
from fleet_runtime.compat.surface import Feature
from fleet_runtime.errors import FleetError

if TYPE_CHECKING:
    from celery import Celery

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

POOL = "fleet_runtime.prefork.pool:FastAsynPool"


def select_transport(url: str) -> tuple[str, str]:
    """Return the URL of the broker, and the value of `broker_transport`.

    Args:
        url: The URL, or several, separated by semicolons.

    Raises:
        FleetError: There is no transport for this kind of broker, or another package has replaced a name that
            the transport relies on.
    """
    urls = url.split(";")
    schemes = {each.partition("://")[0] for each in urls}
    if others := schemes - TRANSPORTS.keys():
        raise FleetError(
            f"The broker's URL begins with {', '.join(sorted(others))}, and the level full has a transport "
            f"for {', '.join(TRANSPORTS)} only: use one of these, or set celery_app_level: standard "
            "(FLEET_LEVEL=standard)."
        )
    surface.require(Feature.TRANSPORT)
    TRANSPORT_ALIASES.update({PREFIX + scheme: path for scheme, path in TRANSPORTS.items()})
    prefixed = ";".join(PREFIX + each for each in urls) if len(urls) > 1 else url
    return prefixed, TRANSPORTS[schemes.pop()]


def select_backend(app: Celery, *, stores: bool) -> None:
    """Register the runtime's result backend with an app.

    Args:
        app: The app.
        stores: Whether this process stores results with a script, as a node does.
    """
    backends = STORING_BACKENDS if stores else BACKENDS
    app.loader.override_backends = {**app.loader.override_backends, **backends}


def select_pool() -> None:
    """Select the runtime's prefork pool for this node.

    Raises:
        FleetError: Another package has replaced a name that the pool relies on.
    """
    surface.require(Feature.POOL)
    prefork.TaskPool.Pool = symbol_by_name(POOL)
