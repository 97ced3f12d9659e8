# SPDX-License-Identifier: MIT
"""The fleet's settings: read from the environment, checked, and explained.

A field `name` is the variable FLEET_NAME; an inventory sets it as `celery_app_settings: {name: value}`. What
each becomes in Celery is in `laying`. Figures were measured with Celery 5.7 on Redis 7.0.
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
# Variables of units, which begin like settings.
UNIT_VARIABLES = frozenset({"NODE", "NODE_ARGUMENTS", "NODE_TIME_LIMIT", "NODE_WATCHDOG", "BEAT_WATCHDOG"})
# Of the time limit: what is left is for the task to clean up in.
SOFT_TIME_LIMIT = 0.95
# Of the lease: what a node waits before it counts others as dead.
GRACE = 2 / 3

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Url = Annotated[str, Field(repr=False)]  # it has a password


def installed_release() -> str:
    """Return the id of the release that this Python belongs to; nothing if it belongs to none."""
    about = Path(sys.prefix) / "release.json"
    return str(json.loads(about.read_text(encoding="utf-8"))["id"]) if about.is_file() else ""


class FleetSettings(BaseSettings):
    """What the fleet decides for every app."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore", env_ignore_empty=True)

    app: str = Field(description="The app, as package.module:attribute.")
    component: Literal["worker", "beat", "flower", "web", "ops"] = Field(
        description="What this process is. Only a worker may hold messages, and so give them back: any other "
        "would hand out tasks that run, by a timeout of its own (kombu, QoS.restore_visible)."
    )
    broker_url: Url = Field(
        default="",
        validation_alias="CELERY_BROKER_URL",
        description="The broker, with user, password and CA certificate. Celery itself reads it, too.",
    )
    result_backend: Url = Field(
        default="",
        validation_alias="CELERY_RESULT_BACKEND",
        description="Where results are stored. Celery itself reads it, too.",
    )
    release: str = Field(
        default_factory=installed_release,
        description="Which release runs, for `fleet probe`. Default: the id in the venv's release.json.",
    )

    accept_content: Annotated[tuple[str, ...], NoDecode, Field(min_length=1)] = Field(
        default=("json",),
        description="Serializers to accept, with commas between. With pickle a message can run any code.",
    )
    accept_overrides: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Settings of the app that the fleet may override without a word, with commas between: "
        "`fleet check` neither refuses a release nor tells of them.",
    )
    prefetch_multiplier: int = Field(
        default=1,
        ge=1,
        description="Messages that a node reserves for each task that it can run. With more, short tasks "
        "wait behind long ones, and more messages wait for the end of its lease when a node dies; of short "
        'tasks a prefork or threads node takes some more by itself: see "Transport".',
    )
    atomic_fetch: bool = Field(
        default=True,
        description="Whether nodes take messages by the runtime's own transport, which records in the same "
        "step who has one, and hand them to their processes by its own pool. With kombu's transport, a node "
        "that dies in between loses one; with Celery's pool, each costs more CPU.",
    )
    visibility_timeout: int = Field(
        default=604800,
        gt=0,
        description="Seconds after which a message that is held, and that its node does not know, is handed "
        "out again: a last resort, because what a dead node held comes back by its lease. A task that runs, "
        "or waits for its ETA, is known to its node for as long as it takes.",
    )
    lease: float = Field(
        default=30,
        ge=3,
        le=3600,
        allow_inf_nan=False,
        description="Seconds after which a node that says nothing counts as dead, and others give back what "
        "it held. It says something three times as often. Where a task keeps the node's other threads from "
        "running for longer (C code in solo or threads, any computation in gevent), it runs twice.",
    )
    lease_grace: Seconds | None = Field(
        default=None,
        description="Seconds during which a node that has just started, or was cut off itself, counts nobody "
        "as dead: after Redis was away all leases have ended, and those who live need a moment to say so. "
        "Default: two thirds of the lease.",
    )
    give_back_step: int = Field(
        default=100,
        ge=1,
        description="Messages that are given back at a time. Redis does nothing else meanwhile: for 100 of "
        "them, one or two milliseconds.",
    )
    task_time_limit: Seconds = Field(
        default=3600,
        description="Seconds after which a task is killed, in a node that has no --time-limit. What the app "
        "or the task says comes before either.",
    )
    task_soft_time_limit: Seconds | None = Field(
        default=None,
        description="Seconds after which a task gets SoftTimeLimitExceeded. Default: 95 % of the time limit.",
    )
    result_expires: Seconds = Field(
        default=86400,
        description="Seconds that Redis keeps a result at most; an app may say less. Redis never evicts "
        "here, so results that stay would fill it.",
    )
    track_started: bool = Field(
        default=False,
        description="Store that a task started, too: a second write for each. false leaves it to the app.",
    )
    task_events: bool = Field(
        default=False, description="Tell monitors of each step of each task, which costs CPU."
    )
    soft_shutdown_timeout: float = Field(
        default=10,
        ge=0,
        allow_inf_nan=False,
        description="Seconds that a cold shutdown (SIGQUIT) leaves running tasks, before it hands them back.",
    )
    max_losses: int = Field(
        default=3,
        ge=1,
        description="How many times the process that runs a message may die, by a signal, for want of memory "
        "or with its node, until the message goes to the dead letters instead of running again.",
    )
    dead_letter_limit: int = Field(
        default=10000,
        ge=0,
        description="Messages that failed for good and are kept, with their arguments; then the oldest go. "
        "Each takes what it took in its queue, and some kB for its traceback. 0 keeps none.",
    )
    dead_letter_age: float = Field(
        default=14 * 86400,
        ge=60,
        allow_inf_nan=False,
        description="Seconds that they are kept. They hold whatever personal data the tasks got.",
    )
    dead_letter_expired: bool = Field(
        default=False,
        description="Keep what expired before it ran, too. Mostly nobody wants it any more: hence expiry.",
    )
    log_arguments: bool = Field(
        default=False,
        description="Log the arguments and the result of each task. They may be personal data. What an "
        "exception says of itself is in the log anyhow.",
    )
    log_file: str = Field(
        default="",
        pattern="^(/.+)?$",
        description="Write each record to this file, too, as a line of JSON; {node} becomes the node's short "
        "name. It may be renamed at any time, as logrotate does.",
    )
    patience: int = Field(
        default=60,
        gt=0,
        description="Seconds that a task or Beat waits for a broker that is away, to publish or to store a "
        "result. Celery's own, about one second, loses what a task sends while Redis restarts.",
    )
    socket_timeout: Seconds = Field(
        default=30,
        ge=5,
        description="Seconds without an answer after which a connection counts as dead. Without it, one to a "
        "host that vanished blocks for ever (kombu, socket_timeout). A node that waits for messages asks "
        "again every ten seconds.",
    )
    socket_connect_timeout: Seconds = Field(default=5, description="Seconds to wait for a connection.")
    health_check_interval: int = Field(
        default=25,
        gt=0,
        description="Seconds between checks of idle connections. A node that waits on a half-open one "
        "consumes again after about twice that (kombu, health_check_interval).",
    )
    beat_max_interval: Seconds = Field(
        default=5,
        description="Seconds that Beat sleeps at most, and so within which it sees a change of the schedule.",
    )
    beat_lock_timeout: Seconds = Field(
        default=30,
        description="Seconds of silence after which a standby Beat takes over. RedBeat renews its lock only "
        "between two sleeps (schedulers.py, tick).",
    )

    @classmethod
    def from_environment(cls) -> Self:
        """Return the settings.

        Raises:
            FleetError: Variables are missing or wrong. The message names each, and gives no value of a URL.
        """
        try:
            return cls()  # type: ignore[call-arg]  # from the environment
        except ValidationError as error:
            faults = [_fault(details) for details in error.errors(include_url=False)]
            raise FleetError("; ".join(faults) + ".") from None

    @property
    def soft_time_limit(self) -> float:
        """The soft time limit, given or not."""
        return self.task_soft_time_limit or self.task_time_limit * SOFT_TIME_LIMIT

    @property
    def grace(self) -> float:
        """The grace of leases, given or not."""
        return self.lease_grace or self.lease * GRACE

    @property
    def broker_tls(self) -> dict[str, str]:
        """The TLS options of the broker's URL, as broker_use_ssl has them; none for a plain URL."""
        return _tls(self.broker_url)

    @property
    def result_backend_tls(self) -> dict[str, str]:
        """The TLS options of the result backend's URL, as redis_backend_use_ssl has them."""
        return _tls(self.result_backend)

    @field_validator("accept_content", "accept_overrides", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        """Split what the environment has as one text."""
        return tuple(value.replace(",", " ").split()) if isinstance(value, str) else value

    @field_validator("broker_url", "result_backend")
    @classmethod
    def _verified(cls, url: str) -> str:
        """Refuse a URL that Celery would take without asking for the server's certificate."""
        try:
            scheme, port = urlsplit(url).scheme, urlsplit(url).port
        except ValueError as error:
            raise ValueError("is no URL; a password's special characters must be percent-encoded") from error
        if scheme == "rediss" and (port is None or _tls(url).get("ssl_cert_reqs") != "required"):
            raise ValueError("must have a port, and end with ?ssl_cert_reqs=required&ssl_ca_certs=<file>")
        return url

    @model_validator(mode="after")
    def _agree(self) -> Self:
        """Refuse values that cannot hold together."""
        if not self.broker_url and self.component != "ops":
            raise ValueError(
                f"CELERY_BROKER_URL is not set, and this {self.component} would use a broker the app names"
            )
        if self.soft_time_limit >= self.task_time_limit:
            raise ValueError(
                f"FLEET_TASK_SOFT_TIME_LIMIT ({self.soft_time_limit:g}) must be less than "
                f"FLEET_TASK_TIME_LIMIT ({self.task_time_limit:g})"
            )
        if self.task_time_limit >= self.visibility_timeout:
            raise ValueError(
                f"FLEET_VISIBILITY_TIMEOUT ({self.visibility_timeout}) must exceed FLEET_TASK_TIME_LIMIT "
                f"({self.task_time_limit:g}), or a long task is handed out again while it runs"
            )
        if self.visibility_timeout <= self.lease:
            raise ValueError(
                f"FLEET_VISIBILITY_TIMEOUT ({self.visibility_timeout}) must exceed FLEET_LEASE "
                f"({self.lease:g}), or a node hands out what it holds itself"
            )
        if self.grace < self.lease / 3:
            raise ValueError(
                f"FLEET_LEASE_GRACE ({self.grace:g}) must be at least a third of FLEET_LEASE "
                f"({self.lease:g}), or who lives has no time to say so"
            )
        if self.beat_lock_timeout < 5 * self.beat_max_interval:
            raise ValueError(
                f"FLEET_BEAT_LOCK_TIMEOUT ({self.beat_lock_timeout:g}) must be at least five times "
                f"FLEET_BEAT_MAX_INTERVAL ({self.beat_max_interval:g}), or Beat loses its lock in its sleep"
            )
        return self


def unknown_variables(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return a sentence for each variable that looks like a setting, but is none of this release's.

    A process that starts does not refuse them: it may be of an older release, that of a rollback.
    """
    known = {name.upper() for name, field in FleetSettings.model_fields.items() if not field.validation_alias}
    given = {name.removeprefix(PREFIX) for name in environment if name.startswith(PREFIX)}
    sentences = []
    for name in sorted(given - known - UNIT_VARIABLES):
        nearest = get_close_matches(name, known, n=1)
        hint = f" Is it {PREFIX}{nearest[0]}?" if nearest else ""
        sentences.append(f"{PREFIX}{name} is no setting of this runtime.{hint}")
    return sentences


def _tls(url: str) -> dict[str, str]:
    """Return the TLS options of a URL."""
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query)) if parts.scheme == "rediss" else {}
    return {name: value for name, value in options.items() if name.startswith("ssl_")}


def _fault(details: Any) -> str:
    """Return what pydantic says of one variable, in the operator's words."""
    message = str(details["msg"]).removeprefix("Value error, ")
    if not details["loc"]:
        return message
    name = str(details["loc"][0])
    variable = name if name.isupper() else f"{PREFIX}{name.upper()}"
    return f"{variable} is not set" if details["type"] == "missing" else f"{variable}: {message}"
