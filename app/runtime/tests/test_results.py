# SPDX-License-Identifier: MIT
"""Results are stored as Celery stores them, in one round trip, and a client that waits for one gets it."""

from __future__ import annotations

import json
import threading
import time
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery, states
from celery.app.task import Context
from celery.backends import redis as stock
from celery.exceptions import BackendStoreError
from celery.result import AsyncResult, GroupResult, ResultSet
from fleet_runtime.compat.older_results import IS_OLDER
from fleet_runtime.worker import results
from fleet_runtime.worker.results import RedisBackend, StoringRedisBackend
from redis.client import Pipeline, PubSub, Redis
from redis.exceptions import TimeoutError as RedisTimeoutError

from fleet_testing.broker import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fleet_testing.broker import Broker

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
def make(broker: Broker, configure_app: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """Return a function that makes a node's result backend."""
    app = Celery("shop", set_as_current=False)
    configure_app(app, "worker", broker.url("worker"))

    def make(backend: type = StoringRedisBackend, **settings: Any) -> Any:
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
    """So that a client of any release can read them."""
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
        with counted() as sent:
            backend.store_result("second", 1, states.SUCCESS)
        counts.append(sent["requests"])
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


@pytest.fixture
def waiting(broker: Broker, connect: Callable[[Broker], Any]) -> Any:
    """Return an app that waits for results, in a process that is no node."""
    return connect(broker)


def late(monkeypatch: pytest.MonkeyPatch, name: str) -> threading.Event:
    """Let SUBSCRIBE for a task's result arrive only when an event is set, or after a second."""
    arrives, original = threading.Event(), PubSub.execute_command

    def execute_command(pubsub: Any, command: str, *args: Any) -> Any:
        """Hold a command back, as the network may, while other connections go on."""
        if command != "SUBSCRIBE" or not any(name.encode() in arg for arg in args):
            return original(pubsub, command, *args)

        def send() -> None:
            """Send it after all."""
            arrives.wait(1)
            original(pubsub, command, *args)

        return threading.Thread(target=send).start()

    monkeypatch.setattr(PubSub, "execute_command", execute_command)
    return arrives


def test_a_result_that_is_stored_before_the_subscription_is_not_missed(
    waiting: Any, make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis may read the SUBSCRIBE later than the GET that was sent after it, by another connection."""
    waiting.AsyncResult("first").ready()
    assert waiting.AsyncResult("first")._get_task_meta()["status"] == states.PENDING  # it is connected
    arrives, storing = late(monkeypatch, "one"), make()
    original = type(waiting.backend).get_task_meta

    def get_task_meta(backend: Any, *args: Any, **options: Any) -> Any:
        """Read what is stored; then it is stored, and then the subscription arrives."""
        meta = original(backend, *args, **options)
        storing.store_result("one", 7, states.SUCCESS)
        arrives.set()
        return meta

    monkeypatch.setattr(type(waiting.backend), "get_task_meta", get_task_meta)
    assert waiting.AsyncResult("one").get(timeout=10) == 7


def test_a_result_is_read_again_if_its_subscription_takes_too_long_to_be_confirmed(
    waiting: Any, make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once it is."""
    monkeypatch.setattr(results, "SUBSCRIBE_TIMEOUT_S", 0.1)
    late(monkeypatch, "one")
    sent = waiting.AsyncResult("one")
    storing = threading.Timer(0.5, make().store_result, ("one", 8, states.SUCCESS))
    storing.start()
    assert sent.get(timeout=10) == 8


def test_who_waits_gets_the_failure_of_a_parent(
    waiting: Any, make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not what became of the child by it, though both are stored before the subscription is confirmed."""
    storing, original = make(), results.ResultConsumer.on_wait_for_pending
    sent = AsyncResult("body", app=waiting, parent=waiting.AsyncResult("header"))

    def on_wait_for_pending(consumer: Any, *args: Any, **options: Any) -> None:
        """Store both, after Celery has looked at the parent."""
        storing.store_result("header", KeyError("why"), states.FAILURE)
        storing.store_result("body", ValueError("the header failed"), states.FAILURE)
        original(consumer, *args, **options)

    monkeypatch.setattr(results.ResultConsumer, "on_wait_for_pending", on_wait_for_pending)
    with pytest.raises(KeyError, match="why"):
        sent.get(timeout=10)


def test_results_are_read_again_when_the_connection_was_lost(
    broker: Broker, waiting: Any, make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Celery reads them first, and subscribes then."""
    sent, consumer = waiting.AsyncResult("one"), waiting.backend.result_consumer
    waiting.backend.add_pending_result(sent)
    while consumer._unconfirmed:
        consumer.drain_events(timeout=5)
    late(monkeypatch, "one")
    consumer._reconnect_pubsub()
    make().store_result("one", 9, states.SUCCESS)
    until = time.monotonic() + 10
    while not sent._cache and time.monotonic() < until:
        consumer.drain_events(timeout=1)
    assert sent.get(timeout=0.1) == 9


def test_waiting_costs_no_more_commands(broker: Broker, waiting: Any, make: Callable[..., Any]) -> None:
    """Than with Celery's own: what is new is when they are sent."""
    storing, counts = make(), []
    for kind in (RedisBackend, stock.RedisBackend):
        backend = kind(app=waiting, url=waiting.conf.result_backend)
        numbers = range(10)
        for number in numbers:
            storing.store_result(f"{kind.__module__}-{number}", number, states.SUCCESS)
        ids = [f"{kind.__module__}-{number}" for number in numbers]
        backend.get_state(ids[0])
        with counted() as sent:
            assert [AsyncResult(one, backend=backend).get(timeout=10) for one in ids] == list(numbers)
        counts.append(sent["commands"])
    assert counts[0] <= counts[1]


CLEANUP = "_chord_cleanup_script"


@pytest.mark.parametrize("lost", ["request", "answer"])
def test_a_part_of_a_chord_counts_though_redis_does_not_answer(
    broker: Broker, make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """The process that ends the last part calls the body once, also if only the reply to that was lost."""
    backend, called = make(result_backend_transport_options={"retry_policy": {"interval_start": 0}}), []
    body = backend.app.signature("body")
    monkeypatch.setattr(type(body), "delay", lambda _, results: called.append(results))
    if IS_OLDER:  # pipelines, in place of scripts
        monkeypatch.setattr(Pipeline, "execute", unsure_once(lost, Pipeline.execute))
    for name in () if IS_OLDER else ("_chord_part_return_script", "_chord_claim_extend_script", CLEANUP):
        monkeypatch.setattr(stock.RedisBackend, name, property(partial(unsure, lost, _script(name))))
    backend.set_chord_size("group", 2)
    for index in range(2):
        request = Context(id=f"part-{index}", group="group", group_index=index, chord=body)
        backend.on_chord_part_return(request, states.SUCCESS, index)
    assert called == [[0, 1]]
    client = broker.client("admin")
    assert IS_OLDER or client.get(backend.get_key_for_group("group", ".c")) == "done"
    forget_group(client)


@pytest.mark.parametrize("structured", [False, True])
def test_the_parts_of_a_chord_are_read_though_redis_does_not_answer(
    broker: Broker, make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, structured: bool
) -> None:
    """By the process that calls the body: a chord whose parts have all succeeded has not failed."""
    backend, called = make(result_backend_transport_options={"retry_policy": {"interval_start": 0}}), []
    body = backend.app.signature("body")
    monkeypatch.setattr(type(body), "delay", lambda _, results: called.append(results))
    monkeypatch.setattr(type(backend.app), "backend", backend)
    backend.set_chord_size("group", 2)
    if structured:
        parts = [backend.app.AsyncResult(f"part-{index}") for index in range(2)]
        GroupResult("group", parts, app=backend.app).save(backend=backend)
    for index in range(2):
        backend.store_result(f"part-{index}", index, states.SUCCESS)
    for kind, name in ((Pipeline, "execute"), (Redis, "get"), (Redis, "mget")):
        monkeypatch.setattr(kind, name, silent_at_first(getattr(kind, name)))
    for index in range(2):
        request = Context(id=f"part-{index}", group="group", group_index=index, chord=body)
        backend.on_chord_part_return(request, states.SUCCESS, index)
    assert called == [[0, 1]]
    forget_group(broker.client("admin"))


def forget_group(client: Any) -> None:
    """Delete what there is of a chord."""
    for key in client.keys("celery-taskset-meta-group*"):
        client.delete(key)


def silent_at_first(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method of a client to whose first call Redis does not answer."""
    calls = count()

    def method(*args: Any, **options: Any) -> Any:
        if next(calls) == 0:
            raise RedisTimeoutError("Timeout reading from socket")
        return original(*args, **options)

    return method


def unsure_once(lost: str, original: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method of a pipeline with a time-out at each first call: before Redis has run it, or after."""
    calls = count()

    def method(pipe: Any, *args: Any, **options: Any) -> Any:
        is_first = next(calls) % 2 == 0
        answer = None if is_first and lost == "request" else original(pipe, *args, **options)
        if is_first:
            raise RedisTimeoutError("Timeout reading from socket")
        return answer

    return method


def _script(name: str) -> Any:
    """Return how Celery makes a script."""
    return getattr(stock, name.removeprefix("_").removesuffix("_script").upper() + "_LUA")


def unsure(lost: str, text: str, backend: Any) -> Any:
    """Return Celery's script, with a time-out at each first call: before Redis has run it, or after."""
    script, calls = backend.client.register_script(text), count()

    def run(*args: Any, **kwargs: Any) -> Any:
        is_first = next(calls) % 2 == 0
        answer = None if is_first and lost == "request" else script(*args, **kwargs)
        if is_first:
            raise RedisTimeoutError("Timeout reading from socket")
        return answer

    return run


@pytest.mark.long
def test_no_result_is_missed_over_tls(broker: Broker, waiting: Any, make: Callable[..., Any]) -> None:
    """In many rounds, each with results that are stored while they are begun to be waited for."""
    storing = make()
    for at in range(50):
        ids = [f"{at}-{number}" for number in range(20)]
        thread = threading.Thread(
            target=lambda ids=ids: [storing.store_result(one, one, states.SUCCESS) for one in ids]
        )
        thread.start()
        group = ResultSet([waiting.AsyncResult(one) for one in ids], app=waiting)
        assert group.join_native(timeout=5) == ids
        thread.join()
