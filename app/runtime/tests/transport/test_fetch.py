# SPDX-License-Identifier: MIT
"""Arguments and replies of the script that fetches messages, without Redis."""

from __future__ import annotations

import pytest
from fleet_runtime.transport.fetch import FetchedMessage, QueueLists, parse_reply


@pytest.fixture
def lists() -> QueueLists:
    """Return the lists of two queues with two priorities; one is consumed without acknowledgements."""
    lists = QueueLists()
    lists.add("default", ["default", "default:3"], no_ack=False)
    lists.add("email", ["email", "email:3"], no_ack=True)
    return lists


def test_arguments_order_lists_by_priority(lists: QueueLists) -> None:
    """An urgent message of any queue comes before all others."""
    keys, args = lists.arguments(["email", "default"], in_turn=True)
    assert keys == ["email", "default", "email:3", "default:3"]
    assert args == [1, 2, "", "default"]


def test_arguments_without_queues_are_for_an_acknowledgement(lists: QueueLists) -> None:
    """It fetches nothing, and does not displace the cached arguments of the queues."""
    before = lists.arguments(["default"], in_turn=True)
    assert lists.arguments([], in_turn=True) == ([], [0, 0])
    assert lists.arguments(["default"], in_turn=True) is before


def test_arguments_are_computed_anew_for_another_order(lists: QueueLists) -> None:
    """Queues take turns."""
    lists.arguments(["email", "default"], in_turn=False)
    keys, args = lists.arguments(["default", "email"], in_turn=False)
    assert keys[:2] == ["default", "email"]
    assert args == [0, 2, "default", ""]


def test_add_replaces_what_was_known_of_a_queue(lists: QueueLists) -> None:
    """The queue is consumed again, and with acknowledgements this time."""
    lists.arguments(["email"], in_turn=True)
    lists.add("email", ["email", "email:3"], no_ack=False)
    assert lists.arguments(["email"], in_turn=True)[1] == [1, 1, "email"]
    assert lists.no_ack == set()


def test_keys_are_those_of_the_named_queues(lists: QueueLists) -> None:
    """All priorities of each."""
    assert lists.keys(["email"]) == ["email", "email:3"]


def test_parse_reply_names_list_queue_and_end() -> None:
    """The place of a list tells its queue; messages beyond the oldest are the newest of their lists."""
    keys = ["default", "email", "default:3", "email:3"]
    reply = [0, b"tag-1", b"one", 3, b"tag-2", b"two"]
    assert parse_reply(reply, ["default", "email"], keys, oldest=1) == [
        FetchedMessage("default", "default", "tag-1", b"one", is_newest=False),
        FetchedMessage("email:3", "email", "tag-2", b"two", is_newest=True),
    ]


def test_parse_reply_of_nothing_is_empty() -> None:
    """Also for a command that only acknowledged, which names no queue."""
    assert parse_reply([], [], [], oldest=0) == []
