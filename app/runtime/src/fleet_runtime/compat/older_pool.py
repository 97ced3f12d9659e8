# SPDX-License-Identifier: MIT
"""Celery's prefork pool as it is since version 5.7, for Celery 5.5 and 5.6 as well.

With Celery 5.7 as the oldest supported version this module can go, and Celery's own classes take the place of
those at its end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery.concurrency import asynpool

if TYPE_CHECKING:
    from collections.abc import Callable


class OlderResultHandler(asynpool.ResultHandler):
    """Celery's handler of results, which reads the rest of a result of which a part was read.

    Attributes:
        partial_read_deadline: Seconds for a process to write that rest, as the node stops.
    """

    partial_read_deadline = 10.0

    def _finish_partial_read(self, fd: int, proc: Any) -> bool:
        """Read the rest of a result; return whether that failed."""
        return False

    def _flush_outqueue(
        self, fd: int, remove: Callable[[int], Any], process_index: Any, on_state_change: Any
    ) -> Any:
        """Read the results of a process, as the node stops."""
        if fd in process_index and self._finish_partial_read(fd, process_index[fd]):
            return remove(fd)
        return super()._flush_outqueue(fd, remove, process_index, on_state_change)


class OlderAsynPool(asynpool.AsynPool):
    """Celery's pool, which does not forget the tasks that run when the connection is lost."""

    def flush(self) -> None:
        """Forget the tasks that have not begun.

        Celery 5.5 forgets those that run, too: their messages would never be acknowledged. Both versions
        forget which processes run one: they would get another task, to begin when the first one has ended.
        """
        running = {number: job for number, job in self._cache.items() if job._accepted}
        super().flush()
        for job in tuple(self._cache.values()):
            if not job._accepted:
                job.discard()
        for number, job in running.items():
            if not job.ready():
                self._cache.setdefault(number, job)
                process = job._write_to or job._scheduled_for
                if process is not None and process._is_alive():
                    self._busy_workers.add(process.inqW_fd)


IS_OLDER = not hasattr(asynpool.ResultHandler, "_finish_partial_read")
ResultHandler: Any = OlderResultHandler if IS_OLDER else asynpool.ResultHandler
AsynPool: Any = OlderAsynPool if IS_OLDER else asynpool.AsynPool
