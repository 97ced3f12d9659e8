# SPDX-License-Identifier: MIT
"""A prefork pool that writes tasks to child processes, and reads their results, with less work than Celery's.

Celery asks the loop to report when the pipe of a process is writable, and at each turn it tells the kernel
again which pipes it watches. But the pipe of an idle process is empty. So this pool writes a task to it at
once, and in one part where the kernel guarantees that it takes the whole; if a pipe takes less, Celery's own
way goes on from there. The state of which process has which task stays Celery's.
"""

from __future__ import annotations

import logging
import pickle
import select
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

from billiard.pool import RUN, TERMINATE
from celery.concurrency import asynpool
from celery.concurrency.asynpool import SCHED_STRATEGY_FAIR

from fleet_runtime.compat import older_pool
from fleet_runtime.prefork import framing
from fleet_runtime.prefork.deadlines import Deadlines
from fleet_runtime.prefork.results import POLL_INTERVAL_S, ResultHandler, kill_process
from fleet_runtime.prefork.time_limits import drop_soft

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

# Seconds for an idle process to begin a task that was written to it. One that does not is killed.
BEGIN_TIMEOUT_S = 2.0
# Seconds for an idle process to read a task. One that does not is killed.
READ_TIMEOUT_S = 5.0
# Seconds until the first further check of a dying process. Each further one waits twice as long.
FIRST_CHECK_S = 0.02
# Further checks: after these, the pool itself has checked, which it does every 5 seconds.
CHECKS = 8


class Worker(asynpool.Worker):
    """The loop of a child process."""

    def on_loop_start(self, pid: int) -> None:
        """Send replies by `send_reply`, from the first task on."""
        self.outq.put = partial(framing.send_reply, self.outq)
        super().on_loop_start(pid)

    def _make_recv_method(self, conn: Any) -> Callable[[float], tuple[bool, Any]]:
        """Return the function that waits for the next task. billiard's copies the bytes several times."""
        fileno = conn._reader.fileno()

        def receive(timeout: float) -> tuple[bool, Any]:  # waits without a timeout, as billiard's does
            (size,) = framing.LENGTH.unpack(framing.read(fileno, framing.LENGTH.size))
            return True, pickle.loads(framing.read(fileno, size))  # noqa: S301 (the node's own)

        return receive


class FastAsynPool(older_pool.AsynPool):
    """Celery's pool, which writes a task to an idle process at once."""

    Worker = Worker
    ResultHandler = ResultHandler
    _deadlines: Deadlines | None = None

    def _create_timelimit_handlers(self, hub: Any) -> None:
        """Use one timer for all tasks that have the same time limits."""
        super()._create_timelimit_handlers(hub)

        def on_passed(job: int, soft: Any, hard: Any) -> None:
            """Interrupt a task at its soft limit, and wait for the rest of its hard limit; or kill it."""
            if not soft:
                self._on_hard_timeout(job)
                return
            if hard and job in self._cache:
                deadlines.begin(job, (None, hard - soft))
            self._on_soft_timeout(job, soft, None, hub)

        deadlines = self._deadlines = self._deadlines or Deadlines(hub, on_passed)
        deadlines.arm()

        def on_timeout_set(result: Any, soft: Any, hard: Any) -> None:
            deadlines.begin(result._job, (drop_soft(result, soft, hard), hard))

        def on_timeout_cancel(result: Any) -> None:
            soft, hard = result._soft_timeout, result._timeout
            deadlines.end(result._job, (soft, hard))
            if soft and hard:
                deadlines.end(result._job, (None, hard - soft))

        self.on_timeout_set, self.on_timeout_cancel = on_timeout_set, on_timeout_cancel

    def _create_write_handlers(self, hub: Any, **options: Any) -> None:
        """Write a task to an idle process at once."""
        if self.sched_strategy != SCHED_STRATEGY_FAIR:  # processes get tasks while they run others
            super()._create_write_handlers(hub, **options)
            return
        proxy = HubProxy(hub)
        super()._create_write_handlers(proxy, **options)
        write = hub.consolidate_callback = proxy.consolidate_callback
        waiting, cache = self.outbound_buffer, self._cache
        pipes, busy, written_to = self._all_inqueues, self._busy_workers, self._active_writes

        def put(task: Any) -> None:
            """Queue a task, and write it if there is an idle process."""
            job = cache[task[1][0]]
            job._payload = framing.frame(pickle.dumps(task, pickle.HIGHEST_PROTOCOL))
            waiting.append(job)
            for pipe in pipes:
                if pipe not in busy and pipe not in written_to:
                    write([pipe])
                    break

        def on_poll_start() -> None:
            """Write waiting tasks at each turn of the loop: a process may have become idle, or died."""
            if waiting and (idle := [pipe for pipe in pipes if pipe not in busy and pipe not in written_to]):
                write(idle)

        self._quick_put, self.on_poll_start = put, on_poll_start

    def flush(self) -> None:
        """Forget the tasks that have not begun, when the connection is lost, or when the node stops.

        Other nodes get them. A task that was written to an idle process begins at once, so this waits for
        that, and the task goes on here. A node that stops has closed its pool by then.
        """
        if self._state != TERMINATE:
            self._await_begun()
        super().flush()

    def close(self) -> None:
        """Begin to stop, after writing the rest of each task: a process must not stop within one."""
        if self._state == RUN:
            self._finish_writing(monotonic() + READ_TIMEOUT_S)
        super().close()

    def create_process_queues(self) -> Any:
        """Create the pipes of a process."""
        queues = super().create_process_queues()
        reader = queues[1]._reader
        reader.recv = partial(framing.receive, reader)
        return queues

    def process_flush_queues(self, proc: Any) -> None:
        """Read the messages of a process that is gone; an incomplete one is dropped."""
        results = self._result_handler
        if proc.outqR_fd in results.parts:
            results.handle_event(proc.outqR_fd)
        if results.parts.pop(proc.outqR_fd, None) is None:
            super().process_flush_queues(proc)

    def destroy_queues(self, queues: Any, proc: Any) -> Any:
        """Close the pipes of a process, and drop its incomplete message: file numbers are reused."""
        with suppress(OSError):
            self._result_handler.parts.pop(queues[1]._reader.fileno(), None)
        return super().destroy_queues(queues, proc)

    def _event_process_exit(self, hub: Any, proc: Any) -> None:
        """Check a dying process, and again until it is dead.

        A process closes its files before its parent can wait for it. The closed files wake the pool, which
        checks once whether the process has ended. In one of three deaths on two cores it has not, and the
        pool notices 5 seconds later. A task whose time limit passes in between fails with a timeout, instead
        of running again, because the pool takes it for running.
        """
        super()._event_process_exit(hub, proc)
        self._check_again(hub, proc, FIRST_CHECK_S, CHECKS)

    def _check_again(self, hub: Any, process: Any, delay: float, checks: int) -> None:
        """Check a process after a delay in seconds, if the pool takes it for alive."""

        def check() -> None:
            self.maintain_pool()
            self._check_again(hub, process, delay * 2, checks - 1)

        if checks and process in self._pool:
            hub.call_later(delay, check)

    def _worker_active(self, worker: Any) -> bool:
        """Return whether a process has a task, even one that it has not accepted yet."""
        return worker.inqW_fd in self._busy_workers or super()._worker_active(worker)

    def _unbegun(self) -> set[Any]:
        """Return the processes that are alive, and have not begun the task that was written to them."""
        waiting = [job for job in tuple(self._cache.values()) if not job._accepted]
        written = [job._write_to for job in waiting if asynpool._get_job_writer(job) is None]
        return {process for process in written if process is not None and process._is_alive()}

    def _await_begun(self) -> None:
        """Wait until each task that was written has begun, and kill a process that does not begin.

        Its task is requeued, so that it would run twice.
        """
        until = monotonic() + BEGIN_TIMEOUT_S
        self._finish_writing(until)
        while unbegun := self._unbegun():
            if monotonic() > until:
                for process in unbegun:
                    kill_process(process, "does not begin its task")
                return
            for process in unbegun:
                process.outq._reader.poll(POLL_INTERVAL_S)
                try:
                    self._result_handler.handle_event(process.outqR_fd)
                except Exception:  # of a callback: the loop also goes on after one
                    logger.exception("A message of %r could not be handled.", process)

    def _finish_writing(self, until: float) -> None:
        """Write the rest of partly written tasks, until a time of the monotonic clock."""
        for job in tuple(self._cache.values()):
            writer = asynpool._get_job_writer(job)
            if writer not in self._active_writers or asynpool.gen_not_started(writer):
                continue
            process = job._write_to
            pipe = process.inq._writer
            while writer in self._active_writers and process._is_alive():
                if monotonic() > until:
                    kill_process(process, "does not read its task")
                    break
                _, writable, _ = select.select([], [pipe], [], POLL_INTERVAL_S)
                if writable:
                    with suppress(OSError):  # the process has just ended
                        next(writer, None)


class HubProxy:
    """A loop that ignores the removal of files that it does not watch, which would cost a system call."""

    def __init__(self, hub: Any) -> None:
        """Wrap the loop of a node."""
        self._hub = hub
        self.add, self.add_writer, self.remove = hub.add, hub.add_writer, hub.remove
        self.consolidate_callback: Any = None

    def remove_writer(self, fileno: int) -> None:
        """Stop watching whether a file is writable."""
        if fileno in self._hub.writers:
            self._hub.remove_writer(fileno)
