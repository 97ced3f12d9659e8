# SPDX-License-Identifier: MIT
"""A script that takes memory without end ends Redis, and nothing else of its host."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from redis.exceptions import RedisError

from tests.fleet.faults.faults import REDIS
from tests.fleet.support.hosts import eventually

if TYPE_CHECKING:
    from tests.fleet.support.fleet import Fleet
    from tests.fleet.support.hosts import Host

pytestmark = pytest.mark.group("redis")

# Lua's memory is no part of maxmemory. Only `admin` may load a script.
HOARD = "local t = {} for i = 1, 1000000 do t[i] = string.rep(tostring(i), 20000) end"
BOUND = "256M"


def test_redis_has_a_bound(host: Host) -> None:
    """Below what the host has, and above what Redis takes for its data."""
    unit = host.unit(REDIS)
    assert int(unit["MemoryMax"]) <= host.size[1] * 1024**2 * 0.91


@pytest.mark.faults
def test_what_outgrows_the_bound_ends_redis_alone(fleet: Fleet, host: Host) -> None:
    """It is back with its data, and no other unit was started anew."""
    before = fleet.starts()
    with fleet.broker.connect("admin") as client:
        functions = len(client.function_list())
        host.sh('systemctl set-property --runtime "$1" "MemoryMax=$2"', REDIS, BOUND)
        try:
            with pytest.raises(RedisError):
                client.eval(HOARD, 0)
            eventually(lambda: fleet.restarted(before), timeout=60)
        finally:
            host.sh(
                'rm -f "/run/systemd/system.control/$1.d/50-MemoryMax.conf"; systemctl daemon-reload', REDIS
            )
    eventually(fleet.is_whole, timeout=120)
    assert fleet.restarted(before) == {(host.name, REDIS)}
    assert int(host.unit(REDIS)["MemoryMax"]) > 256 * 1024**2
    with fleet.broker.connect("admin") as client:
        assert len(client.function_list()) == functions
        assert client.exists("fleet:nodes")
