# SPDX-License-Identifier: MIT
"""What modules call the nodes' keys is what the runtime and kombu call them."""

from __future__ import annotations

from ansible_collections.fleet.celery.plugins.module_utils import fleet_keys, runtime_keys
from fleet_runtime.broker import keys, scripts
from kombu.transport.redis import PRIORITY_STEPS, Channel

from tools import redis_functions


def test_the_fleets_own_are_those_of_the_runtime() -> None:
    """They are generated."""
    assert redis_functions.KEYS.read_text() == redis_functions.names_of_keys(), "run `make functions`"
    assert runtime_keys.unacked("one@w1") == keys.unacked("one@w1")
    assert runtime_keys.FORGET_NODE == scripts.FORGET_NODE


def test_the_lists_of_a_queue() -> None:
    """Of whatever steps an app has between 0 and 9; kombu's own are among them."""
    steps = [f"{Channel.sep}{step}" if step else "" for step in range(10)]
    assert list(fleet_keys.PRIORITIES) == steps
    assert set(PRIORITY_STEPS) < set(range(10))


def test_what_is_bound_to_remote_control() -> None:
    forms = (Channel.keyprefix_queue, Channel.keyprefix_binding_permanent)
    assert tuple(form % fleet_keys.PIDBOX for form in forms) == fleet_keys.BINDINGS
    assert Channel.sep == fleet_keys.SEPARATOR
