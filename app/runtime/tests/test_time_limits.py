# SPDX-License-Identifier: MIT
"""Time limits mean what Celery's user guide says, wherever they come from."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from billiard.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded
from fleet_runtime.prefork.pool import FastAsynPool
from fleet_runtime.prefork.time_limits import requested

from fleet_testing.commands import FLAGS, PATIENCE, wait_until
from fleet_testing.dead_letters import failing, letters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from fleet_testing.broker import Broker

pytestmark = pytest.mark.server

# What the message asks for, the task, and the node: each a hard and a soft limit. Then when the task gets
# SoftTimeLimitExceeded, and when it is killed: None for never.
NONE = (None, None)
TABLE = [
    # Nobody but the node says anything.
    (NONE, NONE, (9, 8), 8, 9),
    (NONE, NONE, (9, None), None, 9),
    (NONE, NONE, (None, 8), 8, None),
    (NONE, NONE, NONE, None, None),
    # A hard limit alone, below the soft one of the node, between both, and above them.
    (NONE, (5, None), (9, 8), None, 5),
    ((5, None), NONE, (9, 8), None, 5),
    ((8.5, None), NONE, (9, 8), None, 8.5),
    (NONE, (20, None), (9, 8), None, 20),
    (NONE, (5, None), NONE, None, 5),
    # A soft limit alone: the hard one is the node's.
    (NONE, (None, 3), (9, 8), 3, 9),
    ((None, 3), NONE, (9, 8), 3, 9),
    ((None, 3), NONE, NONE, 3, None),
    (NONE, (None, 30), (9, 8), None, 9),
    # Both.
    (NONE, (5, 3), (9, 8), 3, 5),
    ((5, 3), NONE, (9, 8), 3, 5),
    ((5, 3), (7, 6), (9, 8), 3, 5),
    ((5, None), (7, 3), (9, 8), 3, 5),
    ((None, 3), (7, 6), (9, 8), 3, 7),
    # A soft limit that is not below the hard one.
    (NONE, (5, 5), (9, 8), None, 5),
    ((5, None), (None, 6), (9, 8), None, 5),
    ((5, 6), NONE, NONE, None, 5),
    ((None, 7), (5, 3), (9, 8), None, 5),
    # Celery takes 0 for no limit of one's own.
    ((0, 0), (5, 0), (9, 8), None, 5),
]


class Loop:
    """A loop that runs at once what is to be run later, and says when that would have been."""

    def __init__(self) -> None:
        """Schedule nothing yet."""
        self.now = 0.0

    def call_later(self, seconds: float, function: Callable[..., object], *args: Any) -> Any:
        """Run a function as if so many seconds had passed."""
        before, self.now = self.now, self.now + seconds
        function(*args)
        self.now = before
        return Loop()


@pytest.mark.parametrize(("message", "task", "node", "soft", "hard"), TABLE)
def test_limits_of_message_task_and_node(
    message: tuple[Any, Any],
    task: tuple[Any, Any],
    node: tuple[Any, Any],
    soft: float | None,
    hard: float | None,
) -> None:
    """The pool counts them once a process has accepted the task."""
    passed: dict[str, float] = {}
    pool: Any = FastAsynPool.__new__(FastAsynPool)
    loop = Loop()
    pool.on_soft_timeout = lambda job: passed.update(soft=loop.now)
    pool.on_hard_timeout = lambda job: passed.update(hard=loop.now)
    wanted = requested(message, task)
    # what billiard makes of it (billiard 4.3, Pool.apply_async)
    job = SimpleNamespace(_job=1, _timeout=wanted[0] or node[0], _soft_timeout=wanted[1] or node[1])
    pool._cache = {1: job}
    pool._deadlines = SimpleNamespace(begin=lambda job, limits: passed.update(_named(limits)), arm=list)
    pool._create_timelimit_handlers(loop)
    pool.on_timeout_set(job, job._soft_timeout, job._timeout)
    assert passed == _named((soft, hard))


def _named(limits: tuple[float | None, float | None]) -> dict[str, float]:
    """Return a soft and a hard limit by their names, as far as they are set."""
    return {name: limit for name, limit in zip(("soft", "hard"), limits, strict=True) if limit}


@pytest.fixture(scope="module")
def node(redis_server: Broker) -> Iterator[None]:
    """Run a node with the runtime's pool."""
    with failing(redis_server).worker("limits", "--queues=default", *FLAGS):
        yield


@pytest.mark.usefixtures("node")
@pytest.mark.parametrize("options", [{}, {"time_limit": 1}, {"time_limit": 1, "soft_time_limit": 1}])
def test_a_hard_limit_alone_raises_nothing_in_the_task(
    broker: Broker, web: Any, tmp_path: Path, options: dict[str, float]
) -> None:
    """It is not retried, whatever it is retried for. Only SIGTERM comes, upon which `finally` has 0.1 s."""
    broker.client("admin").delete("fleet:dead", "fleet:dead:letters")
    name = "hang_on" if not options else "hang_by_message"
    sent = [web.send_task(f"failing.{name}", (str(tmp_path / "notes"),), queue="default", **options)
            for _ in range(4)]  # fmt: skip
    for one in sent:
        with pytest.raises(TimeLimitExceeded):
            one.get(PATIENCE)

    def reasons() -> list[str]:  # tasks that another test has left here may have letters, too
        return [letter["reason"] for name, letter in letters(broker).items() if name in ids]

    ids = {one.id for one in sent}
    wait_until(lambda: len(reasons()) == len(sent))
    assert set(reasons()) == {"timeout"}
    notes = (tmp_path / "notes").read_text().split()
    assert [note for note in notes if note != "finally"] == ["run"] * len(sent)


@pytest.mark.usefixtures("node")
def test_a_soft_limit_below_the_hard_one_is_raised(web: Any, tmp_path: Path) -> None:
    """Once, before the task is killed."""
    sent = web.send_task(
        "failing.hang_by_message", (str(tmp_path / "notes"),), {"retried": False}, queue="default",
        soft_time_limit=0.5, time_limit=30,
    )  # fmt: skip
    with pytest.raises(SoftTimeLimitExceeded):
        sent.get(PATIENCE)
    assert (tmp_path / "notes").read_text().split() == ["run", "SoftTimeLimitExceeded", "finally"]
