# SPDX-License-Identifier: MIT
"""Notifies systemd that the loop of Beat turns, so that systemd restarts a Beat that hangs.

The loop checks which entries of the schedule are due. It need not turn while Beat waits for the lock of
another Beat, or while the broker does not answer: a new process would wait, too.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from celery.signals import beat_init

from fleet_runtime.beat.turns import Turns
from fleet_runtime.systemd import Systemd, broker_answers, start_watchdog

if TYPE_CHECKING:
    from celery import Celery

logger = logging.getLogger(__name__)


def register(app: Celery, seconds: float) -> None:
    """Start the watchdog with Beat, if Beat runs in this process and systemd expects notifications.

    Args:
        app: The app.
        seconds: The watchdog time; 0 if systemd does not watch Beat.
    """
    if (systemd := Systemd.expecting(seconds)) is None:
        return

    def begin(sender: Any, **_: Any) -> None:
        start_watchdog(Watchdog(app, Turns(sender.scheduler), systemd, seconds).run)

    # Before RedBeat's own receiver, which waits for the lock.
    beat_init.connect(begin, weak=False, dispatch_uid="fleet_runtime.beat.watchdog")


class Watchdog:
    """Notifies systemd while the loop of Beat turns."""

    def __init__(self, app: Celery, turns: Turns, systemd: Systemd, seconds: float) -> None:
        """Prepare; a thread is to `run`.

        Args:
            app: The app.
            turns: When the loop turned.
            systemd: Where to notify.
            seconds: The watchdog time.
        """
        self.app, self.turns, self.systemd, self.seconds = app, turns, systemd, seconds

    def run(self) -> None:
        """Notify systemd as long as the loop turns, or need not turn."""
        while True:
            status = self._status()
            if status:
                self.systemd.notify(status)
            time.sleep(self.seconds / 4)

    def _status(self) -> str:
        """Return what Beat does; an empty string if it hangs."""
        silence = self.turns.silence()
        if silence is None:
            return "waiting for the lock, which another Beat may have"
        if silence < self.seconds / 2:
            return "sending what is due"
        if not broker_answers(self.app):
            return "waiting for the broker"
        logger.critical(
            "Beat has not checked its schedule for %.0f s; systemd will restart it.",
            silence + self.turns.longest_sleep,
        )
        return ""
