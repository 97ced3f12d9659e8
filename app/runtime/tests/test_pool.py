# SPDX-License-Identifier: MIT
"""No task that a prefork node gives to its processes, and no result, is lost or doubled."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import time
from contextlib import suppress
from functools import partial
from select import PIPE_BUF
from typing import TYPE_CHECKING, Any

import pytest
from billiard.einfo import ExceptionInfo
from billiard.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded, WorkerLostError
from billiard.pool import ACK, READY
from billiard.queues import _SimpleQueue
from fleet_runtime.prefork import framing
from fleet_runtime.prefork import pool as pool_module
from fleet_runtime.prefork.pool import FastAsynPool
from fleet_runtime.prefork.results import ResultHandler
from kombu.asynchronous import Hub

from fleet_testing.commands import FLAGS, PATIENCE, Daemon, Fleet, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MEGABYTE = 2**20
ONE = ("--queues=default", *FLAGS, "--concurrency=1")


@pytest.fixture
def hub() -> Iterator[Hub]:
    """Yield a loop."""
    hub = Hub()
    yield hub
    hub.close()


@pytest.fixture
def make(hub: Hub) -> Iterator[Callable[..., FastAsynPool]]:
    """Yield what makes a pool in this process, and waits until its processes are up."""
    made: list[FastAsynPool] = []

    def make(processes: int = 1, **options: Any) -> FastAsynPool:
        pool = FastAsynPool(processes, threads=False, enable_timeouts=True, proc_alive_timeout=60, **options)
        made.append(pool)
        pool.register_with_event_loop(hub)
        turn(hub, lambda: len(pool._all_inqueues) == processes)
        return pool

    yield make
    for pool in made:
        pool.terminate()
        pool.join()


def turn(hub: Hub, happened: Callable[[], Any]) -> None:
    """Let the loop turn until something has happened."""
    hub.call_repeatedly(0.05, int)
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        hub.run_once()


class Ends(list[Any]):
    """What became of jobs."""

    def of(self, pool: FastAsynPool, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Let a pool run a function."""
        return pool.apply_async(function, args, callback=self.append, error_callback=self.append, **options)


def error(info: Any) -> Any:
    """Return an exception that came from a process, or that stands for one."""
    return getattr(info.exception, "exc", info.exception)


def child(pool: FastAsynPool) -> int:
    """Return the number of the process of a pool that has one."""
    (process,) = pool._pool
    return int(process.pid)


def is_stopped(pid: int) -> bool:
    """Return whether a process stands still."""
    words = ["ps", "-o", "stat=", "-p", str(pid)]
    return subprocess.run(words, text=True, stdout=subprocess.PIPE, check=False).stdout.startswith("T")


def stop(pid: int) -> None:
    """Let a process stand still."""
    os.kill(pid, signal.SIGSTOP)
    wait_until(partial(is_stopped, pid))


def test_an_idle_process_is_written_to_at_once(hub: Hub, make: Callable[..., FastAsynPool]) -> None:
    """Before the loop reports that it may. Celery's records of the running tasks are kept."""
    pool, ends = make(), Ends()
    first, second = ends.of(pool, pow, 2, 3), ends.of(pool, pow, 2, 4)
    (process,) = pool._pool
    assert first._write_to is first._scheduled_for is process
    assert pool._busy_workers == {process.inqW_fd}
    assert not pool._active_writes
    assert not pool._active_writers
    assert second._write_to is None
    assert list(pool.outbound_buffer) == [second]
    turn(hub, lambda: len(ends) == 2)
    assert ends == [8, 16]
    assert not pool._cache
    assert not pool._busy_workers
    assert not hub.writers, "the kernel is asked whether it may be written to"


@pytest.mark.parametrize("size", [1, PIPE_BUF - 100, PIPE_BUF, 2**16, MEGABYTE])
def test_a_message_of_any_size_arrives(hub: Hub, make: Callable[..., FastAsynPool], size: int) -> None:
    """Also one that no pipe takes at a time, while its process stands still."""
    pool, ends = make(), Ends()
    stop(child(pool))
    job = ends.of(pool, len, b"x" * size)
    assert bool(pool._active_writes) == (size >= 2**16)
    for _ in range(3):
        hub.run_once()
    assert not job._accepted
    os.kill(child(pool), signal.SIGCONT)
    turn(hub, lambda: ends)
    assert ends == [size]
    assert not hub.writers


@pytest.mark.parametrize("size", [1, MEGABYTE])
def test_a_process_that_dies_before_it_has_read_a_task(
    hub: Hub, make: Callable[..., FastAsynPool], size: int
) -> None:
    """Then another one gets it, and its pipe is none in which a part of a message is left."""
    pool, ends = make(), Ends()
    stop(child(pool))
    ends.of(pool, len, b"x" * size)
    ends.of(pool, pow, 2, 3)
    os.kill(child(pool), signal.SIGKILL)
    turn(hub, lambda: len(ends) == 2)
    assert ends == [size, 8]
    assert not pool._cache
    turn(hub, lambda: not pool._busy_workers)


def test_a_process_that_dies_with_a_task(hub: Hub, make: Callable[..., FastAsynPool]) -> None:
    """The death is reported, and the tasks that wait run."""
    pool, ends = make(lost_worker_timeout=0.1), Ends()
    ends.of(pool, die)
    ends.of(pool, pow, 2, 3)
    turn(hub, lambda: len(ends) == 2)
    (lost,) = (one for one in ends if one != 8)
    assert isinstance(error(lost), WorkerLostError)


def test_processes_that_are_replaced_after_each_task(hub: Hub, make: Callable[..., FastAsynPool]) -> None:
    """As with max_tasks_per_child."""
    pool, ends = make(2, maxtasksperchild=1), Ends()
    for number in range(12):
        ends.of(pool, pow, number, 1)
    turn(hub, lambda: len(ends) == 12)
    assert sorted(ends) == list(range(12))


def test_what_fails_tells_all(hub: Hub, make: Callable[..., FastAsynPool]) -> None:
    """Also if that is more than what a pipe takes at a time."""
    pool, ends = make(), Ends()
    ends.of(pool, fail, MEGABYTE)
    ends.of(pool, pow, 2, 3)
    turn(hub, lambda: len(ends) == 2)
    assert len(str(ends[0].exception)) >= MEGABYTE
    assert ends[1] == 8


def test_a_node_stops_with_a_large_result_on_its_way(hub: Hub, make: Callable[..., FastAsynPool]) -> None:
    """It is waited for."""
    pool, ends = make(), Ends()
    job = ends.of(pool, fail, MEGABYTE)
    turn(hub, lambda: job._accepted)
    pool.close()
    pool.join()
    assert len(str(ends[0].exception)) >= MEGABYTE


@pytest.mark.parametrize(("soft", "hard"), [(0.2, None), (None, 0.2), (0.2, 0.4)])
def test_a_time_limit_holds(
    hub: Hub, make: Callable[..., FastAsynPool], soft: float | None, hard: float | None
) -> None:
    """Whichever comes first; and for one task after another, though there is one timer for all."""
    pool, ends, told = make(), Ends(), []

    def tell(*, soft: bool, timeout: float) -> None:
        """Remember that a limit has passed, and which."""
        told.append((soft, timeout))

    for seconds in (0, 5, 0, 5):
        function = sleep_on if hard else nap
        ends.of(pool, function, seconds, soft_timeout=soft, timeout=hard, timeout_callback=tell)
    turn(hub, lambda: len(ends) == 4)
    expected = TimeLimitExceeded if hard else SoftTimeLimitExceeded
    assert [type(error(one)) for one in ends[1::2]] == [expected] * 2
    assert ends[::2] == [0, 0]
    limits = [(True, soft)] * bool(soft) + [(False, hard)] * bool(hard)
    assert told == limits * 2


def test_tasks_that_ended_leave_no_timer(hub: Hub, make: Callable[..., FastAsynPool]) -> None:
    """Celery's stay in memory until the limit is over."""
    pool, ends = make(soft_timeout=3000, timeout=3600), Ends()
    before = len(hub.timer)
    for number in range(50):
        ends.of(pool, pow, number, 1)
    turn(hub, lambda: len(ends) == 50)
    assert len(hub.timer) <= before + 3
    assert pool._deadlines
    assert not any(pool._deadlines._ends.values())


def test_time_limits_hold_after_the_connection_was_lost(hub: Hub, make: Callable[..., FastAsynPool]) -> None:
    """Celery cancels timers that were made meanwhile, and empties the loop."""
    pool, ends = make(), Ends()
    ends.of(pool, sleep_on, 30, timeout=1)
    turn(hub, lambda: any(job._accepted for job in pool._cache.values()))
    assert pool._deadlines
    for timer in pool._deadlines._timers.values():
        timer.cancel()
    hub.reset()
    pool.register_with_event_loop(hub)
    turn(hub, lambda: ends)
    assert isinstance(error(ends[0]), TimeLimitExceeded)


MESSAGES = [
    (ACK, (1, None, 123.4, 4711, None)),
    (READY, (1, None, (True, (0, "None", 0.001)), 8)),
    (READY, (2, None, (True, (0, "x" * 10000, 0.001)), 8)),
    (READY, (3, None, (True, {"an": "object"}), 8)),
    (ACK, (4, None, 123.4, 4711, None)),
]


@pytest.mark.parametrize("message", MESSAGES)
def test_what_a_process_says_is_what_the_node_hears(message: Any) -> None:
    """However it is pickled."""
    pipe = _SimpleQueue()
    framing.send_reply(pipe, message)
    assert pipe.get() == message


def test_what_is_not_plain_is_pickled_by_billiard() -> None:
    """An exception may have whatever in it."""
    try:
        raise ValueError("no")
    except ValueError:
        info = ExceptionInfo()
    assert not framing.is_plain(READY, (1, None, (False, info), 8))
    assert not framing.is_plain(READY, (1, None, (True, (1, info, 0.1)), 8))
    assert not framing.is_plain(READY, (1, None, (True, [1]), 8))
    assert framing.is_plain(*MESSAGES[0])
    assert framing.is_plain(*MESSAGES[1])


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 64, 100, 8192, 10**6])
def test_messages_arrive_in_whatever_pieces(size: int) -> None:
    """Each once, and in their order."""
    stream = b"".join(framing.LENGTH.pack(len(body)) + body for body in map(pickle.dumps, MESSAGES))
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    heard: list[Any] = []
    readers: dict[int, Any] = {}
    handler = object.__new__(ResultHandler)
    handler.fileno_to_outq, handler.on_state_change, handler.parts = {reader: "a process"}, heard.append, {}

    class Loop:
        """A loop that remembers what to call."""

        def add_reader(self, fileno: int, callback: Any, *args: Any) -> None:
            """Remember it."""
            readers[fileno] = callback

        def remove_reader(self, fileno: int) -> None:
            """Forget it."""
            del readers[fileno]

    handler.handle_event = readers[reader] = handler._make_process_result(Loop())
    for begin in range(0, len(stream), size):
        os.write(writer, stream[begin : begin + size])
        readers[reader](reader)
    assert heard == MESSAGES
    assert readers[reader] is handler.handle_event
    os.close(writer)
    readers[reader](reader)
    assert not readers, "the end of a pipe is no message"
    os.close(reader)


def test_an_error_about_a_message_loses_no_other_one() -> None:
    """They are out of the pipe by then."""
    heard: list[Any] = []

    def hear(message: Any) -> None:
        """Fail with the first."""
        heard.append(message)
        if len(heard) == 1:
            raise SystemExit(1)

    reader, writer = os.pipe()
    handler = object.__new__(ResultHandler)
    handler.fileno_to_outq, handler.on_state_change, handler.parts = {reader: "a process"}, hear, {}
    for message in MESSAGES[:2]:
        body = pickle.dumps(message)
        os.write(writer, framing.LENGTH.pack(len(body)) + body)
    with pytest.raises(SystemExit):
        handler._make_process_result(Hub())(reader)
    assert heard == MESSAGES[:2]
    os.close(reader)
    os.close(writer)


@pytest.fixture
def half(make: Callable[..., FastAsynPool]) -> tuple[FastAsynPool, Any, bytes]:
    """A pool whose process has said half of something, by our own hand, and the other half of it."""
    pool = make()
    (process,) = pool._pool
    body = pickle.dumps((ACK, (1, None, 1.0, process.pid, None, "x" * 20_000)))
    message = framing.LENGTH.pack(len(body)) + body
    os.write(process.outq._writer.fileno(), message[:9000])
    pool._result_handler.handle_event(process.outqR_fd)
    assert list(pool._result_handler.parts) == [process.outqR_fd]
    return pool, process, message[9000:]


def hear(pool: FastAsynPool, hub: Hub, heard: list[Any]) -> None:
    """Let the messages of a pool's processes arrive here, and nowhere else."""
    pool._result_handler.on_state_change = heard.append
    pool._result_handler.register_with_event_loop(hub)


def test_half_of_a_message_outlives_a_connection(half: tuple[FastAsynPool, Any, bytes], hub: Hub) -> None:
    """The loop forgets all that it watches as one to the broker is lost."""
    (pool, process, rest), heard = half, list[Any]()
    hub.reset()
    pool.register_with_event_loop(hub)
    hear(pool, hub, heard)
    os.write(process.outq._writer.fileno(), rest)
    pool._result_handler.handle_event(process.outqR_fd)
    assert [len(message[1][5]) for message in heard] == [20_000]
    assert not pool._result_handler.parts


@pytest.mark.parametrize("is_whole", [True, False])
def test_half_of_a_message_is_finished_or_forgotten_with_its_process(
    half: tuple[FastAsynPool, Any, bytes], hub: Hub, is_whole: bool
) -> None:
    """Or the next process with these pipes would be misunderstood."""
    (pool, process, rest), heard = half, list[Any]()
    hear(pool, hub, heard)
    if is_whole:
        os.write(process.outq._writer.fileno(), rest)
    pool.process_flush_queues(process)
    assert len(heard) == is_whole
    assert not pool._result_handler.parts


def test_half_of_a_message_is_finished_as_the_node_stops(
    half: tuple[FastAsynPool, Any, bytes], hub: Hub
) -> None:
    """The rest is waited for, but not for ever."""
    (pool, process, rest), heard = half, list[Any]()
    hear(pool, hub, heard)
    pool._result_handler.partial_read_deadline = 0.2
    assert pool._result_handler._finish_partial_read(process.outqR_fd, process)
    os.write(process.outq._writer.fileno(), rest)
    assert not pool._result_handler._finish_partial_read(process.outqR_fd, process)
    assert len(heard) == 1


@pytest.mark.parametrize("length", [-4, -1, 0])
def test_a_process_that_says_what_cannot_be_read_is_ended(
    hub: Hub, make: Callable[..., FastAsynPool], length: int
) -> None:
    """Its task fails as one of a lost process, and the next one runs."""
    pool, ends = make(), Ends()
    before = child(pool)
    (process,) = pool._pool
    ends.of(pool, time.sleep, 600)
    turn(hub, lambda: any(job._accepted for job in pool._cache.values()))
    os.write(process.outq._writer.fileno(), framing.LENGTH.pack(length) + b"what?")
    turn(hub, lambda: ends)
    assert isinstance(error(ends[0]), WorkerLostError)
    ends.of(pool, pow, 2, 3)
    turn(hub, lambda: len(ends) == 2)
    assert ends[1] == 8
    assert child(pool) != before


class Unreadable:
    """What can be pickled, and not be unpickled."""

    def __reduce__(self) -> Any:
        """Become the number of a word."""
        return int, ("no number",)


def unreadable() -> Unreadable:
    """Return it, as a task may."""
    return Unreadable()


def test_a_process_whose_message_cannot_be_unpickled_is_ended(
    hub: Hub, make: Callable[..., FastAsynPool]
) -> None:
    """Its task fails as one of a lost process. The node goes on, and so do other tasks."""
    pool, ends = make(), Ends()
    before = child(pool)
    ends.of(pool, unreadable)
    turn(hub, lambda: ends)
    assert isinstance(error(ends[0]), WorkerLostError)
    ends.of(pool, pow, 2, 3)
    turn(hub, lambda: len(ends) == 2)
    assert ends[1] == 8
    assert child(pool) != before
    assert not pool._cache


def test_what_stands_before_a_message_that_cannot_be_unpickled_is_heard() -> None:
    """It is out of the pipe by then."""
    heard: list[Any] = []
    bodies = [*map(pickle.dumps, MESSAGES[:2]), b"no pickle"]
    stream = b"".join(framing.LENGTH.pack(len(body)) + body for body in bodies)
    with pytest.raises(framing.UnreadableError, match="cannot be unpickled"):
        framing.handle_messages(stream, heard.append, [])
    assert heard == MESSAGES[:2]


def test_what_cannot_be_unpickled_holds_up_no_process_that_ended_and_no_stop(
    make: Callable[..., FastAsynPool], hub: Hub
) -> None:
    """Then its pipe is read in another way, which is billiard's."""
    pool, heard, removed = make(), list[Any](), list[Any]()
    (process,) = pool._pool
    body = pickle.dumps(Unreadable())
    hear(pool, hub, heard)
    os.write(process.outq._writer.fileno(), framing.LENGTH.pack(len(body)) + body)
    pool.process_flush_queues(process)
    os.write(process.outq._writer.fileno(), framing.LENGTH.pack(len(body)) + body)
    results, fileno = pool._result_handler, process.outqR_fd
    results._flush_outqueue(fileno, removed.append, {fileno: process}, heard.append)
    assert removed == [fileno]
    assert heard == []


@pytest.mark.parametrize("size", [1, MEGABYTE])
def test_a_task_that_was_just_written_goes_on_when_a_connection_is_lost(
    hub: Hub, make: Callable[..., FastAsynPool], tmp_path: Path, size: int
) -> None:
    """It has begun, and is not given to others, too; its process is not taken for one without a task."""
    pool, ends, begun = make(), Ends(), []
    job = pool.apply_async(
        len, ("x" * size,), callback=ends.append, accept_callback=lambda *_: begun.append(1)
    )
    hub.reset()
    pool.flush()
    assert begun == [1]
    assert not job.ready() or ends == [size]
    pool.register_with_event_loop(hub)
    turn(hub, lambda: ends)
    assert ends == [size]
    assert not pool._cache


def test_a_process_that_does_not_begin_is_ended_when_a_connection_is_lost(
    hub: Hub, make: Callable[..., FastAsynPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has is given to others, and it would run it, too, as soon as it goes on."""
    monkeypatch.setattr(pool_module, "BEGIN_TIMEOUT_S", 0.2)
    pool, ends = make(), Ends()
    before = child(pool)
    stop(before)
    ends.of(pool, pow, 2, 3)
    hub.reset()
    pool.flush()
    pool.register_with_event_loop(hub)
    # Up, and not only there: a process that is told to end as it starts may not hear it.
    turn(hub, lambda: any(process.pid != before for process in pool._fileno_to_inq.values()))
    assert not ends
    assert not pool._cache


def test_a_stop_does_not_wait_for_a_task_that_is_half_written(
    hub: Hub, make: Callable[..., FastAsynPool]
) -> None:
    """It is written, and runs."""
    pool, ends = make(), Ends()
    ends.of(pool, len, "x" * 8 * MEGABYTE)
    assert pool._active_writers
    pool.close()
    assert not pool._active_writers
    pool.join()
    assert ends == [8 * MEGABYTE]


def test_a_process_with_a_task_is_not_one_to_do_without(hub: Hub, make: Callable[..., FastAsynPool]) -> None:
    """Though it has not said yet that it has begun."""
    pool, ends = make(), Ends()
    (process,) = pool._pool
    assert not pool._worker_active(process)
    ends.of(pool, pow, 2, 3)
    assert pool._worker_active(process)
    turn(hub, lambda: ends)
    assert not pool._worker_active(process)


def children(node: Daemon) -> list[int]:
    """Return the numbers of a node's processes."""
    words = ["pgrep", "--parent", str(node.process.pid)]
    return [int(word) for word in subprocess.check_output(words, text=True).split()]


def test_a_revoked_task_is_ended_and_the_next_one_runs(fleet: Fleet, web: Any, tmp_path: Path) -> None:
    """In a new process."""
    gate, notes = tmp_path / "gate", tmp_path / "notes"
    gate.touch()
    with fleet.worker("revoked", *ONE):
        running = web.send_task("shop.note", (str(notes), "one", str(gate)), queue="default")
        wait_until(notes.exists)
        waiting = web.send_task("shop.add", (1, 1), queue="default")
        target = ["--timeout=10", "--destination=revoked@test"]
        assert fleet.run("ops", "control", *target, "terminate", "SIGKILL", running.id).returncode == 0
        assert waiting.get(timeout=PATIENCE) == 2
    assert notes.read_text() == "one starts\n"


def test_a_task_in_the_pipe_of_a_process_that_is_killed_runs_once(
    fleet: Fleet, web: Any, broker: Any, tmp_path: Path
) -> None:
    """It was written, and not read."""
    notes = tmp_path / "notes"
    with fleet.worker("piped", *ONE) as node:
        (pid,) = children(node)
        stop(pid)
        web.send_task("shop.note", (str(notes), "one"), queue="default")
        web.send_task("shop.note", (str(notes), "two"), queue="default")
        redis = broker.client("admin")
        wait_until(lambda: redis.hlen("unacked:piped@test") == 1)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: notes.exists() and notes.read_text().count("ends") == 2)
        wait_until(lambda: not redis.exists("unacked:piped@test"))
    assert notes.read_text().splitlines() == ["one starts", "one ends", "two starts", "two ends"]


def test_a_node_that_stops_ends_what_it_has(fleet: Fleet, web: Any, broker: Any, tmp_path: Path) -> None:
    """And leaves the rest in the queue."""
    notes, redis = tmp_path / "notes", broker.client("admin")
    for number in range(40):
        web.send_task("shop.note", (str(notes), str(number)), queue="default")
    with fleet.worker("stopping", "--queues=default", *FLAGS, "--max-tasks-per-child=5"):
        wait_until(lambda: notes.exists() and "10 ends" in notes.read_text())
    lines = notes.read_text().splitlines()
    assert len(set(lines)) == len(lines)
    assert len([line for line in lines if "ends" in line]) * 2 == len(lines)
    assert redis.llen("default") == 40 - len(lines) // 2
    assert not redis.exists("unacked:stopping@test")
    redis.delete("default")


@pytest.mark.parametrize("delay", [0.0, 0.002, 0.005, 0.01])
def test_a_task_that_comes_as_the_node_stops_runs_once(
    fleet: Fleet, web: Any, broker: Any, tmp_path: Path, delay: float
) -> None:
    """It was written to a process, which had not said so yet. Its end is awaited, and acknowledged."""
    notes, redis = tmp_path / "notes", broker.client("admin")
    with fleet.worker("stopping", *ONE) as node:
        node.wait_for("This node takes tasks now")
        time.sleep(0.5)
        node.process.send_signal(signal.SIGTERM)
        time.sleep(delay)
        web.send_task("shop.note", (str(notes), "one"), queue="default")
        began = time.monotonic()
        node.process.wait(PATIENCE)
        assert time.monotonic() - began < 10, "its process waited for somebody to hear that it is done"
    ran = notes.read_text().splitlines() if notes.exists() else []
    assert ran in ([], ["one starts", "one ends"])
    assert redis.llen("default") == (0 if ran else 1)
    assert not redis.exists("unacked:stopping@test")
    redis.delete("default")


def nap(seconds: float) -> float:
    """Sleep."""
    time.sleep(seconds)
    return seconds


def sleep_on(seconds: float) -> float:
    """Sleep for the whole time, also after a SoftTimeLimitExceeded."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with suppress(SoftTimeLimitExceeded):
            time.sleep(max(0, end - time.monotonic()))
    return seconds


def fail(size: int) -> None:
    """Fail at length."""
    raise ValueError("x" * size)


def die() -> None:
    """End this process."""
    os.kill(os.getpid(), signal.SIGKILL)
