# SPDX-License-Identifier: MIT
"""Ends each request exactly once, whatever its task raises and in whatever pool, so that its slot is freed.

Celery's pools of threads, of greenlets and of the main process report the end of a task by one callback. They
do not call it after an exception that Celery's tracer does not catch (celery 5.7,
concurrency.base.apply_target): the message stays unacknowledged for ever, and takes a slot. A MemoryError of
a task is raised in the node, too, with any pool, and ends the node (Request.on_failure). A task that
cannot be sent to a child process ends the node, too.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from functools import wraps
from typing import TYPE_CHECKING, Any

from billiard.einfo import ExceptionInfo
from celery.concurrency import base, solo, thread
from celery.exceptions import WorkerShutdown, WorkerTerminate
from celery.worker import WorkController
from celery.worker import request as requests

from fleet_runtime.compat.surface import may_replace
from fleet_runtime.transport.broadcast import described, is_of_broker
from fleet_runtime.worker.request import DeadLetterRequest

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

logger = logging.getLogger(__name__)

# Modules with handlers of signals, which may end the node while a task runs in its main process.
SIGNAL_MODULES = ("celery.apps.worker", "celery.worker.state")


class _NeverRaisedError(Exception):
    """Replaces an exception that Celery must not catch."""


def patch(worker: Any) -> None:
    """Patch Celery so that a node ends each request.

    Args:
        worker: The worker, which has the class of its pool.
    """
    # In that module alone: a task that raises a MemoryError has failed, as with any other exception.
    requests.MemoryError = _NeverRaisedError
    patch_sending()
    patch_targets(worker.pool_cls)


def patch_targets(pool: type[Any]) -> None:
    """Patch the pools without child processes so that they report each end."""
    original = may_replace("celery.concurrency.base", "apply_target")
    if original is None:
        return

    @wraps(original)
    def apply_target(*args: Any, **options: Any) -> Any:
        return run(original, *args, **options)

    base.apply_target = thread.apply_target = solo.apply_target = apply_target
    green: Any = sys.modules.get("celery.concurrency.gevent")
    if green is None or pool is not green.TaskPool:  # gevent is not imported for other pools
        return
    with_limit = green.apply_timeout

    @wraps(with_limit)
    def apply_timeout(*args: Any, **options: Any) -> Any:
        return with_limit(*args, **options, apply_target=apply_target)

    green.apply_timeout = apply_timeout


def run(
    original: Callable[..., Any],
    target: Callable[..., Any],
    args: Any = (),
    kwargs: Any = None,
    callback: Callable[..., Any] | None = None,
    accept_callback: Callable[..., Any] | None = None,
    pid: int | None = None,
    getpid: Callable[[], int] = os.getpid,
    propagate: tuple[type[BaseException], ...] = (),
    **options: Any,
) -> None:
    """Run a task, and report its end to its request.

    Args:
        original: Celery's function, for a target that is not a task.
        target: Runs the task, and returns whether it failed, its result, and its duration in seconds.
        args: Arguments of the target.
        kwargs: Keyword arguments of the target.
        callback: Gets the result of the target.
        accept_callback: Called when the task begins.
        pid: Process id to report.
        getpid: Returns the process id, if `pid` is None.
        propagate: Exceptions to raise.
        options: Other options of Celery.
    """
    request = getattr(callback, "__self__", None)
    if not isinstance(request, DeadLetterRequest) or callback is None:
        original(target, args, kwargs, callback, accept_callback, pid, getpid, propagate, **options)
        return
    if accept_callback is not None:
        try:
            accept_callback(pid or getpid(), time.monotonic())
        except Exception as error:  # the task runs anyway, as in a prefork pool
            logger.warning("The start of %s was not reported to all: %s", request, described(error))
    try:
        result = target(*args, **(kwargs or {}))
    except propagate:
        raise
    except BaseException as error:
        if _ends_node(error):
            raise
        request.on_failure(ExceptionInfo())
    else:
        callback(result)


def patch_sending() -> None:
    """Let a request fail that cannot be sent to a child process, and free its slot.

    Its arguments or headers may be nested too deep for pickle, or too large.
    """
    original = may_replace("celery.worker.worker:WorkController", "_process_task")
    if original is None:
        return

    @wraps(original)
    def _process_task(worker: Any, request: Any) -> None:
        try:
            original(worker, request)
        except Exception as error:
            if is_of_broker(error) or not (
                isinstance(request, DeadLetterRequest) and worker.pool.uses_semaphore
            ):
                raise
            worker._quick_release()
            logger.error("%s cannot be sent to a child process: %s", request, described(error))
            request.on_failure(ExceptionInfo())

    WorkController._process_task = _process_task


def _ends_node(error: BaseException) -> bool:
    """Return whether an exception ends the node: a handler of signals raises it while a task runs."""
    if not isinstance(error, (WorkerShutdown, WorkerTerminate)):
        return False
    last: TracebackType | None = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return last is not None and last.tb_frame.f_globals.get("__name__") in SIGNAL_MODULES
