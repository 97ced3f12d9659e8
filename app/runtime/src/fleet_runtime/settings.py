# SPDX-License-Identifier: MIT
"""The fleet's settings: parsed from the environment, validated, and documented.

A field `name` is the variable FLEET_NAME; an inventory sets it as `celery_app_settings: {name: value}`.
`bootstrap.configure` turns them into settings of Celery. Figures were measured with Celery 5.7 on Redis 7.0.
"""

from __future__ import annotations

import json
import os
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self
from urllib.parse import parse_qsl, urlsplit

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from fleet_runtime.errors import FleetError

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "FLEET_"
# Variables of units, which have the prefix and are not settings.
UNIT_VARIABLES = frozenset({"NODE", "NODE_ARGUMENTS", "NODE_TIME_LIMIT", "NODE_WATCHDOG", "BEAT_WATCHDOG"})
# Old names of settings, which are accepted for one release.
RENAMED = {"PATIENCE": "PUBLISH_RETRY_TIMEOUT", "MAX_LOSSES": "MAX_CRASHES"}
# Default of the soft time limit, as a share of the hard one: a task needs the rest to clean up.
SOFT_TIME_LIMIT_SHARE = 0.95
# Default of the grace period, as a share of the lease.
GRACE_SHARE = 2 / 3

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Url = Annotated[str, Field(repr=False)]  # it contains a password


def installed_release() -> str:
    """Return the id of the release that this Python belongs to; an empty string if it belongs to none."""
    manifest = Path(sys.prefix) / "release.json"
    return str(json.loads(manifest.read_text(encoding="utf-8"))["id"]) if manifest.is_file() else ""


class FleetSettings(BaseSettings):
    """The settings that the fleet decides for every app."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore", env_ignore_empty=True)

    app: str = Field(description="The app, as package.module:attribute.")
    component: Literal["worker", "beat", "flower", "web", "ops"] = Field(
        description="The kind of this process. Only a worker keeps unacknowledged messages, and requeues "
        "them: another component would redeliver tasks that run, by its own timeout (kombu, "
        "QoS.restore_visible)."
    )
    broker_url: Url = Field(
        default="",
        validation_alias="CELERY_BROKER_URL",
        description="URL of the broker, with user, password and CA certificate. Celery reads it, too.",
    )
    result_backend: Url = Field(
        default="",
        validation_alias="CELERY_RESULT_BACKEND",
        description="URL of the result backend. Celery reads it, too.",
    )
    release: str = Field(
        default_factory=installed_release,
        description="Id of the release that runs, for `fleet probe`. Default: the id in release.json.",
    )
    level: Literal["full", "standard"] = Field(
        default="full",
        description="`full`: nodes lose no message, on the versions of Celery, kombu, billiard and redis-py "
        "that are supported; with others no process starts. `standard`: any version, with Celery's own "
        "transport, pool and result backend. An inventory sets it as celery_app_level.",
    )

    accept_content: Annotated[tuple[str, ...], NoDecode, Field(min_length=1)] = Field(
        default=("json",),
        description="Accepted serializers, separated by commas. With pickle a message can run any code.",
    )
    accept_overrides: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Settings of the app that the fleet may override silently, separated by commas: `fleet "
        "check` neither refuses a release because of them nor warns of them.",
    )
    prefetch_multiplier: int = Field(
        default=1,
        ge=1,
        description="Messages that a node prefetches for each task that it can run. With more, short tasks "
        "wait behind long ones, and more messages wait for the end of the lease when a node dies. A prefork "
        'or threads node prefetches some more if its tasks are short: see "Transport".',
    )
    atomic_fetch: bool | None = Field(
        default=None,
        description="Whether nodes fetch messages with the runtime's own transport, which records each one "
        "as unacknowledged in the same step. With kombu's transport, a node that dies in between loses a "
        "message. Default: true at the level full, false at standard; any other combination is refused.",
    )
    fast_pool: bool | None = Field(
        default=None,
        description="Whether prefork nodes have the runtime's own pool. Celery's, with corrected time "
        "limits, needs more CPU for each task, and loses nothing. Default: true at the level full; at "
        "standard the pool is Celery's as it is, and true is refused.",
    )
    visibility_timeout: int = Field(
        default=604800,
        gt=0,
        description="Seconds after which an unacknowledged message that its node does not know is "
        "redelivered. This is a last resort, because the messages of a dead node are requeued when its "
        "lease ends. A node knows a task that runs, or waits for its ETA, for as long as it takes.",
    )
    lease: float = Field(
        default=30,
        ge=3,
        le=3600,
        allow_inf_nan=False,
        description="Seconds without a heartbeat after which a node counts as dead, and other nodes requeue "
        "its messages. A node renews its lease three times in that time. A task that blocks the other "
        "threads of its node for longer runs twice: C code in solo or threads, any computation in gevent.",
    )
    lease_grace: Seconds | None = Field(
        default=None,
        description="Seconds in which a node that has just started or reconnected counts no other node as "
        "dead: after Redis was away all leases have ended, and the other nodes need time to renew theirs. "
        "Default: two thirds of the lease.",
    )
    give_back_step: int = Field(
        default=100,
        ge=1,
        description="Messages that are requeued in one step. Redis does nothing else during a step: one or "
        "two milliseconds for 100 messages.",
    )
    task_time_limit: Seconds = Field(
        default=3600,
        description="Seconds after which a task is killed, in a node without --time-limit. A limit of the "
        "app or of the task comes before both.",
    )
    task_soft_time_limit: Seconds | None = Field(
        default=None,
        description="Seconds after which a task gets SoftTimeLimitExceeded. Default: 95 % of the time limit.",
    )
    result_expires: Seconds = Field(
        default=86400,
        description="Longest time in seconds that Redis keeps a result; an app may set less. Redis evicts "
        "nothing here, so that permanent results would fill it.",
    )
    track_started: bool = Field(
        default=False,
        description="Also store that a task started: a second write for each. false leaves it to the app.",
    )
    task_events: bool = Field(
        default=False, description="Send an event to monitors for each step of each task, which costs CPU."
    )
    soft_shutdown_timeout: float = Field(
        default=10,
        ge=0,
        allow_inf_nan=False,
        description="Seconds that a cold shutdown (SIGQUIT) leaves running tasks, before it requeues them.",
    )
    max_crashes: int = Field(
        default=3,
        ge=1,
        description="Crashes of the process that runs a message (by a signal, for lack of memory, or with "
        "its node) after which the message becomes a dead letter instead of running again.",
    )
    dead_letter_limit: int = Field(
        default=10000,
        ge=0,
        description="Dead letters that are kept, with their arguments; above that, the oldest are deleted. "
        "Each takes as much memory as in its queue, and some kB for its traceback. 0 keeps none.",
    )
    dead_letter_age: float = Field(
        default=14 * 86400,
        ge=60,
        allow_inf_nan=False,
        description="Seconds that dead letters are kept. They contain the personal data in the arguments.",
    )
    dead_letter_expired: bool = Field(
        default=False,
        description="Also keep messages that expired before they ran.",
    )
    log_arguments: bool = Field(
        default=False,
        description="Log the arguments and the result of each task, which may be personal data. The text of "
        "an exception is always in the log.",
    )
    log_file: str = Field(
        default="",
        pattern="^(/.+)?$",
        description="Also write each log record to this file, as a line of JSON; {node} is replaced by the "
        "short name of the node. The file may be renamed at any time, as logrotate does.",
    )
    publish_retry_timeout: int = Field(
        default=60,
        gt=0,
        description="Seconds for which a task or Beat retries to publish, or to store a result, while the "
        "broker is away. With Celery's own, about one second, messages that a task sends while Redis "
        "restarts are lost.",
    )
    socket_timeout: Seconds = Field(
        default=30,
        ge=5,
        description="Seconds without a reply after which a connection counts as dead. Without it, a "
        "connection to a host that vanished blocks for ever (kombu, socket_timeout). A node that waits for "
        "messages sends a command every ten seconds.",
    )
    socket_connect_timeout: Seconds = Field(default=5, description="Seconds to wait for a connection.")
    health_check_interval: int = Field(
        default=25,
        gt=0,
        description="Seconds between checks of idle connections. A node that waits on a half-open connection "
        "consumes again after about twice that (kombu, health_check_interval).",
    )
    beat_max_interval: Seconds = Field(
        default=5,
        description="Longest sleep of Beat in seconds, after which it sees a change of the schedule.",
    )
    beat_lock_timeout: Seconds = Field(
        default=30,
        description="Seconds without a renewal of its lock after which a standby Beat takes over. RedBeat "
        "renews the lock only between two sleeps (schedulers.py, tick).",
    )

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
        values: dict[str, Any] = {
            new.removeprefix(PREFIX).lower(): os.environ[old] for old, new in renamed.items()
        }
        try:
            return cls(**values)
        except ValidationError as error:
            faults = [_fault(details) for details in error.errors(include_url=False)]
            raise FleetError("; ".join(faults) + ".") from None

    @property
    def is_full(self) -> bool:
        """Whether this process may replace functions of Celery and kombu, as the level `full` does."""
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

    @field_validator("accept_content", "accept_overrides", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        """Split a list that the environment has as one text."""
        return tuple(value.replace(",", " ").split()) if isinstance(value, str) else value

    @field_validator("broker_url", "result_backend")
    @classmethod
    def _verified(cls, url: str) -> str:
        """Refuse a URL with which Celery would not verify the server's certificate."""
        try:
            scheme, port = urlsplit(url).scheme, urlsplit(url).port
        except ValueError as error:
            raise ValueError("is not a URL; special characters of a password must be encoded") from error
        if scheme == "rediss" and (port is None or _tls(url).get("ssl_cert_reqs") != "required"):
            raise ValueError("must have a port, and end with ?ssl_cert_reqs=required&ssl_ca_certs=<file>")
        return url

    @model_validator(mode="after")
    def _agree(self) -> Self:
        """Refuse values that contradict each other."""
        if not self.broker_url and self.component != "ops":
            raise ValueError(
                f"CELERY_BROKER_URL is not set, and this {self.component} would use a broker the app names"
            )
        if self.is_full and self.atomic_fetch is False:
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
        return self


def unknown_variables(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return a sentence for each variable that has the prefix of settings, but is not one of this release.

    A process that starts accepts such variables: it may be of an older release, after a rollback.
    """
    known = {name.upper() for name, field in FleetSettings.model_fields.items() if not field.validation_alias}
    present = {name.removeprefix(PREFIX) for name in environment if name.startswith(PREFIX)}
    sentences = []
    for name in sorted(present - known - UNIT_VARIABLES - RENAMED.keys()):
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


def _fault(details: Any) -> str:
    """Return an error of pydantic as the beginning of a sentence that names the variable."""
    message = str(details["msg"]).removeprefix("Value error, ")
    if not details["loc"]:
        return message
    name = str(details["loc"][0])
    variable = name if name.isupper() else f"{PREFIX}{name.upper()}"
    return f"{variable} is not set" if details["type"] == "missing" else f"{variable}: {message}"
