# SPDX-License-Identifier: MIT
"""Beat notifies systemd: a real Beat, and a socket in place of systemd's."""

from __future__ import annotations

import signal
import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from fleet_runtime.beat import watchdog as beat_watchdog
from fleet_runtime.beat.turns import Turns
from fleet_runtime.beat.watchdog import Watchdog

from fleet_testing.broker import Broker
from fleet_testing.commands import APPS, Daemon, Fleet
from fleet_testing.systemd import Systemd

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECONDS = 8


@pytest.fixture
def systemd(tmp_path: Path) -> Systemd:
    """Return a systemd that waits."""
    return Systemd(tmp_path)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Broker]:
    """Yield a Redis in which no Beat has the lock yet."""
    (tmp_path / "redis").mkdir()
    broker = Broker(tmp_path / "redis")
    yield broker
    broker.stop()


def beat(server: Broker, systemd: Systemd) -> Daemon:
    """Start a Beat as its unit does."""
    fleet = Fleet(
        server, "scheduled:app", PYTHONPATH=APPS, FLEET_BEAT_MAX_INTERVAL="1", FLEET_BEAT_LOCK_TIMEOUT="15"
    )
    return fleet.beat(NOTIFY_SOCKET=str(systemd.address), FLEET_BEAT_WATCHDOG=str(SECONDS))


def test_a_beat_that_turns_says_so_and_one_that_hangs_does_not(server: Broker, systemd: Systemd) -> None:
    """With the time that systemd is to wait."""
    with beat(server, systemd) as first:
        assert systemd.wait_for("sending") == {
            "WATCHDOG": "1",
            "WATCHDOG_USEC": str(SECONDS * 10**6),
            "STATUS": "sending what is due",
        }
        first.process.send_signal(signal.SIGSTOP)
        systemd.answers(1)  # what was under way
        assert systemd.answers(SECONDS) == []
        first.process.send_signal(signal.SIGCONT)
        systemd.wait_for("sending")


def test_a_beat_that_waits_for_the_lock_says_so(server: Broker, systemd: Systemd) -> None:
    """It is not killed for it: the next would wait, too."""
    server.client("admin").set("redbeat::lock", "another's", ex=300)
    with beat(server, systemd):
        systemd.wait_for("waiting for the lock")
        assert systemd.answers(SECONDS)
        server.client("admin").delete("redbeat::lock")
        systemd.wait_for("sending")


def test_a_loop_that_hangs_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each task that is sent counts as a turn; a broker that is away excuses Beat."""
    sent: list[str] = []
    scheduler = SimpleNamespace(
        max_interval=5, tick=lambda: 1.0, apply_async=lambda entry, **_: sent.append(entry)
    )
    silent: Any = None
    monkeypatch.setattr(beat_watchdog, "broker_answers", lambda _: True)
    watchdog = Watchdog(silent, Turns(scheduler), silent, 60)
    assert watchdog._status().startswith("waiting for the lock")
    assert scheduler.tick() == 1.0
    assert watchdog._status() == "sending what is due"
    watchdog.turns.last = time.monotonic() - 36
    monkeypatch.setattr(beat_watchdog, "broker_answers", lambda _: False)
    assert watchdog._status() == "waiting for the broker"
    monkeypatch.setattr(beat_watchdog, "broker_answers", lambda _: True)
    assert watchdog._status() == ""
    scheduler.apply_async("hourly", producer=None)
    assert sent == ["hourly"]
    assert watchdog._status() == "sending what is due"


def test_a_first_turn_that_hangs_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no wait for the lock, which comes before."""
    begun, ended = threading.Event(), threading.Event()

    def hang() -> None:
        begun.set()
        ended.wait(60)

    scheduler = SimpleNamespace(max_interval=5, tick=hang, apply_async=lambda entry, **_: None)
    silent: Any = None
    watchdog = Watchdog(silent, Turns(scheduler), silent, 60)
    turn = threading.Thread(target=scheduler.tick, daemon=True)
    turn.start()
    assert begun.wait(60)
    now = time.monotonic() + 36
    monkeypatch.setattr(beat_watchdog, "broker_answers", lambda _: True)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    assert watchdog._status() == ""
    ended.set()
    turn.join()
