# SPDX-License-Identifier: MIT
"""Configures an app with the fleet's settings.

The fleet enforces only the settings that it must own: how messages are kept, when connections end, which
serializers are accepted, and names that the ACL of Redis has. It sets a few more where the app has Celery's
default. Routes, queues, the schedule and the options of a task stay the app's. README.md gives the reasons.
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
from fleet_runtime.bootstrap.app_loader import reraising_app_errors
from fleet_runtime.broker import functions, keys
from fleet_runtime.compat import celery_defaults, gevent_sleep
from fleet_runtime.compat.versions import unsupported
from fleet_runtime.errors import FleetError
from fleet_runtime.logging.celery_logging import FleetLogging, set_task_messages
from fleet_runtime.messages.sent_at import record_publish_time

if TYPE_CHECKING:
    from celery import Celery

    from fleet_runtime.settings import FleetSettings

logger = logging.getLogger(__name__)

# Transport options that change the names of keys and channels. The ACL of Redis has the default names.
KEY_OPTIONS = frozenset(
    {"global_keyprefix", "sep", "fanout_prefix", "fanout_patterns", "sentinel_fanout_compat"}
    | {"unacked_key", "unacked_index_key", "unacked_mutex_key"}
)

# Priority steps whose lists the ACL of Redis has, for each queue.
PRIORITIES = frozenset(range(10))

# Names of classes that only a node imports.
CONSUMER = "fleet_runtime.worker.consumer:FleetConsumer"
WORKER_STEPS = (
    "fleet_runtime.bootstrap.startup_checks:StartupChecks",
    "fleet_runtime.worker.bootsteps:NodeSetup",
    "fleet_runtime.worker.watchdog:Watchdog",
)
CONSUMER_STEPS = (
    "fleet_runtime.worker.bootsteps:Recovery",
    "fleet_runtime.worker.events:EventBatcher",
    "fleet_runtime.worker.revoked:Revoked",
    "fleet_runtime.worker.readiness:ReadinessGate",
)

# Connections of one channel at most, which only a leak reaches. With kombu's 10, greenlets that end at the
# same time cannot all acknowledge.
CONNECTION_LIMIT = 1000

# Seconds for a child process to start. With Celery's 4, a process that starts slowly, on a busy host or
# because it connects to a database first, is killed, and so is the next.
PROCESS_START_TIMEOUT_S = 60.0

# Components that retry for long to publish while the broker is away: otherwise the message is lost. In the
# other components a caller waits, and gets the error.
PATIENT_COMPONENTS = frozenset({"worker", "beat"})

# Settings that each task copies when it is first used.
TASK_DEFAULTS = {
    "task_acks_late": True,
    "task_retry_on_worker_lost": False,
    "task_reject_on_worker_lost": True,
}


def override_task_defaults() -> None:
    """Override Celery's defaults of settings that tasks copy, before an app is imported.

    An app may use a task while it is imported, as in `beat_schedule = {... add.s() ...}`. When `configure` is
    called, such a task already has its copy, and nothing tells it from an option that its author has set.
    """
    for name, value in TASK_DEFAULTS.items():
        celery_defaults.set_default(name, value)  # task_retry_on_worker_lost came with Celery 5.7


def configure(app: Celery, settings: FleetSettings) -> None:
    """Configure an app with the fleet's settings, over its own configuration, which is read now.

    Raises:
        FleetError: The app's configuration cannot be read, or contradicts the fleet's. Or the level is
            `full`, and the installed versions are not supported. The operator's commands run all the same:
            they hold no message, and `fleet check` reports the versions among all faults.
    """
    if settings.is_full and settings.component != "ops" and (sentence := unsupported()):
        raise FleetError(sentence)
    with reraising_app_errors(f"The settings of {settings.app or settings.app_file} cannot be read"):
        conf = app.conf.finalize()
    app.fleet_settings = settings  # for the boot steps of a node
    overrides.remember(app, settings)
    read_url, transport = settings.broker_url, None  # kombu's own
    if settings.component == "worker" and settings.atomic_fetch:
        read_url, transport = plugins.select_transport(settings.broker_url)
    _pin_broker_url(conf, settings, read_url)
    _set_under_every_name(conf, {**configured(conf, settings), "broker_transport": transport})
    _require_accepted_serializers(conf)
    _require_visibility_timeout(conf)
    functions.adopt()
    record_publish_time()
    app.log_cls = FleetLogging
    set_task_messages(with_arguments=settings.log_arguments, texts=settings.is_full)
    app.steps["worker"].update(WORKER_STEPS)
    app.steps["consumer"].update(CONSUMER_STEPS)
    if settings.is_full:
        gevent_sleep.let_run()
        plugins.select_backend(app, stores=settings.component == "worker")


def configured(conf: Any, settings: FleetSettings) -> dict[str, Any]:
    """Return the settings that the fleet sets on an app.

    Args:
        conf: The configuration of the app, with Celery's defaults.
        settings: The fleet's settings for one component.
    """
    return {
        **_delivery(settings),
        **_connections(settings),
        **_tls(settings),
        **(_beat(settings) if settings.component == "beat" else {}),
        "broker_transport": None,
        **_merged(conf, settings),
        **_defaults(conf, settings),
    }


def _pin_broker_url(conf: Any, settings: FleetSettings, read_url: str) -> None:
    """Keep an app from using another broker, for reading or writing, whenever it sets one.

    Celery prefers the environment to the app's settings (app/utils.py, Settings), so this also holds for a
    broker that the app sets later.
    """
    if settings.broker_url:
        os.environ["CELERY_BROKER_READ_URL"] = read_url
        os.environ["CELERY_BROKER_WRITE_URL"] = settings.broker_url
    # `inspect conf` and Flower show these. Celery hides passwords only under these names.
    for name in ("broker_url", "result_backend"):
        if url := getattr(settings, name):
            conf[name] = url


def _set_under_every_name(conf: Any, values: dict[str, Any]) -> None:
    """Set each value under every name that Celery looks up.

    With a namespace, as Django apps have, CELERY_TASK_ACKS_LATE comes before task_acks_late.
    """
    for name, value in values.items():
        conf[name] = value
        if conf.prefix:
            conf[match_case(conf.prefix + name, conf.prefix)] = value


def _delivery(settings: FleetSettings) -> dict[str, Any]:
    """Return the settings that keep messages safe. Those of a node are what its unit requires."""
    node = {"worker_consumer": CONSUMER, "worker_state_db": None, "worker_log_color": False}
    return {
        "accept_content": list(settings.accept_content),
        "result_accept_content": None,
        "enable_utc": True,
        **{name: value for name, value in TASK_DEFAULTS.items() if name in DEFAULTS},
        "worker_prefetch_multiplier": settings.prefetch_multiplier,
        "worker_enable_soft_shutdown_on_idle": True,
        "worker_enable_prefetch_count_reduction": False,
        **(node if settings.component == "worker" else {}),
        "worker_send_task_events": settings.task_events,
        "task_send_sent_event": settings.task_events,
        **({"task_track_started": True} if settings.track_started else {}),
    }


def _connections(settings: FleetSettings) -> dict[str, Any]:
    """Return the settings of connections to the broker and the result backend."""
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
        "max_connections": CONNECTION_LIMIT,
        **_socket(settings),
    }


def _socket(settings: FleetSettings) -> dict[str, Any]:
    """Return options of redis-py by which a connection to a host that vanished ends."""
    return {
        "socket_timeout": settings.socket_timeout,
        "socket_connect_timeout": settings.socket_connect_timeout,
        "socket_keepalive": True,
        "health_check_interval": settings.health_check_interval,
    }


def _tls(settings: FleetSettings) -> dict[str, Any]:
    """Return the TLS settings: Flower does not read the options of a URL."""
    return {
        **({"broker_use_ssl": settings.broker_tls} if settings.broker_url else {}),
        **({"redis_backend_use_ssl": settings.result_backend_tls} if settings.result_backend else {}),
    }


def _beat(settings: FleetSettings) -> dict[str, Any]:
    """Return the settings of RedBeat: where it keeps the schedule, and how soon a standby takes over."""
    return {
        "beat_max_loop_interval": settings.beat_max_interval,
        "redbeat_redis_url": settings.broker_url,
        "redbeat_redis_use_ssl": settings.broker_tls,
        "redbeat_redis_options": {
            # Retry once a second until another Beat may soon get the lock; then this Beat gives up, and
            # systemd restarts it. RedBeat's own retry_period covers neither its lock nor its pipelines.
            "retry": Retry(ConstantBackoff(1), int(settings.beat_lock_timeout) // 2),
            **_socket(settings),
        },
        "redbeat_key_prefix": keys.REDBEAT_PREFIX,
        "redbeat_lock_key": keys.REDBEAT_LOCK,
        "redbeat_lock_timeout": settings.beat_lock_timeout,
    }


def _merged(conf: Any, settings: FleetSettings) -> dict[str, Any]:
    """Return the settings that combine the app's and the fleet's values."""
    return {
        "result_expires": _lower(conf.result_expires, settings.result_expires),
        "broker_transport_options": {**_allowed(conf.broker_transport_options), **_transport(settings)},
        "result_backend_transport_options": {
            "retry_policy": _retry_policy(settings),
            **_allowed(conf.result_backend_transport_options),
        },
    }


def _defaults(conf: Any, settings: FleetSettings) -> dict[str, Any]:
    """Return the settings that the fleet sets where the app has Celery's default."""
    values = {
        "timezone": "UTC",
        "worker_soft_shutdown_timeout": settings.soft_shutdown_timeout,
        "worker_proc_alive_timeout": PROCESS_START_TIMEOUT_S,
        "result_backend_thread_safe": True,
        "task_publish_retry_policy": _retry_policy(settings),
    }
    # Some have no default in DEFAULTS: Celery reads them only where they are used.
    unset = {name for name in values if getattr(conf, name, None) == DEFAULTS.get(name)}
    return {name: value for name, value in values.items() if name in unset}


def _retry_policy(settings: FleetSettings) -> dict[str, Any]:
    """Return the policy of retries to publish, or to store a result: soon at first, then every second."""
    policy: dict[str, Any] = DEFAULTS["task_publish_retry_policy"]
    if settings.component not in PATIENT_COMPONENTS:
        return policy
    return {**policy, "max_retries": settings.publish_retry_timeout}


def _lower(value: Any, limit: float) -> float:
    """Return an app's time in seconds, at most `limit`; None and 0 mean for ever."""
    seconds = value.total_seconds() if isinstance(value, timedelta) else float(value or 0)
    return min(seconds or limit, limit)


def _allowed(options: Any) -> dict[str, Any]:
    """Return an app's transport options without those that lead to keys that the ACL of Redis lacks."""
    kept = {name: value for name, value in (options or {}).items() if name not in KEY_OPTIONS}
    if not PRIORITIES.issuperset(kept.get("priority_steps") or ()):
        del kept["priority_steps"]
    return kept


def _require_accepted_serializers(conf: Any) -> None:
    """Refuse an app whose messages or results its own workers would not accept.

    Raises:
        FleetError: A serializer is unknown, or is not accepted.
    """
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


def _require_visibility_timeout(conf: Any) -> None:
    """Refuse an app whose time limit exceeds the visibility timeout: its tasks could run twice.

    Raises:
        FleetError: The time limit is too long.
    """
    limit, timeout = conf.task_time_limit, conf.broker_transport_options["visibility_timeout"]
    if limit and limit >= timeout:
        raise FleetError(
            f"The app's task_time_limit ({limit:g}) must be less than FLEET_VISIBILITY_TIMEOUT ({timeout}), "
            "or a long task is redelivered while it runs."
        )
