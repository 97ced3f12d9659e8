# SPDX-License-Identifier: MIT
"""The level full is refused with other versions of Celery; at standard nothing of Celery is replaced."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from fleet_runtime.broker import keys
from fleet_runtime.compat.surface import ALWAYS_REPLACED, SURFACE, Kind
from fleet_runtime.compat.versions import supported

from fleet_testing.commands import APPS, FLAGS, PATIENCE, Fleet, shop
from fleet_testing.dead_letters import letter_of

if TYPE_CHECKING:
    from celery import Celery

    from fleet_testing.broker import Broker

STANDARD = {"FLEET_LEVEL": "standard"}
OR_STANDARD = (
    "or accept Celery's own transport, pool and result backend with celery_app_level: standard "
    "(FLEET_LEVEL=standard)."
)
UNSUPPORTED = (
    f"This is kombu 5.9.0, and the level full supports {supported('kombu')} only: pin one of these in the "
    f"app's lock, {OR_STANDARD}"
)
CHANGED = (
    "Another package (the module untested) has replaced kombu.transport.redis:Channel._connparams, and the "
    f"level full relies on that of {supported('kombu')}: remove what replaces it, {OR_STANDARD}"
)
RECORDED = {f"command {name}" for name in ("revoke", "terminate", "revoke_by_stamped_headers")}
OWN = "fleet_runtime."
OTHERS = ("beat", "flower", "ops")  # components


def replaced(fleet: Fleet, component: str, *pool: str) -> tuple[set[str], list[str]]:
    """Return the names that are replaced in a process, and the classes of its transport and backend."""
    words = [sys.executable, f"{APPS}/replaced.py", *pool]
    done = subprocess.run(
        words, env=fleet.component(component), capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    return set(found["replaced"]), found["classes"]


def at(level: str, broker: Broker) -> Fleet:
    """Return the app shop at a level."""
    return Fleet(broker, "shop:app", PYTHONPATH=APPS, FLEET_LEVEL=level)


@pytest.mark.parametrize(
    "pool", ["prefork", *(pytest.param(pool, marks=pytest.mark.long) for pool in ("threads", "solo"))]
)
def test_a_node_at_the_level_standard_replaces_nothing(broker: Broker, pool: str) -> None:
    """But for calls of scripts, which the access rules allow as functions only.

    Commands that revoke are registered again, as Celery lets anyone do; its functions stay.
    """
    names, classes = replaced(at("standard", broker), "worker", pool)
    assert names == ALWAYS_REPLACED | RECORDED
    assert not [one for one in classes if one.startswith(OWN)]


@pytest.mark.parametrize(
    "component", ["web", *(pytest.param(name, marks=pytest.mark.long) for name in OTHERS)]
)
def test_no_process_at_the_level_standard_replaces_anything(broker: Broker, component: str) -> None:
    """Whatever it is."""
    names, classes = replaced(at("standard", broker), component)
    assert names == ALWAYS_REPLACED
    assert not [one for one in classes if one.startswith(OWN)]


@pytest.mark.parametrize(("component", "listens"), [("web", False), ("flower", True)])
def test_a_client_drops_malformed_items(broker: Broker, component: str, *, listens: bool) -> None:
    """Of results in every process, and of events in Flower, which listens to them as nodes do."""
    names, _ = replaced(at("full", broker), component)
    assert "celery.backends.redis:ResultConsumer.on_state_change" in names
    assert ("kombu.transport.redis:Channel._receive_one" in names) is listens


def test_a_node_at_the_level_full_replaces_all_that_is_declared(broker: Broker) -> None:
    """Else the test above would compare nothing. Of Beat it replaces methods of one object."""
    names, classes = replaced(at("full", broker), "worker", "prefork")
    declared = {str(name) for name in SURFACE if name.kind is Kind.REPLACE and name.is_expected}
    elsewhere = {"celery.concurrency.gevent.apply_timeout", "celery.app.trace.LOG_RECEIVED"}
    elsewhere |= {name for name in declared if name.startswith(("celery.beat:", "celery.worker.control."))}
    elsewhere |= {"kombu.utils.functional.sleep"}  # the same, without gevent
    assert declared - elsewhere <= names
    assert all(one.startswith(OWN) for one in classes)


@pytest.mark.parametrize(("variables", "sentence"), [({}, UNSUPPORTED), ({"CHANGED": "1"}, CHANGED)])
def test_a_node_at_the_level_full_does_not_start(
    broker: Broker, variables: dict[str, str], sentence: str
) -> None:
    """With another kombu, or with one that another package has changed; it says so in one sentence."""
    fleet = Fleet(broker, "untested:app", PYTHONPATH=APPS, **variables)
    refused = fleet.run("worker", "worker", "--hostname=one@test", *FLAGS)
    assert (refused.returncode, refused.stderr.splitlines()[-1]) == (1, f"celery: {sentence}")


@pytest.mark.parametrize(
    "component", ["web", *(pytest.param(name, marks=pytest.mark.long) for name in OTHERS[:2])]
)
def test_no_process_with_another_version_starts_at_the_level_full(broker: Broker, component: str) -> None:
    """Whatever it is."""
    refused = Fleet(broker, "untested:app", PYTHONPATH=APPS).run(component, "report")
    assert (refused.returncode, refused.stderr.splitlines()[-1]) == (1, f"celery: {UNSUPPORTED}")


@pytest.mark.parametrize(("variables", "sentence"), [({}, UNSUPPORTED), ({"CHANGED": "1"}, CHANGED)])
def test_the_check_refuses_a_release_at_the_level_full(
    broker: Broker, variables: dict[str, str], sentence: str
) -> None:
    """Before anything is switched; at standard it is fit to run. The operator's other commands work."""
    fleet = Fleet(broker, "untested:app", PYTHONPATH=APPS, **variables)
    refused = fleet.run("ops", "fleet", "check")
    assert (refused.returncode, refused.stderr.splitlines()[-1]) == (1, sentence)
    accepted = Fleet(broker, "untested:app", PYTHONPATH=APPS, **variables, **STANDARD)
    fit = accepted.run("ops", "fleet", "check")
    assert fit.returncode == 0
    assert fit.stdout.splitlines()[-1] == "The app is fit to run at the level standard."
    if not variables:
        assert json.loads(fleet.run("ops", "fleet", "status", "--json").stdout)["nodes"] == []


def test_the_level_is_in_the_check_and_in_the_status(broker: Broker, web: Celery) -> None:
    """Of each node, and as JSON; and a node at standard works, with all that public hooks can do."""
    fleet = at("standard", broker)
    assert json.loads(fleet.run("ops", "fleet", "check", "--json").stdout)["level"] == "standard"
    with (
        fleet.worker("one", "--queues=default", *FLAGS) as node,
        shop(broker).worker("two", "--queues=email", *FLAGS),
    ):
        assert web.send_task("shop.add", (40, 2), queue="default").get(timeout=PATIENCE) == 42
        nodes = json.loads(fleet.run("ops", "fleet", "status", "--json").stdout)["nodes"]
        assert {one["name"]: (one["level"], one["proved"]) for one in nodes} == {
            "one@test": ("standard", True),
            "two@test": ("full", True),
        }
        table = fleet.run("ops", "fleet", "status").stdout
        assert "LEVEL" in table
        assert any("one@test" in line and "standard" in line for line in table.splitlines())
        failed = web.send_task("shop.add", (1, "x"), queue="default")
        assert letter_of(broker, failed.id)["reason"] == "failed"
        broker.client("admin").delete("fleet:dead", "fleet:dead:letters")
        unknown = web.send_task("shop.unknown", queue="default")
        assert letter_of(broker, unknown.id)["reason"] == "unregistered"
        node.wait_for("takes tasks now")
    assert not broker.client("admin").exists(keys.unacked("one@test"))


def test_a_node_of_an_older_release_has_no_level(broker: Broker, fleet: Fleet) -> None:
    """It is not known which it has: it may have lowered its level by itself."""
    admin = broker.client("admin")
    admin.zadd(keys.LEASES, {"old@test": 4e9})
    admin.hset(keys.NODES, "old@test", json.dumps({"pool": "prefork", "concurrency": 1, "queues": []}))
    try:
        (node,) = json.loads(fleet.run("ops", "fleet", "status", "--json").stdout)["nodes"]
        assert node["level"] is None
    finally:
        admin.zrem(keys.LEASES, "old@test")
        admin.hdel(keys.NODES, "old@test")


def test_a_pool_of_celerys_is_at_the_level_full(broker: Broker, web: Celery) -> None:
    """FLEET_FAST_POOL is about speed alone: the pool is Celery's, unreplaced, and the transport is not."""
    fleet = Fleet(broker, "shop:app", PYTHONPATH=APPS, FLEET_FAST_POOL="false")
    names, classes = replaced(fleet, "worker", "prefork")
    assert not [
        name
        for name in names
        if name.startswith(("celery.concurrency.asynpool", "celery.concurrency.prefork"))
    ]
    assert all(one.startswith(OWN) for one in classes)
    with fleet.worker("one", "--queues=default", *FLAGS):
        assert web.send_task("shop.add", (40, 2), queue="default").get(timeout=PATIENCE) == 42
        facts: Any = json.loads(broker.client("admin").hget(keys.NODES, "one@test"))
        assert facts["level"] == "full"
