# SPDX-License-Identifier: MIT
"""Tasks that wait for their rate limit do not hold up others."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from celery.worker.consumer import consumer as stock
from fleet_runtime.worker import consumer as module
from fleet_runtime.worker.consumer import FleetConsumer
from kombu.common import QoS
from kombu.utils.limits import TokenBucket

from fleet_testing.commands import FLAGS, PATIENCE

if TYPE_CHECKING:
    from fleet_testing.commands import Fleet

RESERVE = 4


@pytest.fixture
def consumer(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a consumer, as far as it handles rate limits."""
    monkeypatch.setattr(stock, "task_reserved", lambda request: None)
    made = FleetConsumer.__new__(FleetConsumer)
    made.limited, made._limit_order, made.task_buckets = set(), 0, {}
    made.qos = QoS(lambda prefetch_count: None, RESERVE)
    made.timer = SimpleNamespace(call_after=lambda *args, **options: None)
    made.on_task_request = lambda request: None
    return made


class Request:
    """What a node has of a message."""

    id = "one"


def test_what_waits_leaves_the_reserve_to_others(consumer: Any) -> None:
    """Until it runs."""
    bucket = TokenBucket(0.001, capacity=1)
    bucket.can_consume(1)
    requests = [Request() for _ in range(12)]
    for request in requests:
        consumer._limit_task(request, bucket, 1)
    assert consumer.qos.value == RESERVE + 12
    bucket.fill_rate = 1e9
    time.sleep(0.01)
    bucket.capacity = bucket._tokens = 12.0
    consumer._schedule_bucket_request(bucket)
    assert (consumer.qos.value, consumer.limited) == (RESERVE, set())


def test_what_waits_is_bounded(consumer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other nodes of the queue are to have some; and an app may set worker_eta_task_limit."""
    monkeypatch.setattr(module, "RATE_LIMITED_MAX", 5)
    bucket = TokenBucket(0.001, capacity=1)
    bucket.can_consume(1)
    for _ in range(12):
        consumer._limit_task(Request(), bucket, 1)
    assert consumer.qos.value == RESERVE + 5
    consumer.limited.clear()
    consumer.qos = QoS(lambda prefetch_count: None, RESERVE, max_prefetch=RESERVE + 2)
    requests = [Request() for _ in range(12)]
    for request in requests:
        consumer._limit_task(request, bucket, 1)
    assert consumer.qos.value == RESERVE + 2
    for request in requests:
        consumer._limit_move_to_pool(request)
    assert consumer.qos.value == RESERVE


def test_an_eta_that_is_over_waits_for_the_rate_limit_alike(consumer: Any) -> None:
    """Celery counts it as reserved again when its time has come."""
    bucket = TokenBucket(0.001, capacity=1)
    bucket.can_consume(1)
    request = Request()
    consumer.qos.increment_eventually()  # as Celery does while it waits for its time
    consumer._limit_post_eta(request, bucket, 1)
    assert consumer.qos.value == RESERVE + 1
    consumer._limit_move_to_pool(request)
    assert consumer.qos.value == RESERVE


@pytest.mark.server
@pytest.mark.parametrize("pool", ["prefork", pytest.param("threads", marks=pytest.mark.long)])
def test_others_run_beside_a_rate_limited_task(web: Any, fleet: Fleet, pool: str) -> None:
    """However many of the limited one there are before them."""
    with fleet.worker("limited", "--queues=email", f"--pool={pool}", *FLAGS):
        limited = [web.send_task("shop.seldom", queue="email") for _ in range(12)]
        assert limited[0].get(PATIENCE) is None
        start = time.monotonic()
        others = [web.send_task("shop.add", (1, 1), queue="email") for _ in range(5)]
        assert [one.get(PATIENCE) for one in others] == [2] * 5
        assert time.monotonic() - start < 5
        assert not limited[-1].ready()
