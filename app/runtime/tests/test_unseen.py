# SPDX-License-Identifier: MIT
"""An app does not see the runtime's own parts of a node: its self-test, and marks of messages."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from fleet_runtime.messages.headers import RECOVERED
from fleet_runtime.messages.sent_at import SENT, sent_at

from fleet_testing.commands import APPS, FLAGS, PATIENCE, Fleet, wait_until
from fleet_testing.params import FIRST_OF_POOLS

if TYPE_CHECKING:
    from pathlib import Path

    from fleet_testing.broker import Broker


@pytest.fixture
def watched(broker: Broker, tmp_path: Path) -> Fleet:
    """An app that notes all that it sees."""
    return Fleet(broker, "watched:app", PYTHONPATH=APPS, SEEN=str(tmp_path / "seen"))


@pytest.mark.parametrize("pool", FIRST_OF_POOLS)
def test_an_apps_signals_and_tracers_see_its_own_tasks_only(
    watched: Fleet, web: Any, tmp_path: Path, pool: str
) -> None:
    """Not the one by which a node proves that it works."""
    with watched.worker("one", "--queues=default", f"--pool={pool}", *FLAGS):
        assert web.send_task("watched.headers", queue="default").get(timeout=PATIENCE) is None
        wait_until(lambda: "postrun" in (tmp_path / "seen").read_text())
    assert set((tmp_path / "seen").read_text().splitlines()) == {
        f"{what} watched.headers" for what in ("received", "prerun", "success", "postrun", "traced")
    }


def test_a_tasks_headers_are_what_its_sender_gave(watched: Fleet, web: Any) -> None:
    """None if it gave none, and the same in a retry; also where a message is of an older release."""
    own = {"tenant": "eu-3"}
    marks = {SENT: 1796079823.873, RECOVERED: True}
    with watched.worker("one", "--queues=default", *FLAGS):
        for name in ("watched.headers", "watched.again"):
            for given, expected in ((None, None), (own, own), ({**own, **marks}, own), (marks, None)):
                sent = web.send_task(name, queue="default", headers=given)
                assert sent.get(timeout=PATIENCE) == expected, (name, given)


def test_when_a_message_was_sent(broker: Broker, web: Any) -> None:
    """Is in it, among its properties; in one of an older release it is among its headers."""
    redis, now = broker.client("admin"), time.time()
    web.send_task("watched.headers", queue="io")
    message = json.loads(redis.lpop("io"))
    assert now - 1 < (sent_at(message) or 0) < now + 10
    assert SENT not in message["headers"]
    assert sent_at({"headers": {SENT: 5.5}, "properties": {}}) == 5.5
    assert sent_at({"headers": None, "properties": {"delivery_tag": "1"}}) is None
