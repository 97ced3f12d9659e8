# SPDX-License-Identifier: MIT
"""Fixtures for the tests of the demo: the runtime's."""

from fleet_testing.fixtures import _redis, _scripts_are_functions, broker, redis_server

__all__ = ["_redis", "_scripts_are_functions", "broker", "redis_server"]
