# SPDX-License-Identifier: MIT
"""Celery's result backend as it is since version 5.7, for Celery 5.5 and 5.6 as well.

With Celery 5.7 as the oldest supported version this module can go, and Celery's own classes take the place of
those at its end.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from celery.backends import redis as stock

#: Longest wait for a subscription that another thread makes.
UNSUBSCRIBED_S = 0.1


class OlderResultConsumer(stock.ResultConsumer):
    """Celery's consumer of results."""

    def _locked(self) -> AbstractContextManager[None]:
        """Return a lock of the subscription, of which this Celery has none."""
        return nullcontext()

    def drain_events(self, timeout: float | None = None) -> None:
        """Receive an item; wait if there is no subscription yet, where this Celery raises an error."""
        pubsub = self._pubsub
        if pubsub is not None and (pubsub.connection is None or not pubsub.subscribed):
            time.sleep(min(timeout or UNSUBSCRIBED_S, UNSUBSCRIBED_S))
            return
        super().drain_events(timeout=timeout)


class OlderRedisBackend(stock.RedisBackend):
    """Celery's backend.

    Attributes:
        failure_expires: Seconds for which failures are kept; None if they are kept as other results are.
    """

    ResultConsumer = OlderResultConsumer
    failure_expires = None


IS_OLDER = not hasattr(stock.ResultConsumer, "_drain_one")
#: The method of ResultConsumer that decodes what it receives.
DECODES = "drain_events" if IS_OLDER else "_drain_one"
ResultConsumer: Any = OlderResultConsumer if IS_OLDER else stock.ResultConsumer
RedisBackend: Any = OlderRedisBackend if IS_OLDER else stock.RedisBackend
