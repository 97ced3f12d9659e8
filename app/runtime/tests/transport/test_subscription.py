# SPDX-License-Identifier: MIT
"""The state of the queues between two fetches, without Redis."""

from __future__ import annotations

import pytest
from fleet_runtime.transport import tuning
from fleet_runtime.transport.subscription import Subscription

NOW = 100.0


@pytest.fixture
def idle() -> Subscription:
    """Return a subscription to queues that are empty."""
    subscription = Subscription()
    subscription.on_fetch()
    subscription.on_subscribe(NOW)
    subscription.on_checked(0, subscription.generation)
    return subscription


def test_a_new_subscription_fetches_before_it_subscribes() -> None:
    """The queues may have messages."""
    subscription = Subscription()
    assert subscription.may_have_messages
    assert not subscription.is_active
    assert not subscription.is_notified


def test_a_subscription_is_due_after_a_fetch() -> None:
    """A fetch ends the tracking of the lists that it reads."""
    subscription = Subscription()
    subscription.on_subscribe(NOW)
    subscription.on_fetch()
    assert subscription.is_due(NOW)


def test_an_idle_subscription_waits_for_a_notification(idle: Subscription) -> None:
    """It sends nothing until the poll interval is over."""
    assert not idle.may_have_messages
    assert not idle.is_due(NOW + tuning.POLL_INTERVAL_S)
    assert idle.is_due(NOW + tuning.POLL_INTERVAL_S + 1)


def test_on_invalidate_leads_to_a_fetch(idle: Subscription) -> None:
    """Redis notifies once, so nothing is tracked after it."""
    idle.on_invalidate()
    assert idle.may_have_messages
    assert idle.is_notified
    assert not idle.is_active


@pytest.mark.parametrize("count", [0, 2])
def test_on_checked_tells_whether_queues_have_messages(idle: Subscription, count: int) -> None:
    """Messages that came between the fetch and the tracking led to no notification."""
    idle.on_checked(count, idle.generation)
    assert idle.may_have_messages is (count > 0)


def test_on_checked_ignores_the_queues_of_before(idle: Subscription) -> None:
    """A check of other queues says nothing of those that are consumed now."""
    generation = idle.generation
    idle.reset()
    idle.on_checked(0, generation)
    assert idle.may_have_messages


def test_reset_starts_anew(idle: Subscription) -> None:
    """With the queues that are consumed now; there is one more generation."""
    generation = idle.generation
    idle.reset()
    assert idle.may_have_messages
    assert not idle.is_active
    assert idle.generation == generation + 1
