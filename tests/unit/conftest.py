"""Let the tests import the modules' shared code as the modules do; and a Redis, for those that need one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import ansible.module_utils
import pytest

from tests.unit.redis_server import Server, running

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis

# On a host Ansible lays plugins/module_utils into its own package; here the package looks there as well.
ansible.module_utils.__path__.append(str(Path(__file__).parents[2] / "plugins" / "module_utils"))


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
