# SPDX-License-Identifier: MIT
"""What modules call the nodes' keys is what the runtime and kombu call them."""

from __future__ import annotations

import pytest
from ansible_collections.fleet.celery.plugins.module_utils import fleet_keys
from fleet_runtime.broker import keys
from kombu.transport.redis import PRIORITY_STEPS, Channel


@pytest.mark.parametrize(
    "name", ["LEASES", "NODES", "DRAINED", "DEAD", "WANTED", "IDLE_QUEUES", "HISTORY", "BEAT"]
)
def test_a_key_of_the_fleet(name: str) -> None:
    assert getattr(fleet_keys, name) == getattr(keys, name)


@pytest.mark.parametrize("name", ["UNACKED", "UNACKED_INDEX", "UNACKED_MUTEX", "PROOFS"])
def test_a_key_of_a_node(name: str) -> None:
    assert f"{getattr(fleet_keys, name)}:one@w1" == getattr(keys, name.lower())("one@w1")


def test_the_lists_of_a_queue() -> None:
    """Of whatever steps an app has between 0 and 9; kombu's own are among them."""
    steps = [f"{Channel.sep}{step}" if step else "" for step in range(10)]
    assert list(fleet_keys.PRIORITIES) == steps
    assert set(PRIORITY_STEPS) < set(range(10))


def test_what_is_bound_to_remote_control() -> None:
    forms = (Channel.keyprefix_queue, Channel.keyprefix_binding_permanent)
    assert tuple(form % fleet_keys.PIDBOX for form in forms) == fleet_keys.BINDINGS
    assert Channel.sep == fleet_keys.SEPARATOR
