# SPDX-License-Identifier: MIT
"""The role celery_app's check of a release: what the app's code is given, and what it reaches."""

from __future__ import annotations

import inspect
import json
import re
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar
from fleet_runtime.bootstrap import overrides
from fleet_runtime.inspect import rights

from tests.unit.rendering import PROJECT, Role, trusted
from tests.unit.test_filters import read_environment_file

URL = "rediss://ops:s3cret-of-ops@redis1:6379/0?ssl_cert_reqs=required&ssl_ca_certs=/etc/fleet/tls/ca.crt"
GIVEN: dict[str, Any] = {
    "celery_app_name": "shop",
    "celery_app_import": "shop.app:app",
    "celery_app_ops_broker_url": URL,
    "celery_app_environment": {"DATABASE_URL": "postgresql://shop"},
    "__celery_app_release": {"id": "3f"},
}


def asked(**variables: Any) -> dict[str, Any]:
    """Return the options with which the module checks a release."""
    role = Role("celery_app", **GIVEN, **variables)
    [task] = role.read("tasks/internal/check.yml")
    options: dict[str, Any] = role.templar.template(trusted(task["fleet.celery.celery_release"]))
    return options


def test_an_app_that_is_checked_knows_no_password_of_redis() -> None:
    """The check asks no broker. The URL is as an app may read it, but for that."""
    options = asked()
    assert "s3cret" not in str(options)
    environment = read_environment_file(options["environment"])
    assert environment["CELERY_BROKER_URL"] == URL.replace("s3cret-of-ops", "none")
    assert environment["CELERY_RESULT_BACKEND"] == environment["CELERY_BROKER_URL"]
    assert environment["DATABASE_URL"] == "postgresql://shop"


@pytest.mark.parametrize("allowed", [[], ["192.0.2.0/24"]])
def test_an_app_that_is_checked_reaches_what_nodes_reach(allowed: list[str]) -> None:
    """All, or what the inventory names."""
    lines = asked(celery_app_ip_allow=allowed)["sandbox"].splitlines()
    assert [line for line in lines if line.startswith("IPAddressAllow=192")] == [
        f"IPAddressAllow={one}" for one in allowed
    ]
    assert ("IPAddressDeny=any" in lines) is bool(allowed)
    assert "ProtectSystem=strict" in lines


def allowed(**variables: Any) -> dict[str, Any]:
    """Return what the playbooks tell the role that Redis allows, where the Redis host has these variables."""
    given = yaml.safe_load((PROJECT / "playbooks/vars/celery_app.yml").read_text())["celery_app_redis_allows"]
    known = {"groups": {"redis": ["redis1"]}, "hostvars": {"redis1": variables}}
    value: dict[str, Any] = Templar(DataLoader(), variables=known).template(trusted(given))
    return value


def test_the_check_is_told_what_redis_allows() -> None:
    """All that the inventory has, and else the defaults of the role; nothing if that is not known."""
    defaults = Role("redis").read("defaults/main.yml")
    assert allowed() == {name: defaults[name] for name in allowed()}
    known = allowed(redis_exchanges=["news"], redis_web_may_control="yes", redis_bind=["192.0.2.1"])
    assert known == {**allowed(), "redis_exchanges": ["news"], "redis_web_may_control": True}
    told = read_environment_file(asked(celery_app_redis_allows=known)["environment"])
    assert json.loads(told["CHECK_REDIS"]) == known
    assert "CHECK_REDIS" not in read_environment_file(asked()["environment"])


def test_the_check_is_told_of_each_variable_that_it_may_name() -> None:
    """Of one that it is not told of, it would say for ever that the inventory lacks it."""
    named = {*overrides.NEEDING.values(), *re.findall(r'"(redis_\w+)"', inspect.getsource(rights))}
    assert named == set(allowed())
