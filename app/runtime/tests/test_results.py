"""Results are what Celery stores, in one round trip."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery, states
from celery.backends import redis as stock
from celery.exceptions import BackendStoreError
from fleet_runtime.results import RedisBackend

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from app.tests.broker import Broker

pytestmark = [
    pytest.mark.server,
    pytest.mark.filterwarnings("ignore:Call to deprecated setex"),  # by Celery, which this is compared with
]
ENDS = [
    (states.SUCCESS, {"sum": 3}),
    (states.FAILURE, ValueError("three")),
    (states.RETRY, KeyError("again")),
    (states.STARTED, {"pid": 1}),
]


@pytest.fixture
def make(broker: Broker, lay: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """Return a function that makes a node's result backend."""
    app = Celery("shop", set_as_current=False)
    lay(app, "worker", broker.url("worker"))

    def make(backend: type = RedisBackend, **settings: Any) -> Any:
        app.conf.update(settings)
        return backend(app=app, url=app.conf.result_backend)

    yield make
    client = broker.client("admin")
    client.delete(*client.keys("celery-task-meta-*"), "none")
    app.close()


def stored(broker: Broker, name: str) -> Any:
    """Return what Redis has of a task's result, without the time."""
    result = json.loads(broker.client("admin").get(f"celery-task-meta-{name}"))
    result.pop("date_done")
    return {**result, "task_id": "any"}


@pytest.mark.parametrize(("state", "result"), ENDS)
def test_results_are_as_celery_stores_them(
    broker: Broker, make: Callable[..., Any], state: str, result: Any
) -> None:
    """Whoever reads them, with whatever release."""
    admin = broker.client("admin")
    make().store_result("own", result, state)
    make(stock.RedisBackend).store_result("celerys", result, state)
    assert stored(broker, "own") == stored(broker, "celerys")
    own, celerys = (admin.ttl(f"celery-task-meta-{name}") for name in ("own", "celerys"))
    assert 0 < own <= celerys <= own + 2
    assert make().get_state("own") == state


def test_a_result_is_one_round_trip(broker: Broker, make: Callable[..., Any]) -> None:
    """Celery's own needs two."""
    admin = broker.client("admin")
    counts = []
    for backend in (make(), make(stock.RedisBackend)):
        backend.store_result("first", 1, states.SUCCESS)  # connects, and sends the script
        before = admin.info("stats")["total_reads_processed"]
        backend.store_result("second", 1, states.SUCCESS)
        counts.append(admin.info("stats")["total_reads_processed"] - before - 1)  # but for the question
        admin.delete("celery-task-meta-second")
    assert counts == [1, 2]


def test_a_success_stays(broker: Broker, make: Callable[..., Any]) -> None:
    """Whatever a second run of the task says, as of a message that was handed out twice."""
    backend = make()
    backend.store_result("one", 1, states.SUCCESS)
    for state, result in ENDS:
        backend.store_result("one", result, state)
    assert stored(broker, "one")["result"] == 1
    broker.client("admin").set("celery-task-meta-one", "no JSON")
    backend.store_result("one", 2, states.SUCCESS)
    assert stored(broker, "one")["result"] == 2


def test_who_waits_is_told(broker: Broker, make: Callable[..., Any]) -> None:
    """By the channel of the result."""
    with broker.client("admin").pubsub(ignore_subscribe_messages=True) as subscriber:
        subscriber.subscribe("celery-task-meta-one")
        subscriber.get_message(timeout=5)
        make().store_result("one", 5, states.SUCCESS)
        assert json.loads(subscriber.get_message(timeout=5)["data"])["result"] == 5


def test_results_may_stay_for_ever(broker: Broker, make: Callable[..., Any]) -> None:
    """If the app says so."""
    backend = make()
    backend.expires = None
    backend.store_result("one", 1, states.SUCCESS)
    assert broker.client("admin").ttl("celery-task-meta-one") == -1


def test_another_serializer_is_celerys(make: Callable[..., Any]) -> None:
    """The script reads JSON only."""
    backend = make(result_serializer="yaml", result_accept_content=["yaml"])
    assert backend.serializer == "yaml"
    backend.store_result("one", 1, states.SUCCESS)
    backend.store_result("one", KeyError("two"), states.FAILURE)
    assert backend.get_result("one") == 1


def test_a_success_that_is_compressed_stays(make: Callable[..., Any]) -> None:
    """The script could not read it."""
    backend = make(result_compression="gzip")
    backend.store_result("one", 1, states.SUCCESS)
    backend.store_result("one", KeyError("two"), states.FAILURE)
    assert backend.get_result("one") == 1


def test_what_is_too_large_is_refused_as_by_celery(
    make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With Celery's own error."""
    monkeypatch.setattr(stock.RedisBackend, "_MAX_STR_VALUE_SIZE", 10)
    with pytest.raises(BackendStoreError, match="too large"):
        make().store_result("one", 1, states.SUCCESS)
