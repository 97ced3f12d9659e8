# SPDX-License-Identifier: MIT
"""Fixtures with a real Redis. Each conftest.py imports them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from fleet_runtime.broker import functions
from kombu import pools

from fleet_testing.broker import Broker

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session", autouse=True)
def _scripts_are_functions() -> None:
    """Call those of kombu and of redis-py as each process of the fleet does, also without its settings."""
    functions.adopt()


@pytest.fixture(scope="session")
def _redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """Yield a Redis that serves all tests."""
    broker = Broker(tmp_path_factory.mktemp("redis"))
    yield broker
    broker.stop()


@pytest.fixture(scope="module")
def redis_server(_redis: Broker) -> Broker:
    """Return the Redis, with nothing in it that the tests of another file have left, but its functions.

    kombu's pools are emptied, too: a pooled channel declares an exchange once, and would not bind it again.
    """
    _redis.client("admin").flushall()
    pools.reset()
    return _redis


@pytest.fixture
def broker(redis_server: Broker) -> Iterator[Broker]:
    """Yield the Redis, and hold a test to it that the access rules had nothing to refuse."""
    redis_server.client("admin").acl_log_reset()
    yield redis_server
    if denied := redis_server.denied():
        pytest.fail(f"Redis refused: {denied}")
