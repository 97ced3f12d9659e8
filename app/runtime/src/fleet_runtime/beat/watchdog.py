# SPDX-License-Identifier: MIT
"""Tells systemd that Beat turns, so that one which hangs is started anew.

What counts is the loop that looks what is due. A Beat that waits for another one's lock, and one whose broker
does not answer, need not turn: a new process would wait, too.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import threading
import time
from typing import TYPE_CHECKING, Any

from celery.signals import beat_init

from fleet_runtime.systemd import Systemd, answers

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery import Celery

# Seconds after which the unit of Beat wants it killed. Without it systemd does not wait for Beat, as before.
VARIABLE = "FLEET_BEAT_WATCHDOG"

logger = logging.getLogger(__name__)


def register(app: Celery) -> None:
    """Watch Beat from its start on, if it runs in this process and systemd waits for it."""
    address, seconds = os.environ.get("NOTIFY_SOCKET", ""), float(os.environ.get(VARIABLE) or 0)
    if not (address and seconds):
        return

    def begin(sender: Any, **_: Any) -> None:
        Watchdog(app, sender, Systemd(address, seconds), seconds).start()

    # Before RedBeat's own receiver, which waits for the lock.
    beat_init.connect(begin, weak=False, dispatch_uid="fleet_runtime.beat.watchdog")


class Watchdog:
    """Answers for Beat while it turns."""

    def __init__(self, app: Celery, service: Any, systemd: Systemd, seconds: float) -> None:
        """Hear of each turn of the loop, and of each task that is sent in one."""
        self.app, self.systemd, self.seconds = app, systemd, seconds
        self.last_turn: float | None = None
        scheduler = service.scheduler
        self.longest_sleep = float(scheduler.max_interval)
        for name in ("tick", "apply_async"):
            setattr(scheduler, name, self._noted(getattr(scheduler, name)))

    def start(self) -> None:
        """Begin to answer."""
        if not faulthandler.is_enabled():
            faulthandler.enable(2)  # systemd ends what hangs with SIGABRT: so the journal has where it hung
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    def _noted(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """Return a method of the scheduler that notes when it began and when it ended."""

        def noted(*args: Any, **kwargs: Any) -> Any:
            self.last_turn = time.monotonic()
            try:
                return method(*args, **kwargs)
            finally:
                self.last_turn = time.monotonic()

        return noted

    def _run(self) -> None:
        """Answer as long as the loop turns, or need not."""
        while True:
            status = self._status()
            if status:
                self.systemd.answer(status)
            time.sleep(self.seconds / 4)

    def _status(self) -> str:
        """Return what Beat does; nothing if it hangs."""
        if self.last_turn is None:
            return "waiting for the lock, which another Beat may have"
        silence = time.monotonic() - self.last_turn
        if silence < self.longest_sleep + self.seconds / 2:
            return "sending what is due"
        if not answers(self.app):
            return "waiting for the broker"
        logger.critical("Beat has not looked what is due for %.0f s; systemd will start it anew.", silence)
        return ""
