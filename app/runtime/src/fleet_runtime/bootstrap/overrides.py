# SPDX-License-Identifier: MIT
"""Which settings of an app do not hold on the fleet, and why: so that none is dropped without a word.

`fleet check` says it before a release runs, and docs/your-app.md has all of it in a table. What is laid on an
app is in `laying`; this compares it with what the app itself has set, and adds what units, and not settings,
decide.
"""

from __future__ import annotations

from collections.abc import Mapping
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

LONGEST = 60  # characters of a value in a sentence
REDIS = ("redis", "rediss", "sentinel")
# How an operator says that what an app sets may be dropped.
ACCEPT = "accept_overrides in celery_app_settings"


@dataclass(frozen=True)
class Rule:
    """Why a setting of an app does not hold.

    Attributes:
        why: The reason, as a sentence or two, with what to do if there is something to do.
        value: What holds instead, for the page, where it is not the same on every fleet.
        refuses: Whether a release is refused, because tasks would be lost or waited for without end.
    """

    why: str
    value: str = ""
    refuses: bool = False


@dataclass(frozen=True)
class Override:
    """A setting of an app that does not hold.

    Attributes:
        name: Of the setting, or `broker_transport_options.<name>`.
        sentence: What is said of it.
        refuses: Whether that refuses a release.
    """

    name: str
    sentence: str
    refuses: bool


# What an app has set itself, and with what its fleet laid its own on it.
_own: WeakKeyDictionary[Celery, tuple[dict[str, Any], FleetSettings]] = WeakKeyDictionary()

_OTHER_BROKER = "The fleet's broker is its Redis, which the environment names."
_OTHER_RESULTS = "Results are in the fleet's Redis, and nothing reads this."
_FOR_EACH_POOL = "Each pool of the inventory says it, and the node's command line comes before settings."
_EVENTS = "The inventory says whether events are sent, which cost CPU: see celery_worker_task_events."
_SOCKET = "A connection to a host that vanished must end."
_ACL = "Redis's access rules name the keys and channels of Celery's default."
_KEYS = (
    "Redis's access rules name the keys that the default leads to. The fleet has its Redis to itself, so "
    "there is nothing to keep apart."
)
_REDBEAT = "RedBeat's key and lock are named by Redis's access rules, and its connection is the broker's."

# Laid over what an app says.
LAID: dict[str, Rule] = {
    "accept_content": Rule("With pickle a message can run any code.", "`FLEET_ACCEPT_CONTENT`"),
    "result_accept_content": Rule("Results are read as messages are.", "as `accept_content`"),
    "enable_utc": Rule("Messages carry UTC; `timezone` stays the app's."),
    "task_acks_late": Rule(
        "A message is acknowledged when its task is done, so a task is not lost with its process; it may run "
        "twice. A task that must run at most once says acks_late=False itself, and that holds."
    ),
    "task_reject_on_worker_lost": Rule(
        "A message whose process is killed goes back into its queue, at most `max_losses` times. A task that "
        "says reject_on_worker_lost=False itself is not run again."
    ),
    "task_retry_on_worker_lost": Rule(
        "Celery would make it a retry after 3 minutes, and the death of a whole node would not count."
    ),
    "task_send_sent_event": Rule(_EVENTS, "`FLEET_TASK_EVENTS`"),
    "task_track_started": Rule("The inventory says so.", "true, with `FLEET_TRACK_STARTED`"),
    "worker_consumer": Rule(
        "The fleet's consumer drops no message. A bootstep of the consumer's blueprint does what one's own "
        "class would."
    ),
    "worker_state_db": Rule(
        "What was revoked is kept in Redis, for all nodes. The file system of a unit is read-only."
    ),
    "worker_log_color": Rule("A node's log goes to the journal, which is no terminal."),
    "worker_prefetch_multiplier": Rule(
        "A node reserves no more than it can run, so that nothing waits behind a long task. Set "
        "prefetch_multiplier of a pool for what needs more, such as celery-batches.",
        "`FLEET_PREFETCH_MULTIPLIER`",
    ),
    "worker_enable_soft_shutdown_on_idle": Rule("A node that waits for an ETA hands its messages back, too."),
    "worker_enable_prefetch_count_reduction": Rule(
        "After a reconnect, what still runs counts as reserved, and so reduces what the node takes by itself."
    ),
    "worker_send_task_events": Rule(_EVENTS, "`FLEET_TASK_EVENTS`"),
    "broker_transport": Rule(_OTHER_BROKER, "the runtime's own in a worker, else none"),
    "broker_use_ssl": Rule("TLS is what the broker's URL says.", "the URL's `ssl_*`"),
    "redis_backend_use_ssl": Rule("TLS is what the result backend's URL says.", "the URL's `ssl_*`"),
    "broker_connection_retry": Rule("A node waits for its broker."),
    "broker_connection_retry_on_startup": Rule("A node waits for its broker."),
    "broker_connection_max_retries": Rule("A node waits for its broker, for ever."),
    "broker_channel_error_retry": Rule(
        "A Redis that refuses to write, because it is a replica now or its disk is full, is waited for."
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
        "Redis never evicts here, so results that stay would fill it.", "at most `FLEET_RESULT_EXPIRES`"
    ),
    "beat_max_loop_interval": Rule(
        "So soon Beat sees a change of the schedule, and keeps its lock.", "`FLEET_BEAT_MAX_INTERVAL`"
    ),
    "redbeat_redis_url": Rule(_REDBEAT, "the broker's"),
    "redbeat_redis_use_ssl": Rule(_REDBEAT, "the broker's"),
    "redbeat_redis_options": Rule(
        "A restart of Redis is none of Beat's.", "for TLS, time limits and retries"
    ),
    "redbeat_key_prefix": Rule(_REDBEAT),
    "redbeat_lock_key": Rule(_REDBEAT),
    "redbeat_lock_timeout": Rule("A standby takes over after so long.", "`FLEET_BEAT_LOCK_TIMEOUT`"),
}

# Laid over an app's transport options, or taken out of them.
LAID_OPTIONS: dict[str, Rule] = {
    "visibility_timeout": Rule(
        "What a dead node held comes back by its lease, so this is a last resort, for what a node forgot.",
        "`FLEET_VISIBILITY_TIMEOUT`",
    ),
    "ack_emulation": Rule(
        "Only a worker may hold messages: any other would hand out tasks that run.", "true in a worker"
    ),
    "max_connections": Rule("Greenlets that end at the same time must all be able to acknowledge."),
    "socket_timeout": Rule(_SOCKET, "`FLEET_SOCKET_TIMEOUT`"),
    "socket_connect_timeout": Rule(_SOCKET, "`FLEET_SOCKET_CONNECT_TIMEOUT`"),
    "socket_keepalive": Rule(_SOCKET),
    "health_check_interval": Rule(_SOCKET, "`FLEET_HEALTH_CHECK_INTERVAL`"),
    **dict.fromkeys(
        ("global_keyprefix", "sep", "fanout_prefix", "fanout_patterns"),
        Rule(_KEYS, "kombu's default"),
    ),
    "sentinel_fanout_compat": Rule(
        "It is for nodes with a kombu before 5.4, of which a fleet has none: Redis's access rules refuse "
        "their channels.",
        "kombu's default",
    ),
    "priority_steps": Rule(
        "Redis's access rules name the lists of the steps 0 to 9: who sends with another, and not by the "
        "fleet's environment, puts messages where no node looks. Let the steps be among these.",
        "the app's where all are 0 to 9; a release with others is refused",
        refuses=True,
    ),
    **dict.fromkeys(
        ("unacked_key", "unacked_index_key", "unacked_mutex_key"),
        Rule("Each node has what it holds for itself.", "`unacked:<node>` … in a node"),
    ),
}

# Read by nothing on the fleet, whatever an app says, and not laid.
UNUSED: dict[str, Rule] = {
    **dict.fromkeys(("worker_concurrency", "worker_pool"), Rule(_FOR_EACH_POOL)),
    "beat_schedule_filename": Rule("Beat keeps its schedule in Redis, or in a file of its unit's."),
    **dict.fromkeys(
        (
            *("broker_read_url", "broker_write_url", "broker_host", "broker_port"),
            *("broker_user", "broker_password", "broker_vhost"),
        ),
        Rule(_OTHER_BROKER),
    ),
    **dict.fromkeys(
        ("redis_host", "redis_port", "redis_db", "redis_username", "redis_password"),
        Rule("Results are where the environment's URL says."),
    ),
}
# The same of all settings of result backends other than Redis, by how their names begin.
OTHER_BACKENDS = (
    *("cache_", "cassandra_", "s3_", "azureblockblob_", "gcs_", "couchbase_", "arangodb_", "mongodb_"),
    *("cosmosdbsql_", "elasticsearch_", "database_", "dynamodb_", "couchdb_", "consul_", "filesystem_"),
)

# The app's, but for pools of the inventory that say it themselves: setting -> option of the pool.
POOL_FIRST = {
    "worker_disable_prefetch": "disable_prefetch",
    "worker_max_memory_per_child": "max_memory_per_child",
    "worker_max_tasks_per_child": "max_tasks_per_child",
}
# The app's, and the pool's for what the app does not say, since a task copies these for itself.
POOL_LAST = {"task_soft_time_limit": "soft_time_limit", "task_time_limit": "time_limit"}

# Not overridden, but no fleet works with them.
REFUSED: dict[str, Rule] = {
    "worker_enable_remote_control": Rule(
        "A node that answers nothing cannot show that it works, and so takes no task.", refuses=True
    ),
}

# Redis's access rules allow these only where the inventory says so.
NEEDING: dict[str, str] = {
    "worker_direct": "redis_worker_direct",
    "beat_enable_remote_control": "redis_beat_remote_control",
}

# What an app need not say: where it has Celery's default, the fleet has its own.
WHERE_SILENT: dict[str, Rule] = {
    "timezone": Rule("Hosts may differ in theirs."),
    "worker_soft_shutdown_timeout": Rule(
        "A cold shutdown leaves tasks so long.", "`FLEET_SOFT_SHUTDOWN_TIMEOUT`"
    ),
    "worker_proc_alive_timeout": Rule(
        "With Celery's 4 s, a process that starts slowly is killed, and so is the next."
    ),
    "result_backend_thread_safe": Rule(
        "All threads and greenlets of a process share the connections to the result backend."
    ),
    "task_publish_retry_policy": Rule(
        "What a task sends while Redis restarts is not lost. Elsewhere somebody waits.",
        "`FLEET_PATIENCE` tries in a worker and in Beat",
    ),
    "result_backend_transport_options": Rule(
        "`retry_policy` is as `task_publish_retry_policy`.", "with a `retry_policy`"
    ),
}


def remember(app: Celery, settings: FleetSettings) -> None:
    """Note what an app has set itself, before anything is laid on it.

    Args:
        app: The app, with its configuration read.
        settings: With which it is laid.
    """
    known = _own.get(app)  # laid on it before, what it has is the fleet's
    _own[app] = known[0] if known else own_settings(app.conf), settings


def own_settings(conf: Any) -> dict[str, Any]:
    """Return what an app has set itself, under Celery's names of today."""
    found = {}
    for name in (*DEFAULTS, *(name for name in LAID if name not in DEFAULTS)):
        names = celery_defaults.spellings(name)
        if conf.prefix:
            names += [match_case(conf.prefix + one, conf.prefix) for one in names]
        given = ((part, one) for part in conf.maps[:-1] for one in names if one in part)
        for part, one in given:  # the first comes before the others
            found[name] = part[one]
            break
    return found


def accepted(app: Celery) -> tuple[str, ...]:
    """Return what the operator lets the fleet drop without a word."""
    return _own[app][1].accept_overrides if app in _own else ()


def module(app: Celery) -> str:
    """Return the name of the module that an app is loaded from; nothing if that is not known."""
    return _own[app][1].app.partition(":")[0] if app in _own else ""


def find(app: Celery, beat_scheduler: str = "", rights: Mapping[str, Any] | None = None) -> list[Override]:
    """Return each setting of an app that does not hold, sorted, but those that the operator accepts.

    Args:
        app: The app, with the fleet's settings laid on it; of another one nothing is known.
        beat_scheduler: What Beat runs: `redbeat`, `persistent`, or nothing if the fleet has no Beat.
        rights: What the inventory allows in Redis, as `rights` has it; None if that is not known.
    """
    if app not in _own:
        return []
    own, settings = _own[app]
    found = [
        *_laid_over(own, settings),
        *_options(own, settings),
        *_without_effect(own),
        *_needing(own, rights),
        *_results(own),
        *_broker(own),
        *_scheduler(own, beat_scheduler),
    ]
    dropped = accepted(app)
    return sorted((one for one in found if one.name not in dropped), key=lambda one: one.name)


def _values(own: Mapping[str, Any], settings: FleetSettings) -> dict[str, Any]:
    """Return what some component of the fleet lays on an app that has set this."""
    from fleet_runtime.bootstrap import configure

    conf = SimpleNamespace(**{**DEFAULTS, **own})
    values: dict[str, Any] = {}
    for component in ("web", "beat", "worker"):
        values |= configure.laid(conf, settings.model_copy(update={"component": component}))
    return values


def _laid_over(own: Mapping[str, Any], settings: FleetSettings) -> list[Override]:
    """Return the settings over which the fleet lays its own."""
    values = _values(own, settings)
    return [
        _over(name, own[name], values[name], LAID[name])
        for name in own.keys() & values.keys() & LAID.keys()
        if _plain(values[name]) != _plain(own[name]) and not _is_unset(name, own[name])
    ]


def _plain(value: Any) -> Any:
    """Return a value as it is compared: times as seconds, and a tuple as the list that it stands for."""
    if isinstance(value, timedelta):
        return value.total_seconds()
    return list(value) if isinstance(value, tuple) else value


def _is_unset(name: str, value: Any) -> bool:
    """Return whether None only says that a setting is not set."""
    return value is None and DEFAULTS.get(name) is None


def _options(own: Mapping[str, Any], settings: FleetSettings) -> list[Override]:
    """Return the transport options that the fleet has a word in."""
    values, found = _values(own, settings), []
    for setting in ("broker_transport_options", "result_backend_transport_options"):
        for name, value in (own.get(setting) or {}).items():
            kept = values[setting]
            if name in LAID_OPTIONS and (name not in kept or kept[name] != value):
                full, rule = f"{setting}.{name}", LAID_OPTIONS[name]
                if name in kept:
                    found.append(_over(full, value, kept[name], rule))
                else:
                    found.append(_dropped(full, value, rule))
    return found


def _without_effect(own: Mapping[str, Any]) -> list[Override]:
    """Return the settings that nothing reads here."""
    found = [_dropped(name, own[name], UNUSED[name]) for name in own.keys() & UNUSED.keys()]
    other = Rule(_OTHER_RESULTS)
    found += [_dropped(name, own[name], other) for name in own if name.startswith(OTHER_BACKENDS)]
    if own.get("worker_enable_remote_control") is False:
        name = "worker_enable_remote_control"
        found.append(_refused(f"The app's {name} is False.", name, REFUSED[name]))
    return found


def _needing(own: Mapping[str, Any], rights: Mapping[str, Any] | None) -> list[Override]:
    """Return the settings that the inventory must allow, and does not as far as is known.

    Where it is known, `rights` refuses a worker_direct that is not allowed: no node would pass its proof.
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
    """Return whether the app has results elsewhere, where who reads them would wait without end."""
    url = own.get("result_backend")
    if not isinstance(url, str) or _scheme(url) in (*REDIS, "disabled"):
        return []
    said = (
        f"The app's result_backend is {_scheme(url)}, and the fleet stores results in its Redis: whoever "
        "reads them elsewhere waits without end, and finds none."
    )
    remedy = 'Let it be the environment\'s: os.environ.get("CELERY_RESULT_BACKEND", ...).'
    return [_refused(said, "result_backend", Rule(remedy, refuses=True))]


def _broker(own: Mapping[str, Any]) -> list[Override]:
    """Return whether the app is made for another kind of broker. Another Redis is no matter."""
    url = own.get("broker_url")
    if not isinstance(url, str) or not url or _scheme(url) in REDIS:
        return []
    kind = _scheme(url)
    said = f"The app's broker_url is for {kind}. {_OTHER_BROKER} What only {kind} can do, it cannot."
    return [Override("broker_url", said, refuses=False)]


def _scheduler(own: Mapping[str, Any], beat_scheduler: str) -> list[Override]:
    """Return whether Beat runs another scheduler than the app's."""
    name = "beat_scheduler"
    given = str(own.get(name) or DEFAULTS[name])
    runs = {"redbeat": "RedBeatScheduler", "persistent": "PersistentScheduler"}.get(beat_scheduler)
    if runs is None or given == DEFAULTS[name] or given.replace(":", ".").rpartition(".")[2] == runs:
        return []
    said = (
        f"The app's beat_scheduler is {given}, and the fleet's Beat runs {runs} (celery_beat_scheduler): "
        f"nothing of a schedule that only {given.replace(':', '.').rpartition('.')[2]} knows would be sent."
    )
    remedy = "Have these entries in beat_schedule, or run that Beat outside of the fleet as a client of it."
    return [_refused(said, name, Rule(remedy, refuses=True))]


def _over(name: str, own: Any, laid: Any, rule: Rule) -> Override:
    """Return what is said where the fleet lays a value over the app's."""
    value = shown(name, laid)
    to = f"to {value} " if value else ""
    given = shown(name, own) or "own value"
    return Override(name, f"The fleet sets {name} {to}over the app's {given}. {rule.why}", rule.refuses)


def _dropped(name: str, own: Any, rule: Rule) -> Override:
    """Return what is said where the app's value is read by nothing."""
    value = shown(name, own)
    what = f"{name} = {value}" if value else name
    return Override(name, f"The app's {what} has no effect on the fleet. {rule.why}", rule.refuses)


def _refused(said: str, name: str, rule: Rule) -> Override:
    """Return what is said where a release is refused."""
    accept = f"If none of it is missed, add {name} to {ACCEPT}."
    return Override(name, f"{said} {rule.why} {accept}", rule.refuses)


def shown(name: str, value: Any) -> str:
    """Return a value as a sentence may have it; nothing if it is long, or may be a secret."""
    if HIDDEN_SETTINGS.search(name) or "url" in name or isinstance(value, Mapping):
        return ""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if 0 < len(text) <= LONGEST and "\n" not in text and "://" not in text else ""


def _scheme(url: str) -> str:
    """Return the kind of broker or result backend that a URL, or the name of one, is for; no login."""
    return (urlsplit(url).scheme or url).partition("+")[0] if "://" in url else url.partition("+")[0]
