# SPDX-License-Identifier: MIT
"""No node ends, hangs or stops listening because of an item on a channel of all nodes."""

from __future__ import annotations

import json
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from celery.exceptions import TimeoutError as NoResultError
from fleet_runtime.compat.surface import may_replace
from fleet_runtime.transport import broadcast
from kombu.exceptions import OperationalError
from redis.exceptions import ConnectionError as NoConnectionError
from redis.exceptions import DataError

from fleet_testing import items
from fleet_testing.commands import PATIENCE, Daemon, shop, together, wait_until
from fleet_testing.relay import Relay

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fleet_testing.broker import Broker

# A queue for each type of pool. The nodes hear each other's events, as they do in a fleet.
POOLS = {"default": "prefork", "email": "gevent", "heavy": "solo", "io": "threads"}
FLAGS = ("--concurrency=2", "--without-mingle", "--heartbeat-interval=2")
CONTROL, EVENTS = "/0.celery.pidbox", "/0.celeryev/worker.heartbeat"


@pytest.fixture(
    scope="module",
    params=[
        pytest.param([queue for queue, pool in POOLS.items() if pool != "gevent"], id="loops"),
        pytest.param(["email"], id="gevent"),
    ],
)
def nodes(request: pytest.FixtureRequest, redis_server: Broker) -> Iterator[dict[str, Daemon]]:
    """Yield a node for each queue."""
    started = {
        queue: shop(redis_server).worker(f"hears-{pool}", f"--queues={queue}", f"--pool={pool}", *FLAGS)
        for queue, pool in POOLS.items()
        if queue in request.param
    }
    with together(started) as nodes:
        yield nodes


@pytest.mark.parametrize(
    ("channel", "published"),
    [
        pytest.param(CONTROL, {**items.no_messages(), **items.bad_messages()}, id="control"),
        pytest.param(EVENTS, {**items.no_messages(), **items.bad_messages()}, id="events"),
        pytest.param(CONTROL, items.bad_commands(), id="commands"),
        pytest.param(EVENTS, items.bad_events(), id="events-that-are-none"),
    ],
)
def test_what_is_no_message_ends_no_node(
    broker: Broker, web: Any, nodes: dict[str, Daemon], channel: str, published: dict[str, bytes]
) -> None:
    """Each node goes on, keeps its connection, and runs what comes next."""
    client = broker.client("admin")
    wait_until(lambda: client.publish(channel, b"5") >= len(nodes))  # a mailbox in a greenlet begins late
    for what, item in published.items():
        assert client.publish(channel, item) >= len(nodes), f"a node does not listen before: {what}"
    for queue, node in nodes.items():
        try:
            assert web.send_task("shop.add", (1, 2), queue=queue).get(timeout=PATIENCE) == 3
        except NoResultError:
            pytest.fail("\n".join([f"{POOLS[queue]} does not run what comes next:", *node.lines("")[-60:]]))
    for node in nodes.values():
        assert node.process.poll() is None
        assert not node.lines("Connection to broker lost"), node.lines("")[-20:]
        assert not node.lines("Unrecoverable error")
    wait_until(lambda: client.publish(channel, b"5") >= len(nodes))


def test_a_flood_of_commands_leaves_time_for_tasks(
    broker: Broker, web: Any, nodes: dict[str, Daemon]
) -> None:
    """While more commands are sent than a node can handle, it runs tasks, and its loop turns."""
    flood = json.dumps(items.message({"method": "query_task", "arguments": {"ids": ["x"] * 5000}}))
    is_over = threading.Event()

    def send() -> None:
        client = broker.client("admin")
        while not is_over.is_set():
            with client.pipeline(transaction=False) as pipe:
                for _ in range(20):
                    pipe.publish(CONTROL, flood)
                pipe.execute()

    sender = threading.Thread(target=send)
    sender.start()
    try:
        time.sleep(2)
        for queue in nodes:
            assert web.send_task("shop.add", (1, 2), queue=queue).get(timeout=PATIENCE) == 3
    finally:
        is_over.set()
        sender.join()


@pytest.mark.parametrize(
    "pool",
    ["prefork", "gevent", *(pytest.param(pool, marks=pytest.mark.long) for pool in ("solo", "threads"))],
)
def test_half_a_command_holds_nothing_up(broker: Broker, web: Any, pool: str) -> None:
    """A node to which the rest of it never comes, as from a network that fails, runs tasks, and stops."""
    command = json.dumps(items.message({"method": "query_task", "arguments": {"ids": ["x"] * 5000}}))
    with Relay(broker) as relay:
        url = relay.url("worker")
        urls = {"CELERY_BROKER_URL": url, "CELERY_RESULT_BACKEND": url}
        node = shop(broker).worker(f"half-{pool}", "--queues=default", f"--pool={pool}", *FLAGS, **urls)
        with node:
            relay.most = 8192
            wait_until(lambda: broker.client("admin").publish(CONTROL, command) and relay.stalled)
            sent = [web.send_task("shop.add", (1, 2), queue="default") for _ in range(10)]
            assert [one.get(timeout=PATIENCE) for one in sent] == [3] * len(sent)
    assert node.process.returncode == 0, node.lines("")[-20:]


def test_what_is_no_result_ends_no_wait(broker: Broker, web: Any) -> None:
    """A client that waits for a result goes on waiting, and gets it when it is there."""
    broadcast.patch_results(may_replace)  # as fleet_runtime.app does
    sent = web.AsyncResult("7b0c6f0e-6a3f-4a1c-9a55-3f1f8a2f7c11")
    channel = f"celery-task-meta-{sent.id}"
    client = broker.client("admin")

    def publish() -> None:
        wait_until(lambda: client.publish(channel, b"5"))
        for item in items.no_messages().values():
            client.publish(channel, item)
        for value in (
            {"status": 5, "task_id": sent.id},
            {"status": "SUCCESS"},
            {"status": "SUCCESS", "task_id": []},
        ):
            client.publish(channel, json.dumps(value))
        good = {"status": "SUCCESS", "result": 7, "task_id": sent.id, "traceback": None, "children": []}
        client.set(channel, json.dumps(good))
        client.publish(channel, json.dumps(good))

    publisher = threading.Thread(target=publish)
    publisher.start()
    try:
        assert sent.get(timeout=PATIENCE) == 7
    except NoResultError:
        pytest.fail("the result was not heard")
    finally:
        publisher.join()


def test_what_is_dropped_is_counted_and_seldom_said(caplog: pytest.LogCaptureFixture) -> None:
    """A line a minute for each kind, whatever the error's text does."""

    class SilentError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    dropped = broadcast.Dropped()
    for _ in range(3):
        dropped.add("events", SilentError())
        dropped.add("results", ValueError("x" * 10_000))
    assert dropped.counts == {"events": 3, "results": 3}
    assert len(caplog.messages) == 2
    assert all(len(text) < 400 for text in caplog.messages)


def test_what_the_broker_raises_is_no_fault_of_an_item() -> None:
    """But for what redis-py refuses to send."""
    assert broadcast.is_of_broker(NoConnectionError())
    assert broadcast.is_of_broker(OperationalError())
    assert not broadcast.is_of_broker(DataError())
    assert not broadcast.is_of_broker(KeyError())
