# SPDX-License-Identifier: MIT
"""A Redis, for the tests that need one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.unit.redis_server import Server, running

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with what the role renders, whose users may use two queues."""
    with running(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def client(server: Server) -> redis.Redis:
    """An empty Redis, for its administrator."""
    client = server.client("admin")
    client.flushall()
    return client
