# SPDX-License-Identifier: MIT
"""The messages of a node that an error ends are requeued as those of a killed node: the crash counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fleet_runtime.broker import keys

from fleet_testing.commands import APPS, FLAGS, PATIENCE, Fleet, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from fleet_testing.broker import Broker


def test_what_a_node_held_that_an_error_ends_counts_as_lost(broker: Broker, web: Any, tmp_path: Path) -> None:
    """It stays among what the node held until the next start gives it back, and says so in the message.

    The message may be the cause, and would else end one node after another.
    """
    crash, admin, held = tmp_path / "crash", broker.client("admin"), keys.unacked("crashing@test")
    fleet = Fleet(broker, "crashing:app", PYTHONPATH=APPS, CRASH=str(crash))
    words = ("crashing", "--queues=heavy", "--pool=threads", *FLAGS)
    sent = web.send_task("crashing.add", (1, 1), queue="heavy", countdown=20)
    with fleet.worker(*words) as node:
        # By itself: the task by which a node proves that it works is held for a moment, too.
        wait_until(lambda: admin.hlen(held) == 1 and sent.id in str(admin.hgetall(held)))
        crash.touch()
        assert node.process.wait(PATIENCE) != 0
        assert node.lines("what nobody has foreseen")
    assert (admin.llen("heavy"), admin.hlen(held)) == (0, 1)
    (tag,) = admin.hkeys(held)
    crash.unlink()
    with fleet.worker(*words):
        assert sent.get(timeout=PATIENCE) == 2
        assert admin.get(keys.crashes(tag)) == "1"
