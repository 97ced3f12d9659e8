# SPDX-License-Identifier: MIT
"""A task that is due does not wait behind thousands of tasks that wait for their ETA."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from fleet_runtime.transport.transports import Transport
from fleet_runtime.transport.tuning import ETA_RUN, NEWEST_EVERY
from fleet_runtime.worker.bootsteps import own_keys
from fleet_runtime.worker.consumer import _count_if_delayed
from kombu import Connection, Consumer, Exchange, Queue

from fleet_testing.commands import FLAGS, PATIENCE, shop

if TYPE_CHECKING:
    from collections.abc import Callable

    from fleet_testing.broker import Broker

pytestmark = pytest.mark.server
ROOM = 8  # messages that the channel reserves


@pytest.fixture
def admin(broker: Broker) -> Any:
    """Return a connection of the administrator, with an empty queue."""
    client = broker.client("admin")
    client.delete("default", *own_keys("one").values())
    return client


def take(broker: Broker, enough: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
    """Take messages until there are enough, as a node does, which keeps what has an ETA; return headers."""
    got: list[dict[str, Any]] = []
    url, options = broker.url("worker"), own_keys("one")
    with Connection(url, transport=Transport, transport_options=options) as connection:
        channel = connection.default_channel
        channel.basic_qos(0, ROOM, False)

        def on_message(message: Any) -> None:
            got.append(message.headers)
            before = channel.eta_count
            _count_if_delayed(message)
            if channel.eta_count > before:
                channel.basic_qos(0, channel.qos.prefetch_count + 1, False)
            else:
                message.ack()

        Consumer(channel, [Queue("default", Exchange("default"), "default")], on_message=on_message).consume()
        until = time.monotonic() + PATIENCE
        while not enough(got):
            assert time.monotonic() < until, f"{len(got)} came"
            try:
                connection.drain_events(timeout=0.05)
            except OSError:
                continue
        for message in list(channel.qos._delivered.values()):
            if not message.acknowledged:
                message.ack()
    return got


def test_what_is_due_comes_between(broker: Broker, web: Any, admin: Any) -> None:
    """Once a node has seen that many in a row wait for their time; each message comes once."""
    delayed = [web.send_task("shop.add", (1, 1), countdown=3600, queue="default").id for _ in range(600)]
    due = [web.send_task("shop.add", (1, 1), queue="default").id for _ in range(20)]
    order = [headers["id"] for headers in take(broker, lambda got: len(got) == 620)]
    assert sorted(order) == sorted(delayed + due)
    begins = order.index(due[-1])
    assert ETA_RUN - ROOM <= begins <= ETA_RUN + 2 * ROOM
    assert max(map(order.index, due)) < begins + len(due) * NEWEST_EVERY * 2
    assert [one for one in order if one in delayed][:ETA_RUN] == delayed[:ETA_RUN]
    assert not admin.llen("default")


def test_what_is_due_comes_in_its_order(broker: Broker, web: Any, admin: Any) -> None:
    """Where the oldest are due, too, whatever waits for its time among them."""
    sent = [
        web.send_task("shop.add", (1, 1), queue="default", countdown=3600 * (number % 3 > 0)).id
        for number in range(ETA_RUN * 3)
    ]
    order = [headers["id"] for headers in take(broker, lambda got: len(got) == len(sent))]
    assert order == sent


def test_what_is_overdue_comes_in_its_order(broker: Broker, web: Any, admin: Any) -> None:
    """As retries and countdowns after an outage, all of which are due."""
    sent = [
        web.send_task("shop.add", (1, 1), queue="default", countdown=-number - 1).id
        for number in range(ETA_RUN * 2)
    ]
    order = [headers["id"] for headers in take(broker, lambda got: len(got) == len(sent))]
    assert order == sent


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_node_runs_what_is_due(broker: Broker, web: Any, admin: Any, pool: str) -> None:
    """As it starts with thousands that are not."""
    with web.producer_pool.acquire() as producer:
        for _ in range(4000):
            web.send_task("shop.add", (1, 1), countdown=7200, queue="default", producer=producer)
    sent = web.send_task("shop.add", (2, 3), queue="default")
    with shop(broker).worker("one", "--queues=default", f"--pool={pool}", *FLAGS):
        assert sent.get(timeout=PATIENCE) == 5
        assert admin.llen("default") > 1000, "it came in its turn"
    assert admin.llen("default") == 4000
    admin.delete("default")
