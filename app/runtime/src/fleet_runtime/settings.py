# SPDX-License-Identifier: MIT
"""The fleet's settings: parsed from the environment, validated, and documented.

A field `name` is the variable FLEET_NAME; an inventory sets it as `celery_app_settings: {name: value}`.
`bootstrap.configure` turns them into settings of Celery. Figures were measured with Celery 5.7 on Redis 7.0.
"""

from __future__ import annotations

import json
import math
import operator
import os
import sys
from dataclasses import MISSING, Field, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, get_args, get_type_hints
from urllib.parse import parse_qsl, urlsplit

from fleet_runtime.errors import FleetError

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "FLEET_"
# A variable of units that has the prefix, and that the runtime does not read.
UNIT_VARIABLE = "NODE_ARGUMENTS"
# Old names of settings, which are accepted for one release.
RENAMED = {"PATIENCE": "PUBLISH_RETRY_TIMEOUT", "MAX_LOSSES": "MAX_CRASHES"}
# Default of the soft time limit, as a share of the hard one: a task needs the rest to clean up.
SOFT_TIME_LIMIT_SHARE = 0.95
# Default of the grace period, as a share of the lease.
GRACE_SHARE = 2 / 3
# Components that run without the app, from its description.
DESCRIBED = frozenset({"flower", "ops"})
# Words for each value of a switch.
WORDS = {
    **dict.fromkeys(("1", "on", "t", "true", "y", "yes"), True),
    **dict.fromkeys(("0", "f", "false", "n", "no", "off"), False),
}
# Limits of a number: the comparison that must hold, and its words.
BOUNDS = {
    "above": (operator.gt, "greater than"),
    "least": (operator.ge, "greater than or equal to"),
    "most": (operator.le, "less than or equal to"),
}


def installed_release() -> str:
    """Return the id of the release that this Python belongs to; an empty string if it belongs to none."""
    manifest = Path(sys.prefix) / "release.json"
    return str(json.loads(manifest.read_text(encoding="utf-8"))["id"]) if manifest.is_file() else ""


def setting(default: Any = MISSING, *, factory: Any = MISSING, **limits: Any) -> Any:
    """Return a field of FleetSettings that is required, or whose values have limits.

    Args:
        default: Its value where the variable is not set or empty; without one it is required.
        factory: Returns the default.
        limits: `variable`, if the variable has another name than the field. For a number: `above`, `least`,
            `most`. `check`, which raises a ValueError for a value that cannot be.
    """
    # A URL contains a password.
    is_shown = limits.get("check") is not require_verified
    return field(default=default, default_factory=factory, metadata=limits, repr=is_shown)


def require_words(value: tuple[str, ...]) -> None:
    """Refuse an empty list.

    Raises:
        ValueError: It is empty.
    """
    if not value:
        raise ValueError("Input should have at least one name")


def require_absolute(path: str) -> None:
    """Refuse a relative path.

    Raises:
        ValueError: It is relative.
    """
    if path and not path.startswith("/"):
        raise ValueError("Input should be an absolute path")


def require_verified(url: str) -> None:
    """Refuse a URL with which Celery would not verify the server's certificate.

    Raises:
        ValueError: Celery would not, or it is no URL.
    """
    try:
        scheme, port = urlsplit(url).scheme, urlsplit(url).port
    except ValueError as error:
        raise ValueError("is not a URL; special characters of a password must be encoded") from error
    if scheme == "rediss" and (port is None or _tls(url).get("ssl_cert_reqs") != "required"):
        raise ValueError("must have a port, and end with ?ssl_cert_reqs=required&ssl_ca_certs=<file>")


@dataclass(frozen=True, kw_only=True)
class FleetSettings:
    """The settings that the fleet decides for every app.

    README.md has these descriptions in its table of variables.

    Attributes:
        app: The app, as package.module:attribute. Required, but for FLEET_APP_FILE.
        app_file: File that describes the app, as `fleet check --json` prints it. Flower and the operator's
            commands load it in place of the app, and need nothing that the app needs.
        component: The kind of this process. Only a worker keeps unacknowledged messages, and requeues them:
            another component would redeliver tasks that run, by its own timeout (kombu, QoS.restore_visible).
        broker_url: URL of the broker, with user, password and CA certificate. Celery reads it, too.
        result_backend: URL of the result backend. Celery reads it, too.
        release: Id of the release that runs, for `fleet probe`. Default: the id in release.json.
        level: `full`: nodes lose no message, on the versions of Celery, kombu, billiard and redis-py that are
            supported; with others no process starts. `standard`: any version, with Celery's own transport,
            pool and result backend. An inventory sets it as celery_app_level.
        accept_content: Accepted serializers, separated by commas. With pickle a message can run any code.
        accept_overrides: Settings of the app that the fleet may override silently, separated by commas:
            `fleet check` neither refuses a release because of them nor warns of them.
        prefetch_multiplier: Messages that a node prefetches for each task that it can run. With more, short
            tasks wait behind long ones, and more messages wait for the end of the lease when a node dies. A
            prefork or threads node prefetches some more if its tasks are short: see "Transport".
        atomic_fetch: Durability: whether nodes fetch messages with the runtime's own transport, which records
            each one as unacknowledged in the same step. With kombu's transport, a node that dies in between
            loses a message, so false needs the level standard. Default: true at full, else false.
        fast_pool: Speed: whether prefork nodes have the runtime's own pool. With Celery's, no message is
            lost, and a task needs more CPU. Default: true at full, else false; true is refused at standard.
        visibility_timeout: Seconds after which an unacknowledged message that its node does not know is
            redelivered. This is a last resort, because the messages of a dead node are requeued when its
            lease ends. A node knows a task that runs, or waits for its ETA, for as long as it takes.
        lease: Seconds without a heartbeat after which a node counts as dead, and other nodes requeue its
            messages. A node renews its lease three times in that time. A task that blocks the other threads
            of its node for longer runs twice: C code in solo or threads, any computation in gevent.
        lease_grace: Seconds in which a node that has just started or reconnected counts no other node as
            dead: after Redis was away all leases have ended, and the other nodes need time to renew theirs.
            Default: two thirds of the lease.
        give_back_step: Messages that are requeued in one step. Redis does nothing else during a step: one or
            two milliseconds for 100 messages.
        task_time_limit: Seconds after which a task is killed, in a node without --time-limit. A limit of the
            app or of the task comes before both.
        task_soft_time_limit: Seconds after which a task gets SoftTimeLimitExceeded. Default: 95 % of the time
            limit.
        result_expires: Longest time in seconds that Redis keeps a result; an app may set less. Redis evicts
            nothing here, so that permanent results would fill it.
        track_started: Also store that a task started: a second write for each. false leaves it to the app.
        task_events: Send an event to monitors for each step of each task, which costs CPU.
        soft_shutdown_timeout: Seconds that a cold shutdown (SIGQUIT) leaves running tasks, before it requeues
            them.
        max_crashes: Crashes of the process that runs a message (by a signal, for lack of memory, or with its
            node) after which the message becomes a dead letter instead of running again.
        dead_letter_limit: Dead letters that are kept, with their arguments; above that, the oldest are
            deleted. Each takes as much memory as in its queue, and some kB for its traceback. 0 keeps none.
        dead_letter_age: Seconds that dead letters are kept. They contain the personal data in the arguments.
        dead_letter_expired: Also keep messages that expired before they ran.
        log_arguments: Log the arguments and the result of each task, which may be personal data. The text of
            an exception is always in the log.
        log_file: Also write each log record to this file, as a line of JSON; {node} is replaced by the short
            name of the node. The file may be renamed at any time, as logrotate does.
        publish_retry_timeout: Seconds for which a task or Beat retries to publish, or to store a result,
            while the broker is away. With Celery's own, about one second, messages that a task sends while
            Redis restarts are lost.
        socket_timeout: Seconds without a reply after which a connection counts as dead. Without it, a
            connection to a host that vanished blocks for ever (kombu, socket_timeout). A node that waits for
            messages sends a command every ten seconds.
        socket_connect_timeout: Seconds to wait for a connection.
        health_check_interval: Seconds between checks of idle connections. A node that waits on a half-open
            connection consumes again after about twice that (kombu, health_check_interval).
        beat_max_interval: Longest sleep of Beat in seconds, after which it sees a change of the schedule.
        beat_lock_timeout: Seconds without a renewal of its lock after which a standby Beat takes over.
            RedBeat renews the lock only between two sleeps (schedulers.py, tick).
        node: Name of the node, which each record in the journal has. Default: Celery's name of it.
        node_time_limit: Seconds for which the unit of a node waits for tasks as it stops.
        node_watchdog: Seconds without a sign of life after which systemd restarts a node; 0 for never.
        beat_watchdog: The same for Beat.
    """

    app: str = ""
    app_file: str = setting("", check=require_absolute)
    component: Literal["worker", "beat", "flower", "web", "ops"] = setting()
    broker_url: str = setting("", variable="CELERY_BROKER_URL", check=require_verified)
    result_backend: str = setting("", variable="CELERY_RESULT_BACKEND", check=require_verified)
    release: str = setting(factory=installed_release)
    level: Literal["full", "standard"] = "full"
    accept_content: tuple[str, ...] = setting(("json",), check=require_words)
    accept_overrides: tuple[str, ...] = ()
    prefetch_multiplier: int = setting(1, least=1)
    atomic_fetch: bool = setting(None)
    fast_pool: bool = setting(None)
    visibility_timeout: int = setting(604800, above=0)
    lease: float = setting(30, least=3, most=3600)
    lease_grace: float | None = setting(None, above=0)
    give_back_step: int = setting(100, least=1)
    task_time_limit: float = setting(3600, above=0)
    task_soft_time_limit: float | None = setting(None, above=0)
    result_expires: float = setting(86400, above=0)
    track_started: bool = False
    task_events: bool = False
    soft_shutdown_timeout: float = setting(10, least=0)
    max_crashes: int = setting(3, least=1)
    dead_letter_limit: int = setting(10000, least=0)
    dead_letter_age: float = setting(14 * 86400, least=60)
    dead_letter_expired: bool = False
    log_arguments: bool = False
    log_file: str = setting("", check=require_absolute)
    publish_retry_timeout: int = setting(60, above=0)
    socket_timeout: float = setting(30, least=5)
    socket_connect_timeout: float = setting(5, above=0)
    health_check_interval: int = setting(25, above=0)
    beat_max_interval: float = setting(5, above=0)
    beat_lock_timeout: float = setting(30, above=0)
    node: str = ""
    node_time_limit: float = setting(math.inf, above=0)
    node_watchdog: float = setting(0, least=0)
    beat_watchdog: float = setting(0, least=0)

    @classmethod
    def from_environment(cls) -> Self:
        """Parse the settings from the environment.

        Raises:
            FleetError: Variables are missing or wrong. The message names each, without values of URLs.
        """
        renamed = {PREFIX + old: PREFIX + new for old, new in RENAMED.items() if os.environ.get(PREFIX + old)}
        for old, new in renamed.items():
            if os.environ.get(new, os.environ[old]) != os.environ[old]:
                raise FleetError(f"{old} is the old name of {new}, and they differ. Remove {old}.")
        given = {**os.environ, **{new: os.environ[old] for old, new in renamed.items()}}
        kinds = get_type_hints(cls)
        values: dict[str, Any] = {}
        faults = []
        for each in fields(cls):
            name = variable(each)
            if not (text := given.get(name)):
                if required(each):
                    faults.append(f"{name} is not set")
                continue
            try:
                values[each.name] = _parsed(text, kinds[each.name], each.metadata)
            except ValueError as error:
                faults.append(f"{name}: {error}")
        try:
            if not faults:
                return cls(**values)
        except ValueError as error:
            faults.append(str(error))
        raise FleetError("; ".join(faults) + ".")

    @property
    def is_full(self) -> bool:
        """Whether this process may replace functions of Celery and kombu, as the level `full` does.

        The transport depends on `atomic_fetch` alone, and the pool on `fast_pool`.
        """
        return self.level == "full"

    @property
    def soft_time_limit(self) -> float:
        """The soft time limit in seconds, or its default."""
        return self.task_soft_time_limit or self.task_time_limit * SOFT_TIME_LIMIT_SHARE

    @property
    def grace(self) -> float:
        """The grace period of leases in seconds, or its default."""
        return self.lease_grace or self.lease * GRACE_SHARE

    @property
    def broker_tls(self) -> dict[str, str]:
        """The TLS options of the broker's URL, for broker_use_ssl; empty for a plain URL."""
        return _tls(self.broker_url)

    @property
    def result_backend_tls(self) -> dict[str, str]:
        """The TLS options of the result backend's URL, for redis_backend_use_ssl; empty for a plain URL."""
        return _tls(self.result_backend)

    def __post_init__(self) -> None:
        """Set the switches that the environment does not have, and refuse values that contradict each other.

        Raises:
            ValueError: Two of them do; the message names their variables.
        """
        for name in ("atomic_fetch", "fast_pool"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, self.is_full)  # a frozen dataclass has no other way
        if not (self.app or self.app_file):
            raise ValueError("FLEET_APP is not set")
        if self.app_file and self.component not in DESCRIBED:
            raise ValueError(
                f"FLEET_APP_FILE is for Flower and the operator's commands, and this is a {self.component}, "
                "which needs the app itself: set FLEET_APP in its place"
            )
        if not self.broker_url and self.component != "ops":
            raise ValueError(
                f"CELERY_BROKER_URL is not set, and this {self.component} would use a broker the app names"
            )
        if self.is_full and not self.atomic_fetch:
            raise ValueError(
                "FLEET_ATOMIC_FETCH=false gives up that no message is lost, which the level full promises: "
                "remove it, or accept the level standard with celery_app_level: standard "
                "(FLEET_LEVEL=standard)"
            )
        for name in () if self.is_full else ("atomic_fetch", "fast_pool"):
            if getattr(self, name):
                raise ValueError(
                    f"FLEET_{name.upper()}=true contradicts the level standard (celery_app_level), which has "
                    "Celery's own transport and pool: remove one of the two"
                )
        if self.soft_time_limit >= self.task_time_limit:
            raise ValueError(
                f"FLEET_TASK_SOFT_TIME_LIMIT ({self.soft_time_limit:g}) must be less than "
                f"FLEET_TASK_TIME_LIMIT ({self.task_time_limit:g})"
            )
        if self.task_time_limit >= self.visibility_timeout:
            raise ValueError(
                f"FLEET_VISIBILITY_TIMEOUT ({self.visibility_timeout}) must exceed FLEET_TASK_TIME_LIMIT "
                f"({self.task_time_limit:g}), or a long task is redelivered while it runs"
            )
        if self.visibility_timeout <= self.lease:
            raise ValueError(
                f"FLEET_VISIBILITY_TIMEOUT ({self.visibility_timeout}) must exceed FLEET_LEASE "
                f"({self.lease:g}), or a node redelivers its own messages"
            )
        if self.grace < self.lease / 3:
            raise ValueError(
                f"FLEET_LEASE_GRACE ({self.grace:g}) must be at least a third of FLEET_LEASE "
                f"({self.lease:g}), or the other nodes have no time to renew their leases"
            )
        if self.beat_lock_timeout < 5 * self.beat_max_interval:
            raise ValueError(
                f"FLEET_BEAT_LOCK_TIMEOUT ({self.beat_lock_timeout:g}) must be at least five times "
                f"FLEET_BEAT_MAX_INTERVAL ({self.beat_max_interval:g}), or Beat loses its lock as it sleeps"
            )


def unknown_variables(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return a sentence for each variable that has the prefix of settings, but is not one of this release.

    A process that starts accepts such variables: it may be of an older release, after a rollback.
    """
    known = {each.name.upper() for each in fields(FleetSettings) if "variable" not in each.metadata}
    present = {name.removeprefix(PREFIX) for name in environment if name.startswith(PREFIX)}
    sentences = []
    for name in sorted(present - known - {UNIT_VARIABLE} - RENAMED.keys()):
        nearest = get_close_matches(name, known, n=1)
        hint = f" Is it {PREFIX}{nearest[0]}?" if nearest else ""
        sentences.append(f"{PREFIX}{name} is not a setting of this runtime.{hint}")
    return sentences


def renamed_variables(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return a sentence for each variable that is set under its old name."""
    return [
        f"{PREFIX}{old} is now {PREFIX}{new}; the old name is accepted for one release. In the inventory, "
        f"rename {old.lower()} to {new.lower()} in celery_app_settings."
        for old, new in RENAMED.items()
        if environment.get(PREFIX + old)
    ]


def _tls(url: str) -> dict[str, str]:
    """Return the TLS options of a URL."""
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query)) if parts.scheme == "rediss" else {}
    return {name: value for name, value in options.items() if name.startswith("ssl_")}


def variable(of: Field[Any]) -> str:
    """Return the environment variable of a field."""
    return str(of.metadata.get("variable", PREFIX + of.name.upper()))


def required(of: Field[Any]) -> bool:
    """Return whether a field has no default."""
    return of.default is MISSING and of.default_factory is MISSING


def _parsed(text: str, kind: Any, about: Mapping[str, Any]) -> Any:
    """Return the value of a variable.

    Args:
        text: The value of the variable, which is not empty.
        kind: The type of the field.
        about: The metadata of the field.

    Raises:
        ValueError: It is no such value.
    """
    kinds = get_args(kind)
    if isinstance(kinds[0] if kinds else None, str):  # a Literal
        if text not in kinds:
            *first, last = map(repr, kinds)
            raise ValueError(f"Input should be {', '.join(first)} or {last}")
        return text
    value: Any = text
    if str in kinds:
        value = tuple(text.replace(",", " ").split())
    elif kind is bool:
        value = WORDS.get(text.lower())
        if value is None:
            raise ValueError("Input should be a valid boolean, unable to interpret input")
    elif kind is not str:
        value = _number(text, int if kind is int else float, about)
    if "check" in about:
        about["check"](value)
    return value


def _number(text: str, kind: type[int] | type[float], about: Mapping[str, Any]) -> float:
    """Return a number within its bounds.

    Raises:
        ValueError: It is none.
    """
    try:
        value = kind(text)
    except ValueError:
        name = "integer" if kind is int else "number"
        raise ValueError(f"Input should be a valid {name}, and is {text}") from None
    if not abs(value) < math.inf:
        raise ValueError("Input should be a finite number")
    for name, (holds, words) in BOUNDS.items():
        if name in about and not holds(value, about[name]):
            raise ValueError(f"Input should be {words} {about[name]:g}")
    return value
