# SPDX-License-Identifier: MIT
"""The lease of a Beat whose schedule is in a file, so that `fleet status` knows that it works.

RedBeat's lock tells it of a Beat with RedBeat.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any

from celery.beat import PersistentScheduler
from celery.signals import beat_init

from fleet_runtime.beat.turns import Turns
from fleet_runtime.broker import keys

if TYPE_CHECKING:
    from celery import Celery

# Seconds until the lease ends unless it is renewed. Two renewals in a row may fail before that.
LEASE_S, RENEWAL_S = 90, 30.0
# Seconds until the next try, before the first turn and after a renewal that failed.
RETRY_S = 2.0

logger = logging.getLogger(__name__)


def register(app: Celery) -> None:
    """Renew the lease while Beat runs in this process, if its schedule is in a file."""

    def begin(sender: Any, **_: Any) -> None:
        if isinstance(sender.scheduler, PersistentScheduler):
            Lease(app, Turns(sender.scheduler)).start()

    beat_init.connect(begin, weak=False, dispatch_uid="fleet_runtime.beat.lease")


class Lease:
    """Renews the lease of Beat in Redis while its loop turns."""

    def __init__(self, app: Celery, turns: Turns) -> None:
        """Prepare; `start` starts the thread."""
        self._app, self._turns = app, turns
        self._has_failed = False

    def start(self) -> None:
        """Start the thread. A loop that waits for Redis must not wait for a renewal, too."""
        threading.Thread(target=self._run, name="fleet-beat-lease", daemon=True).start()

    def _run(self) -> None:
        """Renew the lease until the process ends."""
        while True:
            time.sleep(RENEWAL_S if self.renew() else RETRY_S)

    def renew(self) -> bool:
        """Renew the lease if the loop turns; return whether it was renewed."""
        silence = self._turns.silence()
        if silence is None or silence > RENEWAL_S:
            return False
        try:
            self._set()
        except Exception as error:  # Beat works without it
            if not self._has_failed:
                logger.warning("Beat cannot renew its lease, and `fleet status` may report it: %s", error)
            self._has_failed = True
            return False
        self._has_failed = False
        return True

    def _set(self) -> None:
        """Set the key of the lease."""
        with self._app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, interval_start=0)
            connection.default_channel.client.setex(keys.BEAT_LEASE, LEASE_S, "1")
