# SPDX-License-Identifier: MIT
"""Hands tasks to the processes of a prefork pool, and takes what they say, with less work than Celery's way.

Celery asks the loop to tell it when the pipe of a process can be written to, and at each turn it tells the
kernel anew which pipes that are. But the pipe of a process without a task is empty. So here a task is written
at once, and in one piece where the kernel promises to take it so; if a pipe takes less, Celery's way goes on
from there. All accounts of who has which task stay Celery's.
"""

from __future__ import annotations

import logging
import os
import pickle
import select
import signal
import threading
from contextlib import suppress
from functools import partial
from select import PIPE_BUF
from struct import Struct
from time import monotonic
from typing import TYPE_CHECKING, Any

from billiard.pool import ACK, READY, RUN, TERMINATE
from billiard.reduction import ForkingPickler
from celery.concurrency import asynpool
from celery.concurrency.asynpool import SCHED_STRATEGY_FAIR, AsynPool

from fleet_runtime.prefork.time_limits import drop_soft

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

# What comes before each message in a pipe: its length.
LENGTH = Struct(">i")
NOTHING = memoryview(b"")
# Bytes that are read at a time: what a process says of a task that did not fail is shorter; and at most.
CHUNK, MOST = 8192, 2**20
WAIT = 0.05  # seconds for a process to say or read something, before it is asked again
BEGUN_WITHIN = 2.0  # seconds for a process without a task to begin one that was written to it
WRITTEN_WITHIN = 5.0  # seconds for a process without a task to read one
# Of these, pickle makes the same as billiard's own, which also sends files and sockets.
PLAIN = frozenset({bool, float, int, str, type(None)})


class Worker(asynpool.Worker):  # type: ignore[misc]  # celery ships no types
    """What runs in a process of the pool."""

    def on_loop_start(self, pid: int) -> None:
        """Send what is said by `say`, from before the first task on."""
        self.outq.put = partial(say, self.outq)
        super().on_loop_start(pid)

    def _make_recv_method(self, conn: Any) -> Callable[[float], tuple[bool, Any]]:
        """Return what waits for the next task. billiard's makes several objects of its bytes."""
        fileno = conn._reader.fileno()

        def receive(timeout: float) -> tuple[bool, Any]:  # however long it takes, as billiard's does
            (size,) = LENGTH.unpack(read(fileno, LENGTH.size))
            return True, pickle.loads(read(fileno, size))  # noqa: S301 (the node's own)

        return receive


def read(fileno: int, size: int) -> bytes:
    """Read so many bytes.

    Raises:
        EOFError: There are no more.
    """
    data = os.read(fileno, min(size, MOST))
    if len(data) == size:
        return data
    pieces = bytearray(data)
    while len(pieces) < size:
        more = os.read(fileno, min(size - len(pieces), MOST))
        if not more:
            raise EOFError
        pieces += more
    return bytes(pieces)


def say(pipe: Any, message: Any) -> None:
    """Write a message to the node.

    billiard makes a table of all that it can pickle besides, for each message anew (4.3, ForkingPickler).
    """
    dumps = pickle.dumps if is_plain(*message) else ForkingPickler.dumps
    body = dumps(message)
    pipe._writer._send(LENGTH.pack(len(body)) + body)


def is_plain(state: int, said: Any) -> bool:
    """Return whether all of a message is plain: a process has taken a task, or a task has not failed."""
    if state != READY:
        return bool(state == ACK)
    succeeded, result = said[2]
    return bool(succeeded) and type(result) is tuple and PLAIN.issuperset(map(type, result))


class Results(asynpool.ResultHandler):  # type: ignore[misc]  # celery ships no types
    """Takes what processes say: all that is there at once. Celery takes a message in two pieces.

    What has come of a message is kept here, and not with the loop, which forgets it when a connection to the
    broker is lost.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take what Celery's takes; no message has come in part yet."""
        super().__init__(*args, **kwargs)
        self.parts: dict[int, bytearray] = {}

    def _make_process_result(self, hub: Any) -> Callable[[int], None]:
        """Return what is called when a pipe can be read."""
        pipes, parts, take = self.fileno_to_outq, self.parts, self.on_state_change

        def on_result_readable(fileno: int) -> None:
            if fileno not in pipes:  # its process is gone
                parts.pop(fileno, None)
                hub.remove_reader(fileno)
                return
            errors: list[BaseException] = []
            data: bytes | bytearray = parts.pop(fileno, b"")
            try:
                while True:
                    chunk = os.read(fileno, MOST if data else CHUNK)
                    if not chunk:
                        hub.remove_reader(fileno)
                        break
                    if data:
                        data += chunk
                    else:
                        data = chunk
                    end = take_messages(data, take, errors)
                    if end == len(data):
                        break
                    if end or data is chunk:
                        data = bytearray(memoryview(data)[end:])
            except BlockingIOError:
                if isinstance(data, bytearray):
                    parts[fileno] = data
            except UnreadableError as error:
                hub.remove_reader(fileno)
                end_process(pipes[fileno], f"says what cannot be read ({error})")
            except OSError:
                hub.remove_reader(fileno)
            if errors:
                raise errors[0]

        return on_result_readable

    def _finish_partial_read(self, fd: int, proc: Any) -> bool:
        """Read the rest of a message as the node stops; return whether that cannot be done."""
        until = monotonic() + self.partial_read_deadline
        while fd in self.parts:
            self.handle_event(fd)
            if fd not in self.parts:
                break
            if monotonic() > until or not proc._is_alive():
                logger.warning("%r did not finish what it was saying.", proc)
                return True
            proc.outq._reader.poll(WAIT)
        return False


class UnreadableError(OSError):
    """What a process says has no beginning that makes sense, or cannot be unpickled."""


def take_messages(data: bytes | bytearray, take: Callable[[Any], None], errors: list[BaseException]) -> int:
    """Take the messages that are whole, and return where the first one begins that is not.

    Args:
        data: What has come.
        take: What takes a message.
        errors: Gets what that raises: the others are out of the pipe by then, and are taken, too.

    Raises:
        UnreadableError: A length is none, or a message cannot be read. Those before it were taken.
    """
    begin = 0
    with memoryview(data) as view:
        while (end := end_of(data, begin)) <= len(data):
            try:
                message = unpickled(view[begin + LENGTH.size : end])
                if message:
                    take(message)
            except UnreadableError:
                raise
            except BaseException as error:
                errors.append(error)
            begin = end
    return begin


def end_of(data: bytes | bytearray, begin: int) -> int:
    """Return where the message ends that begins somewhere, or where its length does if that is not there.

    Raises:
        UnreadableError: That is no length.
    """
    end = begin + LENGTH.size
    if end > len(data):
        return end
    (size,) = LENGTH.unpack_from(data, begin)
    if size <= 0:
        raise UnreadableError(f"a message of {size} bytes")
    return int(end + size)


def receive(reader: Any) -> Any:
    """Return the next message of a process that has ended, or of a node that stops; billiard reads it so.

    Raises:
        UnreadableError: It cannot be read. To billiard that is the end of the pipe.
    """
    return unpickled(reader.recv_bytes())


def unpickled(body: memoryview | bytes) -> Any:
    """Return a message.

    Raises:
        UnreadableError: It cannot be read. What of an exception can be pickled need not be what unpickles.
    """
    try:
        return pickle.loads(body)  # noqa: S301 (our own process)
    except Exception as error:
        raise UnreadableError(f"a message that cannot be unpickled: {error!r:.1000}") from error


def end_process(process: Any, why: str) -> None:
    """Kill a process of the pool, which then replaces it, and runs what it had again."""
    logger.error("%r %s, and is killed.", process, why)
    with suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)


class Limits:
    """The time limits of the tasks that run, with one timer for all that have the same.

    Celery makes a timer for each task, and what is cancelled stays in memory until its time: with a limit of
    an hour and a thousand tasks a second, more than three million of them.
    """

    def __init__(self, hub: Any, pass_: Callable[[int, Any, Any], object]) -> None:
        """Prepare.

        Args:
            hub: The node's loop.
            pass_: Is called when a limit has passed, with the task's number, its soft and its hard limit.
        """
        self._hub, self._pass = hub, pass_
        self._ends: dict[tuple[Any, Any], dict[int, float]] = {}
        self._timers: dict[tuple[Any, Any], Any] = {}
        self._one_at_a_time = threading.Lock()  # as a node stops, a thread runs its timers

    def begin(self, job: int, limits: tuple[Any, Any]) -> None:
        """Count the time of a task, from now on."""
        seconds = limits[0] or limits[1]
        if not seconds:
            return
        with self._one_at_a_time:
            self._ends.setdefault(limits, {})[job] = monotonic() + seconds
            self._arm(limits)

    def end(self, job: int, limits: tuple[Any, Any]) -> None:
        """Count it no more."""
        with self._one_at_a_time:
            if ends := self._ends.get(limits):
                ends.pop(job, None)

    def arm(self) -> None:
        """Make timers anew that were cancelled: Celery cancels what was made while it connected."""
        with self._one_at_a_time:
            for limits in self._ends:
                self._arm(limits)

    def _arm(self, limits: tuple[Any, Any]) -> None:
        """Look when the first of the tasks with these limits has come to its end, unless a timer does so."""
        timer, ends = self._timers.get(limits), self._ends[limits]
        if ends and (timer is None or timer.canceled):
            seconds = max(0.0, next(iter(ends.values())) - monotonic())  # the oldest is the first
            self._timers[limits] = self._hub.call_later(seconds, self._look, limits)

    def _look(self, limits: tuple[Any, Any]) -> None:
        """End what has come to its end."""
        with self._one_at_a_time:
            ends, now = self._ends[limits], monotonic()
            over = [job for job, end in ends.items() if end <= now]
            for job in over:
                del ends[job]
                self._hub.call_later(0, self._pass, job, *limits)  # by itself, should another one fail
            self._timers.pop(limits, None)
            self._arm(limits)
            if not ends:
                del self._ends[limits]


class Pool(AsynPool):  # type: ignore[misc]  # celery ships no types
    """Celery's pool, which writes to a process without a task at once."""

    Worker = Worker
    ResultHandler = Results
    _limits: Limits | None = None

    def _create_timelimit_handlers(self, hub: Any) -> None:
        """Prepare to end what takes too long."""
        super()._create_timelimit_handlers(hub)
        timers, discard = self._tref_for_id, self._discard_tref

        def on_passed(job: int, soft: Any, hard: Any) -> None:
            """Tell a task of its soft limit, after which Celery's own timer counts; or end it."""
            if soft:
                self._on_soft_timeout(job, soft, hard, hub)
            else:
                self._on_hard_timeout(job)

        limits = self._limits = self._limits or Limits(hub, on_passed)
        limits.arm()

        def on_timeout_set(result: Any, soft: Any, hard: Any) -> None:
            limits.begin(result._job, (drop_soft(result, soft, hard), hard))

        def on_timeout_cancel(result: Any) -> None:
            limits.end(result._job, (result._soft_timeout, result._timeout))
            if timers:
                discard(result._job)

        self.on_timeout_set, self.on_timeout_cancel = on_timeout_set, on_timeout_cancel

    def _create_write_handlers(self, hub: Any, **options: Any) -> None:
        """Prepare to write to processes."""
        if self.sched_strategy != SCHED_STRATEGY_FAIR:  # the others get tasks while they have some
            super()._create_write_handlers(hub, **options)
            return
        sparing = Sparing(hub)
        super()._create_write_handlers(sparing, **options)
        write = hub.consolidate_callback = sparing.consolidate_callback
        waiting, cache = self.outbound_buffer, self._cache
        pipes, busy, written_to = self._all_inqueues, self._busy_workers, self._active_writes

        def put(task: Any) -> None:
            """Take a task on."""
            job = cache[task[1][0]]
            job._payload = packed(pickle.dumps(task, pickle.HIGHEST_PROTOCOL))
            waiting.append(job)
            for pipe in pipes:
                if pipe not in busy and pipe not in written_to:
                    write([pipe])
                    break

        def on_poll_start() -> None:
            """Hand out what waits, at each turn of the loop: a process may have got ready, or have died."""
            if waiting and (idle := [pipe for pipe in pipes if pipe not in busy and pipe not in written_to]):
                write(idle)

        self._quick_put, self.on_poll_start = put, on_poll_start

    def flush(self) -> None:
        """Forget what has not begun, as a connection is lost, or as the node stops: others get it.

        What was written to a process without a task begins at once. So that is waited for, and goes on here.
        A node that stops has closed its pool by then.
        """
        if self._state != TERMINATE:
            self._await_begun()
        super().flush()

    def close(self) -> None:
        """Begin to stop. A process cannot be told so in the middle of a task that is written to it."""
        if self._state == RUN:
            self._finish_writing(monotonic() + WRITTEN_WITHIN)
        super().close()

    def create_process_queues(self) -> Any:
        """Make the pipes of a process."""
        queues = super().create_process_queues()
        reader = queues[1]._reader
        reader.recv = partial(receive, reader)
        return queues

    def process_flush_queues(self, proc: Any) -> None:
        """Take what a process has said that is gone; a message that it did not finish goes with it."""
        results = self._result_handler
        if proc.outqR_fd in results.parts:
            results.handle_event(proc.outqR_fd)
        if results.parts.pop(proc.outqR_fd, None) is None:
            super().process_flush_queues(proc)

    def destroy_queues(self, queues: Any, proc: Any) -> Any:
        """Close the pipes of a process, whose numbers others may get."""
        with suppress(OSError):
            self._result_handler.parts.pop(queues[1]._reader.fileno(), None)
        return super().destroy_queues(queues, proc)

    def _worker_active(self, worker: Any) -> bool:
        """Return whether a process has a task, be it one that it has not said anything of yet."""
        return worker.inqW_fd in self._busy_workers or super()._worker_active(worker)

    def _unbegun(self) -> set[Any]:
        """Return the processes that live, and have not begun what was written to them."""
        waiting = [job for job in tuple(self._cache.values()) if not job._accepted]
        written = [job._write_to for job in waiting if asynpool._get_job_writer(job) is None]
        return {process for process in written if process is not None and process._is_alive()}

    def _await_begun(self) -> None:
        """Wait until what was written has begun; a process that does not begin is ended.

        Its task is given to others, and would run twice.
        """
        until = monotonic() + BEGUN_WITHIN
        self._finish_writing(until)
        while unbegun := self._unbegun():
            if monotonic() > until:
                for process in unbegun:
                    end_process(process, "does not begin the task that it has")
                return
            for process in unbegun:
                process.outq._reader.poll(WAIT)
                try:
                    self._result_handler.handle_event(process.outqR_fd)
                except Exception:  # of whoever is told; as in the loop, which goes on
                    logger.exception("What %r has said was not heard.", process)

    def _finish_writing(self, until: float) -> None:
        """Write the rest of what is written in part, for as long as that may take."""
        for job in tuple(self._cache.values()):
            writer = asynpool._get_job_writer(job)
            if writer not in self._active_writers or asynpool.gen_not_started(writer):
                continue
            process = job._write_to
            pipe = process.inq._writer
            while writer in self._active_writers and process._is_alive():
                if monotonic() > until:
                    end_process(process, "does not read the task that it gets")
                    break
                _, writable, _ = select.select([], [pipe], [], WAIT)
                if writable:
                    with suppress(OSError):  # the process has just ended
                        next(writer, None)


class Sparing:
    """A loop that is not asked to forget a file which it does not watch, and would ask the kernel for."""

    def __init__(self, hub: Any) -> None:
        """Stand before a node's loop."""
        self._hub = hub
        self.add, self.add_writer, self.remove = hub.add, hub.add_writer, hub.remove
        self.consolidate_callback: Any = None

    def remove_writer(self, fileno: int) -> None:
        """Watch no more whether a file can be written to."""
        if fileno in self._hub.writers:
            self._hub.remove_writer(fileno)


def packed(body: bytes) -> tuple[memoryview, memoryview, int]:
    """Return what to write for a message, as Celery's coroutine wants it: the length, then the message.

    The kernel takes so many bytes together or not at all, so that both can go as the first.
    """
    size = len(body)
    header = LENGTH.pack(size)
    if LENGTH.size + size <= PIPE_BUF:
        return memoryview(header + body), NOTHING, 0
    return memoryview(header), memoryview(body), size
