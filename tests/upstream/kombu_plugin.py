# SPDX-License-Identifier: MIT
"""A pytest plugin that runs kombu's tests of its Redis transport as a node of a fleet.

With SUITE_RUNTIME=true each connection that a test makes to HOST is one of the runtime's transport, with TLS,
the login of SUITE_BROKER, and the options that the runtime lays on an app: names of keys that a test gives
are dropped, but for those of what is unacknowledged, since a node names those itself. What a test asks Redis
by itself, it asks as SUITE_ADMIN. Other addresses, where nobody listens, stay as they are.
"""

from __future__ import annotations

import os
from typing import Any

import kombu
import redis
from celery import Celery
from kombu.transport import TRANSPORT_ALIASES
from kombu.transport import redis as stock
from kombu.utils.url import parse_url, url_to_parts

from fleet_testing.broker import HOST


class FleetConnection(kombu.Connection):
    """A connection as a node has it."""

    def __init__(self, hostname: str = "", *args: Any, **options: Any) -> None:
        """Connect as the fleet does; a clone has an address that is no URL, and all options already."""
        if "://" in hostname and url_to_parts(hostname).hostname == HOST:
            options["transport_options"] = fleet_options(options.get("transport_options") or {})
            login = {name: BROKER[name] for name in ("userid", "password")}
            options = {"ssl": BROKER["ssl"], **({} if "@" in hostname else login), **options}
        super().__init__(hostname, *args, **options)


class Client(redis.Redis):
    """A client of Redis that knows how to log in."""

    def __init__(self, host: str = "", *args: Any, **options: Any) -> None:
        """Log in as the administrator, unless the connections are given."""
        if host == HOST:
            login = {"username": ADMIN["userid"], "password": ADMIN["password"]}
            options = {**options, **login, "ssl": True, **ADMIN["ssl"]}
        super().__init__(host, *args, **options)


def fleet_options(given: dict[str, Any]) -> dict[str, Any]:
    """Return the transport options of a node whose test gives these."""
    from fleet_runtime.bootstrap import configure
    from fleet_runtime.settings import FleetSettings
    from fleet_runtime.worker import bootsteps

    laid = configure.configured(Celery(set_as_current=False).conf, FleetSettings.from_environment())
    own_keys = bootsteps.own_keys("kombu@test")
    dropped = configure.KEY_OPTIONS - own_keys.keys()
    kept = {name: value for name, value in given.items() if name not in dropped}
    return {**laid["broker_transport_options"], **own_keys, **kept}


if os.environ.get("SUITE_RUNTIME") == "true":
    from fleet_runtime.bootstrap import plugins
    from fleet_runtime.broker import functions

    BROKER, ADMIN = (parse_url(os.environ[name]) for name in ("SUITE_BROKER", "SUITE_ADMIN"))
    functions.adopt()
    TRANSPORT_ALIASES.update(plugins.TRANSPORTS)
    kombu.Connection = FleetConnection
    redis.Redis = redis.StrictRedis = Client
    # There is no Sentinel: the tests replace what connects to its master without TLS, and not this.
    stock.SentinelChannel.connection_class_ssl = redis.SSLConnection
