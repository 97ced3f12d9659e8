# SPDX-License-Identifier: MIT
"""The fleet's settings: what they are without a word, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from fleet_runtime.errors import FleetError
from fleet_runtime.settings import FleetSettings, renamed_variables, unknown_variables

URL = "rediss://worker:secret%20word@redis:6379/0?ssl_cert_reqs=required&ssl_ca_certs=/etc/ca.crt"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give a test the environment of a worker."""
    for name, value in {
        "FLEET_APP": "shop:app",
        "FLEET_COMPONENT": "worker",
        "CELERY_BROKER_URL": URL,
        "CELERY_RESULT_BACKEND": URL,
    }.items():
        monkeypatch.setenv(name, value)


def test_the_least_that_must_be_said_is_enough() -> None:
    """Everything else has a default, and the TLS options are those of the URL."""
    settings = FleetSettings.from_environment()
    assert settings.accept_content == ("json",)
    assert settings.soft_time_limit == 3420
    assert settings.broker_tls == {"ssl_cert_reqs": "required", "ssl_ca_certs": "/etc/ca.crt"}
    assert settings.result_backend_tls == settings.broker_tls


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"FLEET_APP": ""}, "FLEET_APP is not set."),
        ({"FLEET_COMPONENT": ""}, "FLEET_COMPONENT is not set."),
        ({"FLEET_COMPONENT": "worker2"}, "FLEET_COMPONENT: Input should be 'worker', 'beat', 'flower'"),
        (
            {"CELERY_BROKER_URL": ""},
            "CELERY_BROKER_URL is not set, and this worker would use a broker the app",
        ),
        ({"CELERY_BROKER_URL": "rediss://u:a/b@h:1/0"}, "CELERY_BROKER_URL: is not a URL; special char"),
        ({"CELERY_BROKER_URL": "rediss://u:pw@h:1/0"}, "end with ?ssl_cert_reqs=required"),
        (
            {"CELERY_RESULT_BACKEND": URL.replace("required", "none")},
            "CELERY_RESULT_BACKEND: must have a port",
        ),
        ({"FLEET_ACCEPT_CONTENT": " "}, "FLEET_ACCEPT_CONTENT: "),
        ({"FLEET_LEVEL": "fast"}, "FLEET_LEVEL: Input should be 'full' or 'standard'"),
        ({"FLEET_ATOMIC_FETCH": "false"}, "accept the level standard with celery_app_level: standard"),
        (
            {"FLEET_LEVEL": "standard", "FLEET_ATOMIC_FETCH": "true"},
            "FLEET_ATOMIC_FETCH=true contradicts the level standard (celery_app_level)",
        ),
        (
            {"FLEET_LEVEL": "standard", "FLEET_FAST_POOL": "true"},
            "FLEET_FAST_POOL=true contradicts the level standard (celery_app_level)",
        ),
        (
            {"FLEET_PREFETCH_MULTIPLIER": "0"},
            "FLEET_PREFETCH_MULTIPLIER: Input should be greater than or equal",
        ),
        ({"FLEET_TASK_TIME_LIMIT": "soon"}, "FLEET_TASK_TIME_LIMIT: Input should be a valid number"),
        ({"FLEET_TASK_TIME_LIMIT": "inf"}, "FLEET_TASK_TIME_LIMIT: Input should be a finite number"),
        ({"FLEET_TASK_SOFT_TIME_LIMIT": "3600"}, "FLEET_TASK_SOFT_TIME_LIMIT (3600) must be less than"),
        ({"FLEET_VISIBILITY_TIMEOUT": "3600"}, "FLEET_VISIBILITY_TIMEOUT (3600) must exceed FLEET_TASK_TIME"),
        ({"FLEET_LEASE": "2"}, "FLEET_LEASE: Input should be greater than or equal to 3"),
        ({"FLEET_LEASE_GRACE": "9"}, "FLEET_LEASE_GRACE (9) must be at least a third of FLEET_LEASE (30)"),
        (
            {
                "FLEET_VISIBILITY_TIMEOUT": "3000",
                "FLEET_LEASE": "3000",
                "FLEET_TASK_TIME_LIMIT": "60",
            },
            "FLEET_VISIBILITY_TIMEOUT (3000) must exceed FLEET_LEASE (3000)",
        ),
        ({"FLEET_BEAT_LOCK_TIMEOUT": "20"}, "FLEET_BEAT_LOCK_TIMEOUT (20) must be at least five times"),
        (
            {"FLEET_TASK_EVENTS": "perhaps", "FLEET_PUBLISH_RETRY_TIMEOUT": "-1"},
            "boolean, unable to interpret input; FLEET_",
        ),
    ],
)
def test_what_cannot_be_is_refused(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    """The message names the variable, and shows no password."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(FleetError) as refused:
        FleetSettings.from_environment()
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("variables", "is_full"),
    [
        ({}, True),
        ({"FLEET_ATOMIC_FETCH": "true", "FLEET_FAST_POOL": "false"}, True),
        ({"FLEET_LEVEL": "standard"}, False),
        ({"FLEET_LEVEL": "standard", "FLEET_ATOMIC_FETCH": "false", "FLEET_FAST_POOL": "false"}, False),
    ],
)
def test_what_fits_the_level_is_accepted(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], *, is_full: bool
) -> None:
    """Both switches may be given as the level has them, and the pool may be Celery's at either."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    settings = FleetSettings.from_environment()
    assert settings.is_full is settings.atomic_fetch is is_full
    assert settings.fast_pool is (is_full and "FLEET_FAST_POOL" not in variables)


def test_serializers_have_commas_between(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment has text only."""
    monkeypatch.setenv("FLEET_ACCEPT_CONTENT", "json, yaml")
    assert FleetSettings.from_environment().accept_content == ("json", "yaml")


def test_operators_need_no_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    """`fleet check` runs before there is one."""
    monkeypatch.setenv("FLEET_COMPONENT", "ops")
    monkeypatch.delenv("CELERY_BROKER_URL")
    monkeypatch.delenv("CELERY_RESULT_BACKEND")
    assert FleetSettings.from_environment().broker_tls == {}


def test_the_release_is_that_of_the_virtual_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Unless a variable says otherwise."""
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert FleetSettings.from_environment().release == ""
    (tmp_path / "release.json").write_text(json.dumps({"id": "3fa9c1d2e4b5", "app": "shop"}))
    assert FleetSettings.from_environment().release == "3fa9c1d2e4b5"
    monkeypatch.setenv("FLEET_RELEASE", "other")
    assert FleetSettings.from_environment().release == "other"


def test_no_representation_has_a_password() -> None:
    """Settings end up in logs."""
    assert "secret" not in repr(FleetSettings.from_environment())


def test_a_misspelt_variable_is_found() -> None:
    """With the nearest right one; those of a node's unit are known."""
    given = {"FLEET_TASK_TIMELIMIT": "1", "FLEET_NODE": "default-1@host", "FLEET_QQ": "", "HOME": "/"}
    assert unknown_variables(given) == [
        "FLEET_QQ is not a setting of this runtime.",
        "FLEET_TASK_TIMELIMIT is not a setting of this runtime. Is it FLEET_TASK_TIME_LIMIT?",
    ]


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("FLEET_PATIENCE", "FLEET_PUBLISH_RETRY_TIMEOUT", "publish_retry_timeout"),
        ("FLEET_MAX_LOSSES", "FLEET_MAX_CRASHES", "max_crashes"),
    ],
)
def test_renamed_variable_is_accepted_and_reported(
    monkeypatch: pytest.MonkeyPatch, old: str, new: str, field: str
) -> None:
    """Set under both names, the values must be equal."""
    assert renamed_variables({new: "7"}) == []
    monkeypatch.setenv(old, "7")
    assert getattr(FleetSettings.from_environment(), field) == 7
    [sentence] = renamed_variables()
    assert sentence.startswith(f"{old} is now {new}; ")
    assert not any(old in line for line in unknown_variables())
    monkeypatch.setenv(new, "7")
    assert getattr(FleetSettings.from_environment(), field) == 7
    monkeypatch.setenv(new, "8")
    with pytest.raises(FleetError, match=f"{old} is the old name of {new}, and they differ"):
        FleetSettings.from_environment()
