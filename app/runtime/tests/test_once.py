# SPDX-License-Identifier: MIT
"""Blocks that run once, on a real Redis, in threads and in nodes."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from celery import Celery
from fleet_runtime import BusyError, once
from fleet_runtime.broker import keys
from fleet_runtime.once import DONE, HELD

from fleet_testing.broker import Broker
from fleet_testing.commands import APPS, PATIENCE, Fleet

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.server
FLAGS = ("--queues=default", "--concurrency=2", "--without-gossip", "--without-mingle")


@pytest.fixture
def app(broker: Broker, configure_app: Callable[..., Any]) -> Celery:
    """Return the app of a node."""
    app = Celery("single", set_as_current=False)
    configure_app(app, "worker", broker.url("worker"))
    return app


@pytest.fixture
def key() -> str:
    """Return a key that no other test has."""
    return str(uuid4())


def test_two_at_the_same_time_run_once(app: Celery, key: str) -> None:
    """Both get the result, and so does who comes later; the lease is renewed meanwhile."""
    runs: list[float] = []

    @once("{name}", ttl=60, lease=0.6, app=app)
    def work(name: str) -> dict[str, Any]:
        runs.append(time.monotonic())
        time.sleep(2)
        return {"at": datetime(2026, 1, 2, tzinfo=UTC), "count": len(runs)}

    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(work, [key] * 4))
    results.append(work(name=key))
    assert results == [{"at": datetime(2026, 1, 2, tzinfo=UTC), "count": 1}] * 5


def test_other_keys_run_by_themselves(app: Celery, key: str) -> None:
    """A template has the arguments, given or not; a function may say it, too."""
    ran: list[str] = []

    @once(f"{key}:{{kind}}", ttl=60, app=app)
    def by_template(kind: str = "a") -> None:
        ran.append(kind)

    @once(lambda kind: f"{key}:{kind}", ttl=60, app=app)
    def by_function(kind: str) -> None:
        ran.append(kind)

    by_template()
    by_template("b")
    by_template(kind="a")
    by_function("b")
    by_function("c")
    assert ran == ["a", "b", "c"]


def test_an_exception_is_not_kept(app: Celery, key: str) -> None:
    """So a retry runs, at once."""
    runs: list[int] = []

    @once(key, ttl=60, app=app)
    def work() -> str:
        runs.append(1)
        if len(runs) == 1:
            raise LookupError("not yet")
        return "done"

    with pytest.raises(LookupError, match="not yet"):
        work()
    started = time.monotonic()
    assert [work(), work()] == ["done", "done"]
    assert time.monotonic() - started < 5
    assert len(runs) == 2


def test_a_result_is_kept_for_its_time(app: Celery, broker: Broker, key: str) -> None:
    """Then the body runs again."""
    runs: list[int] = []

    @once(key, ttl=1.5, app=app)
    def work() -> int:
        runs.append(1)
        return len(runs)

    assert [work(), work()] == [1, 1]
    assert 0 < broker.client("admin").pttl(keys.once(key)) <= 1500
    time.sleep(1.6)
    assert work() == 2


def test_a_result_that_is_no_json_is_not_kept(
    app: Celery, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The body has run, so it does not run again for that; the log says so."""
    runs: list[int] = []

    @once(key, ttl=60, app=app)
    def work() -> Any:
        runs.append(1)
        return work

    assert work() is work
    assert work() is None
    assert len(runs) == 1
    assert "its result is not JSON, so other runs get None" in caplog.text


def test_a_context_manager_tells_who_is_first(app: Celery, broker: Broker, key: str) -> None:
    """Python cannot skip its body."""
    results = []
    for amount in (1, 2):
        with once(key, ttl=60, app=app) as run:
            if run.first:
                assert broker.client("admin").get(keys.once(key)).startswith(HELD)
                run.result = amount
        results.append((run.first, run.result))
    assert results == [(True, 1), (False, 1)]
    assert broker.client("admin").get(keys.once(key)) == f"{DONE}1"


def test_a_context_manager_frees_its_key_for_a_retry(app: Celery, broker: Broker, key: str) -> None:
    """Of whatever kind the exception is: the process may be about to end."""
    for error in (LookupError, SystemExit):
        with pytest.raises(error), once(key, ttl=60, app=app) as run:
            assert run.first
            raise error
    assert not broker.client("admin").exists(keys.once(key))


def test_who_will_not_wait_is_told(app: Celery, key: str) -> None:
    """Another one has the key for longer."""
    with once(key, ttl=60, app=app), pytest.raises(BusyError, match=r"for more than 0\.2 s"):
        once(key, ttl=60, wait=0.2, app=app).__enter__()


def test_a_lost_lease_is_told(
    app: Celery, broker: Broker, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Another one ran the body meanwhile, and its result stays."""
    client = broker.client("admin")
    with once(key, ttl=60, lease=0.3, app=app) as run:
        client.set(keys.once(key), f"{DONE}2")
        time.sleep(0.5)
        assert run.is_lost
        run.result = 1
    assert client.get(keys.once(key)) == f"{DONE}2"
    assert "has ended while it runs: it may run elsewhere, too" in caplog.text
    assert "another run has taken its key in the meantime" in caplog.text


def test_a_lease_that_only_ended_is_no_loss(app: Celery, broker: Broker, key: str) -> None:
    """No other run took the key: the result is kept."""
    client = broker.client("admin")
    with once(key, ttl=60, lease=30, app=app) as run:
        client.delete(keys.once(key))
        run.result = 1
    assert client.get(keys.once(key)) == f"{DONE}1"


def test_a_broker_that_is_away_is_waited_for(
    configure_app: Callable[..., Any], tmp_path: Path, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Before the body, and after it; in between it costs the lease only."""
    caplog.set_level(logging.WARNING)
    broker = Broker(tmp_path)
    app = Celery("single", set_as_current=False)
    configure_app(app, "worker", broker.url("worker"))
    runs: list[int] = []

    def start_later() -> None:
        time.sleep(2)
        broker.start()

    @once(key, ttl=60, lease=1, app=app)
    def work() -> int:
        runs.append(1)
        broker.stop()
        threading.Thread(target=start_later).start()
        return len(runs)

    broker.stop()
    threading.Thread(target=start_later).start()
    try:
        assert [work(), work()] == [1, 1]
    finally:
        broker.stop()


@pytest.mark.parametrize(("ttl", "lease"), [(0, 1), (1, 0), (-1, 1)])
def test_times_that_cannot_be_are_refused(ttl: float, lease: float) -> None:
    """When the task is defined, not when it runs."""
    with pytest.raises(ValueError, match="must be more than 0"):
        once("a", ttl=ttl, lease=lease)


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent"])
def test_two_deliveries_run_once(broker: Broker, web: Any, tmp_path: Path, pool: str) -> None:
    """In two slots of a node, at the same time, for longer than a lease."""
    ledger = tmp_path / "ledger"
    with Fleet(broker, "single:app", PYTHONPATH=APPS).worker(pool, f"--pool={pool}", *FLAGS):
        sent = [web.send_task("single.charge", (str(ledger), 5), queue="default") for _ in range(2)]
        assert [result.get(timeout=PATIENCE) for result in sent] == [1, 1]
    assert len(ledger.read_text().splitlines()) == 1


def test_who_comes_after_a_death_runs(broker: Broker, web: Any, tmp_path: Path) -> None:
    """When the lease of the dead one ends."""
    ledger = tmp_path / "ledger"
    with Fleet(broker, "single:app", PYTHONPATH=APPS).worker("mortal", "--pool=prefork", *FLAGS):
        started = time.monotonic()
        sent = [web.send_task("single.charge_and_die", (str(ledger),), queue="default") for _ in range(2)]
        assert [result.get(timeout=PATIENCE) for result in sent] == [2, 2]
        assert time.monotonic() - started >= 2.5
    assert len(ledger.read_text().splitlines()) == 2
