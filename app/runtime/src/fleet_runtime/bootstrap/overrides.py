# SPDX-License-Identifier: MIT
"""Finds the settings of an app that have no effect on the fleet, with the reason for each.

`fleet check` reports them before a release runs, and docs/your-app.md has a table of all. This compares what
`configure` sets with what the app has set, and adds settings that units override.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from datetime import timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from celery.app.defaults import DEFAULTS
from celery.app.utils import HIDDEN_SETTINGS
from celery.utils.text import match_case

from fleet_runtime.compat import celery_defaults

if TYPE_CHECKING:
    from celery import Celery

    from fleet_runtime.settings import FleetSettings

# Characters of a value that a sentence shows at most.
VALUE_LIMIT = 60
REDIS = ("redis", "rediss", "sentinel")
# The setting by which an operator accepts overrides.
ACCEPT = "accept_overrides in celery_app_settings"


@dataclass(frozen=True)
class Rule:
    """Why a setting of an app has no effect.

    Attributes:
        why: The reason in a sentence or two, with the remedy if there is one.
        value: The value that the fleet uses, for docs/your-app.md, where fleets differ in it.
        refuses: Whether a release is refused, because tasks would be lost or a caller would wait for ever.
    """

    why: str
    value: str = ""
    refuses: bool = False


@dataclass(frozen=True)
class Override:
    """A setting of an app that has no effect.

    Attributes:
        name: Name of the setting, or `broker_transport_options.<name>`.
        sentence: The sentence for the operator.
        refuses: Whether the release is refused.
    """

    name: str
    sentence: str
    refuses: bool


# The settings that an app has set itself, and those of its fleet.
_own: WeakKeyDictionary[Celery, tuple[dict[str, Any], FleetSettings]] = WeakKeyDictionary()

_OTHER_BROKER = "The fleet's broker is its Redis, which the environment names."
_OTHER_RESULTS = "Results are in the fleet's Redis, and nothing reads this."
_FOR_EACH_POOL = "Each pool of the inventory sets it, and the node's command line comes before settings."
_EVENTS = "The inventory sets whether events are sent, which cost CPU: see celery_worker_task_events."
_SOCKET = "A connection to a host that vanished must end."
_ACL = "Redis's access rules name the keys and channels of Celery's default."
_KEYS = (
    "Redis's access rules name the keys of the default. The fleet has a Redis of its own, so that its keys "
    "meet no others."
)
_REDBEAT = "RedBeat's key and lock are named by Redis's access rules, and its connection is the broker's."

# Settings that the fleet enforces.
ENFORCED: dict[str, Rule] = {
    "accept_content": Rule("With pickle a message can run any code.", "`FLEET_ACCEPT_CONTENT`"),
    "result_accept_content": Rule("Results are read as messages are.", "as `accept_content`"),
    "enable_utc": Rule("Messages carry UTC; `timezone` stays the app's."),
    "task_acks_late": Rule(
        "A message is acknowledged when its task has ended, so that a crash of the process does not lose the "
        "task; it may run twice. A task that must run at most once sets acks_late=False itself."
    ),
    "task_reject_on_worker_lost": Rule(
        "A message whose process is killed is requeued, at most `max_crashes` times. A task that sets "
        "reject_on_worker_lost=False itself is not run again."
    ),
    "task_retry_on_worker_lost": Rule(
        "Celery would make it a retry after 3 minutes, and not count the crash of a whole node."
    ),
    "task_send_sent_event": Rule(_EVENTS, "`FLEET_TASK_EVENTS`"),
    "task_track_started": Rule("The inventory sets it.", "true, with `FLEET_TRACK_STARTED`"),
    "worker_consumer": Rule(
        "The fleet's consumer drops no message. Use a boot step of the consumer's blueprint in place of a "
        "consumer class."
    ),
    "worker_state_db": Rule("Redis keeps revoked tasks for all nodes. A unit's file system is read-only."),
    "worker_log_color": Rule("The log of a node goes to the journal, which is not a terminal."),
    "worker_prefetch_multiplier": Rule(
        "A node prefetches no more than it can run, so that no message waits behind a long task. Set "
        "prefetch_multiplier of a pool that needs more, such as for celery-batches.",
        "`FLEET_PREFETCH_MULTIPLIER`",
    ),
    "worker_enable_soft_shutdown_on_idle": Rule("A node that waits for an ETA requeues its messages, too."),
    "worker_enable_prefetch_count_reduction": Rule(
        "After a reconnect, tasks that still run count as prefetched, and so the node fetches less by itself."
    ),
    "worker_send_task_events": Rule(_EVENTS, "`FLEET_TASK_EVENTS`"),
    "broker_transport": Rule(_OTHER_BROKER, "the runtime's own in a worker, else none"),
    "broker_use_ssl": Rule("The broker's URL has the options of TLS.", "the URL's `ssl_*`"),
    "redis_backend_use_ssl": Rule("The result backend's URL has the options of TLS.", "the URL's `ssl_*`"),
    "broker_connection_retry": Rule("A node waits for its broker."),
    "broker_connection_retry_on_startup": Rule("A node waits for its broker."),
    "broker_connection_max_retries": Rule("A node waits for its broker, for ever."),
    "broker_channel_error_retry": Rule(
        "A node waits for a Redis that refuses to write, because it is a replica now or its disk is full."
    ),
    "redis_socket_timeout": Rule(_SOCKET, "`FLEET_SOCKET_TIMEOUT`"),
    "redis_socket_connect_timeout": Rule(_SOCKET, "`FLEET_SOCKET_CONNECT_TIMEOUT`"),
    "redis_socket_keepalive": Rule(_SOCKET),
    "redis_backend_health_check_interval": Rule(_SOCKET, "`FLEET_HEALTH_CHECK_INTERVAL`"),
    "redis_retry_on_timeout": Rule("Storing a result twice does no harm."),
    "control_exchange": Rule(_ACL),
    "event_exchange": Rule(_ACL),
    "event_queue_prefix": Rule(_ACL),
    "result_expires": Rule(
        "Redis evicts nothing here, so that permanent results would fill it.",
        "at most `FLEET_RESULT_EXPIRES`",
    ),
    "beat_max_loop_interval": Rule(
        "Beat sees a change of the schedule within this time, and keeps its lock.",
        "`FLEET_BEAT_MAX_INTERVAL`",
    ),
    "redbeat_redis_url": Rule(_REDBEAT, "the broker's"),
    "redbeat_redis_use_ssl": Rule(_REDBEAT, "the broker's"),
    "redbeat_redis_options": Rule("Beat survives a restart of Redis.", "for TLS, time limits and retries"),
    "redbeat_key_prefix": Rule(_REDBEAT),
    "redbeat_lock_key": Rule(_REDBEAT),
    "redbeat_lock_timeout": Rule("A standby takes over after this time.", "`FLEET_BEAT_LOCK_TIMEOUT`"),
}

# Transport options that the fleet enforces or removes.
ENFORCED_OPTIONS: dict[str, Rule] = {
    "visibility_timeout": Rule(
        "The messages of a dead node are requeued when its lease ends, so this is a last resort, for those "
        "that a node forgot.",
        "`FLEET_VISIBILITY_TIMEOUT`",
    ),
    "ack_emulation": Rule(
        "Only a worker keeps unacknowledged messages: another component would redeliver tasks that run.",
        "true in a worker",
    ),
    "max_connections": Rule("Greenlets that end at the same time must all be able to acknowledge."),
    "socket_timeout": Rule(_SOCKET, "`FLEET_SOCKET_TIMEOUT`"),
    "socket_connect_timeout": Rule(_SOCKET, "`FLEET_SOCKET_CONNECT_TIMEOUT`"),
    "socket_keepalive": Rule(_SOCKET),
    "health_check_interval": Rule(_SOCKET, "`FLEET_HEALTH_CHECK_INTERVAL`"),
    **dict.fromkeys(
        ("global_keyprefix", "sep", "fanout_prefix", "fanout_patterns"), Rule(_KEYS, "kombu's default")
    ),
    "sentinel_fanout_compat": Rule(
        "It is for nodes with a kombu before 5.4, which a fleet does not have: Redis's access rules refuse "
        "their channels.",
        "kombu's default",
    ),
    "priority_steps": Rule(
        "Redis's access rules name the lists of the steps 0 to 9: a sender outside the fleet's environment "
        "that uses other steps puts messages where no node fetches them. Use steps from 0 to 9.",
        "the app's where all are 0 to 9; a release with others is refused",
        refuses=True,
    ),
    **dict.fromkeys(
        ("unacked_key", "unacked_index_key", "unacked_mutex_key"),
        Rule("Each node has its own keys for unacknowledged messages.", "`unacked:<node>` … in a node"),
    ),
}

# Settings that nothing on the fleet reads.
UNUSED: dict[str, Rule] = {
    **dict.fromkeys(("worker_concurrency", "worker_pool"), Rule(_FOR_EACH_POOL)),
    "beat_schedule_filename": Rule("Beat keeps its schedule in Redis, or in a file of its unit."),
    **dict.fromkeys(
        (
            *("broker_read_url", "broker_write_url", "broker_host", "broker_port"),
            *("broker_user", "broker_password", "broker_vhost"),
        ),
        Rule(_OTHER_BROKER),
    ),
    **dict.fromkeys(
        ("redis_host", "redis_port", "redis_db", "redis_username", "redis_password"),
        Rule("The environment has the URL of the result backend."),
    ),
}
# The same for the settings of other result backends than Redis, by the prefixes of their names.
OTHER_BACKENDS = (
    *("cache_", "cassandra_", "s3_", "azureblockblob_", "gcs_", "couchbase_", "arangodb_", "mongodb_"),
    *("cosmosdbsql_", "elasticsearch_", "database_", "dynamodb_", "couchdb_", "consul_", "filesystem_"),
)

# Settings of the app that an option of a pool overrides: setting -> option of the pool.
POOL_FIRST = {
    "worker_disable_prefetch": "disable_prefetch",
    "worker_max_memory_per_child": "max_memory_per_child",
    "worker_max_tasks_per_child": "max_tasks_per_child",
}
# Settings of the app that override an option of a pool, because a task copies them.
POOL_LAST = {"task_soft_time_limit": "soft_time_limit", "task_time_limit": "time_limit"}

# Settings with which no fleet works.
REFUSED: dict[str, Rule] = {
    "worker_enable_remote_control": Rule(
        "A node that answers no command cannot show that it is ready, and so counts as failed.", refuses=True
    )
}

# Settings that Redis's access rules allow only where the inventory has a variable.
NEEDING: dict[str, str] = {
    "worker_direct": "redis_worker_direct",
    "beat_enable_remote_control": "redis_beat_remote_control",
}

# Settings for which the fleet has a default of its own, used where the app has Celery's default.
WHERE_SILENT: dict[str, Rule] = {
    "timezone": Rule("Hosts may have different time zones."),
    "worker_soft_shutdown_timeout": Rule(
        "A cold shutdown leaves tasks this time.", "`FLEET_SOFT_SHUTDOWN_TIMEOUT`"
    ),
    "worker_proc_alive_timeout": Rule(
        "With Celery's 4 s, a process that starts slowly is killed, and so is the next."
    ),
    "result_backend_thread_safe": Rule(
        "All threads and greenlets of a process share the connections to the result backend."
    ),
    "task_publish_retry_policy": Rule(
        "Messages that a task sends while Redis restarts are not lost. In other components a caller waits.",
        "`FLEET_PUBLISH_RETRY_TIMEOUT` tries in a worker and in Beat",
    ),
    "result_backend_transport_options": Rule(
        "`retry_policy` equals `task_publish_retry_policy`.", "with a `retry_policy`"
    ),
}


def remember(app: Celery, settings: FleetSettings) -> None:
    """Remember the settings that an app has set itself, before the fleet configures it.

    Args:
        app: The app, with its configuration read.
        settings: The settings of the fleet.
    """
    known = _own.get(app)  # an app that is configured again has the fleet's settings
    _own[app] = known[0] if known else own_settings(app.conf), settings


def own_settings(conf: Any) -> dict[str, Any]:
    """Return the settings that an app has set itself, under Celery's current names."""
    found = {}
    for name in (*DEFAULTS, *(name for name in ENFORCED if name not in DEFAULTS)):
        names = celery_defaults.spellings(name)
        if conf.prefix:
            names += [match_case(conf.prefix + each, conf.prefix) for each in names]
        values = (part[each] for part in conf.maps[:-1] for each in names if each in part)
        for value in values:  # the first has precedence
            found[name] = value
            break
    return found


def accepted(app: Celery) -> tuple[str, ...]:
    """Return the settings of an app that the fleet may override silently."""
    return _own[app][1].accept_overrides if app in _own else ()


def module(app: Celery) -> str:
    """Return the name of the module of an app; an empty string if it is not known."""
    return _own[app][1].app.partition(":")[0] if app in _own else ""


def find(app: Celery, beat_scheduler: str = "", rights: Mapping[str, Any] | None = None) -> list[Override]:
    """Return each setting of an app that has no effect, sorted, without those that the operator accepts.

    Args:
        app: The app, configured with the fleet's settings. The result is empty for another app.
        beat_scheduler: The scheduler of Beat: `redbeat`, `persistent`, or empty if the fleet has no Beat.
        rights: Variables of the inventory, as in `inspect.rights`; None if they are not known.
    """
    if app not in _own:
        return []
    own, settings = _own[app]
    found = [
        *_enforced(own, settings),
        *_options(own, settings),
        *_without_effect(own),
        *_needing(own, rights),
        *_results(own),
        *_broker(own),
        *_scheduler(own, beat_scheduler),
    ]
    silent = accepted(app)
    return sorted((each for each in found if each.name not in silent), key=lambda each: each.name)


def _values(own: Mapping[str, Any], settings: FleetSettings) -> dict[str, Any]:
    """Return the settings that the components of the fleet set on an app with these settings of its own."""
    from fleet_runtime.bootstrap import configure

    conf = SimpleNamespace(**{**DEFAULTS, **own})
    values: dict[str, Any] = {}
    for component in ("web", "beat", "worker"):
        each = copy(settings)
        object.__setattr__(each, "component", component)  # `replace` would require a broker, too
        values |= configure.configured(conf, each)
    return values


def _enforced(own: Mapping[str, Any], settings: FleetSettings) -> list[Override]:
    """Return the settings that the fleet overrides."""
    values = _values(own, settings)
    return [
        _over(name, own[name], values[name], ENFORCED[name])
        for name in own.keys() & values.keys() & ENFORCED.keys()
        if _comparable(values[name]) != _comparable(own[name])
        and (own[name] is not None or DEFAULTS.get(name) is not None)  # else None is not set
    ]


def _comparable(value: Any) -> Any:
    """Return a value for a comparison: a time in seconds, and a tuple as a list."""
    if isinstance(value, timedelta):
        return value.total_seconds()
    return list(value) if isinstance(value, tuple) else value


def _options(own: Mapping[str, Any], settings: FleetSettings) -> list[Override]:
    """Return the transport options that the fleet overrides or removes."""
    values, found = _values(own, settings), []
    for setting in ("broker_transport_options", "result_backend_transport_options"):
        for name, value in (own.get(setting) or {}).items():
            kept = values[setting]
            if name in ENFORCED_OPTIONS and (name not in kept or kept[name] != value):
                full, rule = f"{setting}.{name}", ENFORCED_OPTIONS[name]
                if name in kept:
                    found.append(_over(full, value, kept[name], rule))
                else:
                    found.append(_dropped(full, value, rule))
    return found


def _without_effect(own: Mapping[str, Any]) -> list[Override]:
    """Return the settings that nothing on the fleet reads."""
    found = [_dropped(name, own[name], UNUSED[name]) for name in own.keys() & UNUSED.keys()]
    other = Rule(_OTHER_RESULTS)
    found += [_dropped(name, own[name], other) for name in own if name.startswith(OTHER_BACKENDS)]
    if own.get("worker_enable_remote_control") is False:
        name = "worker_enable_remote_control"
        found.append(_refused(f"The app's {name} is False.", name, REFUSED[name]))
    return found


def _needing(own: Mapping[str, Any], rights: Mapping[str, Any] | None) -> list[Override]:
    """Return the settings that the inventory must allow, and does not, as far as that is known.

    Where it is known, `inspect.rights` refuses worker_direct: no node would become ready.
    """
    known = rights or {}
    elsewhere = () if rights is None else ("worker_direct",)
    return [
        Override(
            name, f"The app's {name} works only where the inventory has {variable}: true.", refuses=False
        )
        for name, variable in NEEDING.items()
        if own.get(name) and name not in elsewhere and not known.get(variable)
    ]


def _results(own: Mapping[str, Any]) -> list[Override]:
    """Return whether the app has another result backend, where a reader would wait for ever."""
    url = own.get("result_backend")
    if not isinstance(url, str) or _scheme(url) in (*REDIS, "disabled"):
        return []
    sentence = (
        f"The app's result_backend is {_scheme(url)}, and the fleet stores results in its Redis: a process "
        "that reads results elsewhere waits for ever."
    )
    remedy = 'Take it from the environment: os.environ.get("CELERY_RESULT_BACKEND", ...).'
    return [_refused(sentence, "result_backend", Rule(remedy, refuses=True))]


def _broker(own: Mapping[str, Any]) -> list[Override]:
    """Return whether the app is made for another kind of broker. Another Redis makes no difference."""
    url = own.get("broker_url")
    if not isinstance(url, str) or not url or _scheme(url) in REDIS:
        return []
    kind = _scheme(url)
    sentence = f"The app's broker_url is for {kind}. {_OTHER_BROKER} It lacks features that only {kind} has."
    return [Override("broker_url", sentence, refuses=False)]


def _scheduler(own: Mapping[str, Any], beat_scheduler: str) -> list[Override]:
    """Return whether Beat runs another scheduler than the app's."""
    name = "beat_scheduler"
    scheduler = str(own.get(name) or DEFAULTS[name])
    kind = scheduler.replace(":", ".").rpartition(".")[2]
    runs = {"redbeat": "RedBeatScheduler", "persistent": "PersistentScheduler"}.get(beat_scheduler)
    if runs is None or scheduler == DEFAULTS[name] or kind == runs:
        return []
    sentence = (
        f"The app's beat_scheduler is {scheduler}, and the fleet's Beat runs {runs} (celery_beat_scheduler): "
        f"entries that only {kind} knows would not be sent."
    )
    remedy = "Put these entries into beat_schedule, or run that Beat outside of the fleet, as its client."
    return [_refused(sentence, name, Rule(remedy, refuses=True))]


def _over(name: str, own: Any, enforced: Any, rule: Rule) -> Override:
    """Return the override of a setting that the fleet sets to another value."""
    value = shown(name, enforced)
    to = f"to {value} " if value else ""
    own_value = shown(name, own) or "own value"
    return Override(name, f"The fleet sets {name} {to}over the app's {own_value}. {rule.why}", rule.refuses)


def _dropped(name: str, own: Any, rule: Rule) -> Override:
    """Return the override of a setting that nothing reads."""
    value = shown(name, own)
    what = f"{name} = {value}" if value else name
    return Override(name, f"The app's {what} has no effect on the fleet. {rule.why}", rule.refuses)


def _refused(sentence: str, name: str, rule: Rule) -> Override:
    """Return the override of a setting with which a release is refused, with how to accept it."""
    accept = f"If the app does not need it, add {name} to {ACCEPT}."
    return Override(name, f"{sentence} {rule.why} {accept}", rule.refuses)


def shown(name: str, value: Any) -> str:
    """Return a value for a sentence; an empty string if it is long, or may be a secret."""
    if HIDDEN_SETTINGS.search(name) or "url" in name or isinstance(value, Mapping):
        return ""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if 0 < len(text) <= VALUE_LIMIT and "\n" not in text and "://" not in text else ""


def _scheme(url: str) -> str:
    """Return the scheme of a URL of a broker or a result backend, or its name if it is not a URL."""
    return (urlsplit(url).scheme or url).partition("+")[0] if "://" in url else url.partition("+")[0]
