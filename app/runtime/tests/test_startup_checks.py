# SPDX-License-Identifier: MIT
"""A node that would lose tasks, or interrupt them, is refused or says so."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from celery import signals
from celery.concurrency.base import BasePool
from celery.concurrency.prefork import TaskPool
from celery.concurrency.thread import TaskPool as ThreadPool
from celery.utils.dispatch import Signal
from fleet_runtime.bootstrap.startup_checks import StartupChecks
from fleet_runtime.prefork import memory
from fleet_runtime.settings import FleetSettings

from fleet_testing.commands import shop

if TYPE_CHECKING:
    from collections.abc import Callable

    from fleet_testing.broker import Broker


@pytest.fixture(autouse=True)
def _no_changes(configure_app: Callable[..., Any], web: Any) -> None:
    """Give the process a node's settings, at the level at which Celery stays as it is."""
    configure_app(web, FLEET_LEVEL="standard")


class GreenPool(BasePool):
    """A pool of greenlets."""

    is_green = True


def worker(time_limit: float | None, **limits: float) -> Any:
    """Return a worker, and tasks with limits of their own."""
    tasks = {name: SimpleNamespace(time_limit=limit, soft_time_limit=None) for name, limit in limits.items()}
    return SimpleNamespace(
        time_limit=time_limit,
        soft_time_limit=None,
        app=SimpleNamespace(tasks=tasks, fleet_settings=FleetSettings.from_environment()),
        max_memory_per_child=None,
        pool_cls=TaskPool,
    )


def test_a_time_limit_that_the_unit_does_not_wait_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default, too."""
    monkeypatch.setenv("FLEET_NODE_TIME_LIMIT", "600")
    StartupChecks(worker(600))
    for limit in (601, None):
        with pytest.raises(SystemExit, match=r"the time limit \(.*\) must not exceed FLEET_NODE_TIME"):
            StartupChecks(worker(limit))


def test_a_task_that_the_unit_does_not_wait_for_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is no reason to refuse the node: the task goes back to its queue."""
    monkeypatch.setenv("FLEET_NODE_TIME_LIMIT", "600")
    StartupChecks(worker(600, short=600, longer=601, none=0))
    assert "Tasks that may take more than 600 s are interrupted as this node stops" in caplog.text
    assert caplog.text.rstrip().endswith("and run again: longer")


def test_without_a_unit_nothing_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    """As with a node that an operator starts by hand."""
    StartupChecks(worker(700, longer=5000))
    assert not caplog.text


def test_processes_that_begin_with_more_than_they_may_have_are_told_of(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, as soon as one is made so: each would run one task. Pools of threads do not care."""
    monkeypatch.setattr(memory, "share_memory", lambda: None)
    made = Signal(name="made")
    monkeypatch.setattr(signals, "worker_before_create_process", made)
    node = worker(600)
    for most, pool, told in ((10_000_000, TaskPool, 0), (1000, ThreadPool, 0), (1000, TaskPool, 1)):
        made.receivers = []
        node.max_memory_per_child, node.pool_cls = most, pool
        StartupChecks(node)
        for _ in range(3):
            made.send(sender=None)
        assert caplog.text.count("max_memory_per_child (1000 KiB) is not more than a process") == told


@pytest.mark.parametrize(
    ("pool", "told"),
    [
        (TaskPool, []),
        (GreenPool, ["SoftTimeLimitExceeded"]),
        (ThreadPool, ["SoftTimeLimitExceeded", "ends no task"]),
    ],
)
def test_limits_that_the_pool_does_not_keep_are_told_of(
    caplog: pytest.LogCaptureFixture, pool: type, told: list[str]
) -> None:
    """With the tasks that have them; Celery ignores them without a word."""
    node = worker(600, limited=20, free=0)
    node.app.tasks["limited"].soft_time_limit = 10
    node.pool_cls = pool
    StartupChecks(node)
    lines = caplog.text.splitlines()
    assert len(lines) == len(told)
    for line, words in zip(lines, told, strict=True):
        assert words in line
        assert line.endswith(": limited")


def test_a_time_limit_that_hands_out_again_what_runs_is_refused() -> None:
    """That of the visibility timeout."""
    with pytest.raises(SystemExit, match="must be less than FLEET_VISIBILITY_TIMEOUT"):
        StartupChecks(worker(604800))


def test_a_process_of_another_kind_runs_no_task(configure_app: Callable[..., Any], web: Any) -> None:
    """It would not hold what it takes."""
    configure_app(web, "web")
    with pytest.raises(SystemExit, match="only a process with FLEET_COMPONENT=worker may run tasks"):
        StartupChecks(worker(600))


def test_the_steps_of_a_worker_are_drawn_for_the_operator(broker: Broker) -> None:
    """`celery graph bootsteps` makes a worker, and runs none."""
    result = shop(broker).run("ops", "graph", "bootsteps")
    assert (result.returncode, result.stderr) == (0, "")
    assert "digraph" in result.stdout
    assert "Recovery" in result.stdout
