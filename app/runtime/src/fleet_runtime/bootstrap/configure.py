# SPDX-License-Identifier: MIT
"""Lays the fleet's settings on an app.

Only what the fleet has to own is laid over the app's settings: how messages are kept, how connections live
and die, what may be deserialized, what Redis's ACL names. A few more are laid where the app has Celery's
default. Routes, queues, schedule, and what a task says of itself stay the app's. README.md gives the reasons.
"""

from __future__ import annotations

import logging
import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from celery.app.defaults import DEFAULTS
from celery.utils.text import match_case
from kombu.exceptions import SerializerNotInstalled
from kombu.serialization import prepare_accept_content, registry
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from fleet_runtime.bootstrap import overrides, plugins
from fleet_runtime.bootstrap.app_loader import blaming
from fleet_runtime.bootstrap.startup_checks import Guard
from fleet_runtime.broker import functions
from fleet_runtime.compat import celery_defaults, gevent_sleep
from fleet_runtime.compat.surface import may_replace
from fleet_runtime.errors import FleetError
from fleet_runtime.logging.celery_logging import FleetLogging, lay_messages
from fleet_runtime.messages.sent_at import stamp_messages
from fleet_runtime.transport import broadcast

if TYPE_CHECKING:
    from celery import Celery

    from fleet_runtime.settings import FleetSettings

logger = logging.getLogger(__name__)

# Transport options that name or shape the keys and channels of Redis. Its ACL knows those of the defaults.
KEY_OPTIONS = frozenset(
    {"global_keyprefix", "sep", "fanout_prefix", "fanout_patterns", "sentinel_fanout_compat"}
    | {"unacked_key", "unacked_index_key", "unacked_mutex_key"}
)

# The steps of priorities for whose lists its ACL has names, of each queue.
PRIORITIES = frozenset(range(10))

# RedBeat's keys, as its ACL has them.
REDBEAT_PREFIX = "redbeat:"
REDBEAT_LOCK = "redbeat::lock"

# What takes messages in a node: by its name, because only a node is to import it.
CONSUMER = "fleet_runtime.worker.consumer:FleetConsumer"
OWNERSHIP, RECOVERY = (
    "fleet_runtime.worker.bootsteps:Ownership",
    "fleet_runtime.worker.bootsteps:Recovery",
)
WATCHDOG, EVENTS = "fleet_runtime.worker.watchdog:Watchdog", "fleet_runtime.worker.events:Together"
PROBATION, REVOKED = "fleet_runtime.worker.readiness:Probation", "fleet_runtime.worker.revoked:Revoked"

# Of one channel: a bound that only a leak meets. With kombu's 10, greenlets that end at the same time cannot
# all acknowledge.
CONNECTIONS = 1000

# Seconds for a process of a pool to say that it is up. With Celery's 4, one that starts slowly, on a busy
# host or because it connects to a database first, is killed, and so is the next.
PROCESS_START = 60.0

# Components that wait long for a broker that is away, because what they send would be lost. The others have
# somebody who waits for them.
PATIENT = frozenset({"worker", "beat"})

# What each task takes from the settings when it is first used.
OF_EACH_TASK = {
    "task_acks_late": True,
    "task_retry_on_worker_lost": False,
    "task_reject_on_worker_lost": True,
}


def lay_defaults() -> None:
    """Lay what tasks copy for themselves, before an app is imported.

    An app may use a task while it is imported, as in `beat_schedule = {... add.s() ...}`. By the time that
    `lay` is called, such a task has its copy, which does not tell what its author has said on purpose.
    """
    for name, value in OF_EACH_TASK.items():
        celery_defaults.set_default(name, value)  # task_retry_on_worker_lost came with Celery 5.7


def lay(app: Celery, settings: FleetSettings) -> None:
    """Lay the settings on an app, over its own configuration, which is read now.

    Raises:
        FleetError: The app's configuration cannot be read, or cannot be reconciled with the fleet's.
    """
    with blaming(f"The settings of {settings.app} cannot be read"):
        conf = app.conf.finalize()
    overrides.remember(app, settings)
    read_url, transport = _read_from(settings)
    _pin(conf, settings, read_url)
    _prevail(conf, {**laid(conf, settings), "broker_transport": transport})
    _require_accepted(conf)
    _require_visible(conf)
    functions.adopt()
    stamp_messages()
    app.log_cls = FleetLogging
    lay_messages(with_arguments=settings.log_arguments)
    gevent_sleep.let_run()
    broadcast.patch_results(may_replace)
    if settings.component == "flower":
        broadcast.patch_fanout(may_replace)
    app.steps["worker"].add(Guard)
    app.steps["worker"].add(OWNERSHIP)
    app.steps["worker"].add(WATCHDOG)
    app.steps["consumer"].add(RECOVERY)
    app.steps["consumer"].add(EVENTS)
    app.steps["consumer"].add(REVOKED)
    app.steps["consumer"].add(PROBATION)
    plugins.select_backend(app, stores=settings.component == "worker")


def laid(conf: Any, settings: FleetSettings) -> dict[str, Any]:
    """Return what is laid on an app with this configuration.

    Args:
        conf: The app's, with a default for what it does not set.
        settings: The fleet's, for one component.
    """
    return {
        **_owned(settings),
        "broker_transport": None,
        **_merged(conf, settings),
        **_defaults(conf, settings),
    }


def _pin(conf: Any, settings: FleetSettings, read_url: str) -> None:
    """Keep an app from another broker, whenever and in whatever direction it names one.

    Celery prefers the environment to the app's settings (app/utils.py, Settings), so this holds for whatever
    the app sets later, too.
    """
    if settings.broker_url:
        os.environ["CELERY_BROKER_READ_URL"] = read_url
        os.environ["CELERY_BROKER_WRITE_URL"] = settings.broker_url
    # These are what `inspect conf` and Flower show. Celery hides their passwords under these names only.
    for name in ("broker_url", "result_backend"):
        if url := getattr(settings, name):
            conf[name] = url


def _read_from(settings: FleetSettings) -> tuple[str, str | None]:
    """Return the URL by which messages are taken, and the transport."""
    takes_atomically = settings.component == "worker" and settings.atomic_fetch
    return plugins.select_transport(settings.broker_url) if takes_atomically else (settings.broker_url, None)


def _prevail(conf: Any, values: dict[str, Any]) -> None:
    """Set each value under every name by which Celery would look for it.

    With a namespace, such as Django apps have, CELERY_TASK_ACKS_LATE comes before task_acks_late.
    """
    for name, value in values.items():
        conf[name] = value
        if conf.prefix:
            conf[match_case(conf.prefix + name, conf.prefix)] = value


def _owned(settings: FleetSettings) -> dict[str, Any]:
    """Return what is laid over the app's own settings."""
    return {
        **_delivery(settings),
        **_connections(settings),
        **_tls(settings),
        **(_beat(settings) if settings.component == "beat" else {}),
    }


def _delivery(settings: FleetSettings) -> dict[str, Any]:
    """Return what keeps messages safe."""
    return {
        "accept_content": list(settings.accept_content),
        "result_accept_content": None,
        "enable_utc": True,
        **OF_EACH_TASK,
        "worker_prefetch_multiplier": settings.prefetch_multiplier,
        "worker_enable_soft_shutdown_on_idle": True,
        "worker_enable_prefetch_count_reduction": False,
        **(_of_units() if settings.component == "worker" else {}),
        "worker_send_task_events": settings.task_events,
        "task_send_sent_event": settings.task_events,
        **({"task_track_started": True} if settings.track_started else {}),
    }


def _of_units() -> dict[str, Any]:
    """Return what follows from how a node is run: by what consumer, and in what unit."""
    return {"worker_consumer": CONSUMER, "worker_state_db": None, "worker_log_color": False}


def _connections(settings: FleetSettings) -> dict[str, Any]:
    """Return how connections to the broker and the result backend live and die."""
    return {
        "broker_connection_retry": True,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_channel_error_retry": True,
        "redis_socket_timeout": settings.socket_timeout,
        "redis_socket_connect_timeout": settings.socket_connect_timeout,
        "redis_socket_keepalive": True,
        "redis_retry_on_timeout": True,
        "redis_backend_health_check_interval": settings.health_check_interval,
        "control_exchange": DEFAULTS["control_exchange"],
        "event_exchange": DEFAULTS["event_exchange"],
        "event_queue_prefix": DEFAULTS["event_queue_prefix"],
    }


def _transport(settings: FleetSettings) -> dict[str, Any]:
    """Return the options of kombu's Redis transport."""
    return {
        "visibility_timeout": settings.visibility_timeout,
        "ack_emulation": settings.component == "worker",
        "max_connections": CONNECTIONS,
        "socket_timeout": settings.socket_timeout,
        "socket_connect_timeout": settings.socket_connect_timeout,
        "socket_keepalive": True,
        "health_check_interval": settings.health_check_interval,
    }


def _tls(settings: FleetSettings) -> dict[str, Any]:
    """Return TLS as settings, because Flower does not read the options of a URL."""
    return {
        **({"broker_use_ssl": settings.broker_tls} if settings.broker_url else {}),
        **({"redis_backend_use_ssl": settings.result_backend_tls} if settings.result_backend else {}),
    }


def _beat(settings: FleetSettings) -> dict[str, Any]:
    """Return where RedBeat keeps the schedule, and how fast a standby takes over."""
    return {
        "beat_max_loop_interval": settings.beat_max_interval,
        "redbeat_redis_url": settings.broker_url,
        "redbeat_redis_use_ssl": settings.broker_tls,
        "redbeat_redis_options": {
            # Once a second until another Beat may soon have the lock; then this one gives up, and systemd
            # starts it anew. RedBeat's own retry_period covers neither its lock nor its pipelines.
            "retry": Retry(ConstantBackoff(1), int(settings.beat_lock_timeout) // 2),
            "socket_timeout": settings.socket_timeout,
            "socket_connect_timeout": settings.socket_connect_timeout,
            "socket_keepalive": True,
            "health_check_interval": settings.health_check_interval,
        },
        "redbeat_key_prefix": REDBEAT_PREFIX,
        "redbeat_lock_key": REDBEAT_LOCK,
        "redbeat_lock_timeout": settings.beat_lock_timeout,
    }


def _merged(conf: Any, settings: FleetSettings) -> dict[str, Any]:
    """Return settings in which the app's own part stays."""
    return {
        "result_expires": _lower(conf.result_expires, settings.result_expires),
        "broker_transport_options": {**_harmless(conf.broker_transport_options), **_transport(settings)},
        "result_backend_transport_options": {
            "retry_policy": _retry_policy(settings),
            **_harmless(conf.result_backend_transport_options),
        },
    }


def _defaults(conf: Any, settings: FleetSettings) -> dict[str, Any]:
    """Return what is laid where the app has Celery's default."""
    values = {
        "timezone": "UTC",
        "worker_soft_shutdown_timeout": settings.soft_shutdown_timeout,
        "worker_proc_alive_timeout": PROCESS_START,
        "result_backend_thread_safe": True,
        "task_publish_retry_policy": _retry_policy(settings),
    }
    # Celery has no default for some: it asks for them only where they are used.
    silent = {name for name in values if getattr(conf, name, None) == DEFAULTS.get(name)}
    return {name: value for name, value in values.items() if name in silent}


def _retry_policy(settings: FleetSettings) -> dict[str, Any]:
    """Return how often to try to publish, or to store a result: soon at first, then every second."""
    policy: dict[str, Any] = DEFAULTS["task_publish_retry_policy"]
    return {**policy, "max_retries": settings.patience} if settings.component in PATIENT else policy


def _lower(given: Any, most: float) -> float:
    """Return the lower of two times, where an app's None or 0 means for ever."""
    seconds = given.total_seconds() if isinstance(given, timedelta) else float(given or 0)
    return min(seconds or most, most)


def _harmless(options: Any) -> dict[str, Any]:
    """Return an app's transport options without those that would lead to keys that it may not use."""
    kept = {name: value for name, value in (options or {}).items() if name not in KEY_OPTIONS}
    if not PRIORITIES.issuperset(kept.get("priority_steps") or ()):
        del kept["priority_steps"]
    return kept


def _require_accepted(conf: Any) -> None:
    """Refuse an app whose messages its own workers would refuse."""
    try:
        accepted = prepare_accept_content(conf.accept_content)
    except SerializerNotInstalled as error:
        raise FleetError(f"FLEET_ACCEPT_CONTENT: {error}.") from None
    for setting in ("task_serializer", "result_serializer"):
        if registry.name_to_type.get(conf[setting], conf[setting]) not in accepted:
            raise FleetError(
                f"The app's {setting} is {conf[setting]}, and the fleet accepts "
                f"{', '.join(conf.accept_content)}. Change the app, or add it to FLEET_ACCEPT_CONTENT."
            )


def _require_visible(conf: Any) -> None:
    """Refuse an app whose time limit would let tasks run twice."""
    limit, timeout = conf.task_time_limit, conf.broker_transport_options["visibility_timeout"]
    if limit and limit >= timeout:
        raise FleetError(
            f"The app's task_time_limit ({limit:g}) must be less than FLEET_VISIBILITY_TIMEOUT ({timeout}), "
            "or a long task is handed out again while it runs."
        )
