# SPDX-License-Identifier: MIT
"""Lets each task come to one end, whatever it raises and wherever it runs, so that its place is free again.

Celery's pools of threads, of greenlets and of the main process hear of a task's end by one callback. They do
not call it for whatever the task's own handling does not catch (celery 5.7, concurrency.base.apply_target):
the message is held for ever, and so is a place of the node. A MemoryError that a task has raised is raised
in the node, too, whatever its pool, and ends it (Request.on_failure). So does what cannot be sent to a
process.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from functools import wraps
from typing import TYPE_CHECKING, Any

import celery
from billiard.einfo import ExceptionInfo
from celery.concurrency import base, solo, thread
from celery.exceptions import WorkerShutdown, WorkerTerminate
from celery.worker import WorkController
from celery.worker import request as requests

from fleet_runtime.compat.surface import may_replace
from fleet_runtime.compat.versions import is_known
from fleet_runtime.transport.broadcast import described, is_of_broker
from fleet_runtime.worker.request import Mortal

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

logger = logging.getLogger(__name__)

OTHERWISE = "What a task raises may end this node, or keep one of its places for ever."
# Modules of what may end the node while a task runs in its main process: handlers of signals.
OWN = ("celery.apps.worker", "celery.worker.state")


class _NeverRaised(Exception):  # noqa: N818 (no error at all)
    """Stands for an exception that Celery is not to look for."""


def mend(worker: Any) -> None:
    """Let a node's pool end each task.

    Args:
        worker: The node, which knows the class of its pool.
    """
    if is_known(celery, OTHERWISE):
        # By its name in that module alone: a task that needs too much memory has failed, like any other.
        requests.MemoryError = _NeverRaised
    mend_handing_over()
    mend_targets(worker.pool_cls)


def mend_targets(pool: type[Any]) -> None:
    """Let the pools that have no processes of their own tell of each end."""
    original = may_replace("celery.concurrency.base", "apply_target", OTHERWISE)
    if original is None:
        return

    @wraps(original)
    def apply_target(*given: Any, **options: Any) -> Any:
        return run(original, *given, **options)

    base.apply_target = thread.apply_target = solo.apply_target = apply_target
    green: Any = sys.modules.get("celery.concurrency.gevent")
    if green is None or pool is not green.TaskPool:  # else it would be imported for nothing
        return
    with_limit = green.apply_timeout

    @wraps(with_limit)
    def apply_timeout(*given: Any, **options: Any) -> Any:
        return with_limit(*given, **options, apply_target=apply_target)

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
    """Run a task, and tell its request how it ended.

    Args:
        original: Celery's own, for what is no task.
        target: Runs the task, and returns whether it failed, its result, and its seconds.
        args: Of that.
        kwargs: Of that.
        callback: Gets what it returns.
        accept_callback: Is told that it begins.
        pid: Who runs it.
        getpid: Says so, if that does not.
        propagate: What to raise.
        options: What else Celery says.
    """
    request = getattr(callback, "__self__", None)
    if not isinstance(request, Mortal) or callback is None:
        original(target, args, kwargs, callback, accept_callback, pid, getpid, propagate, **options)
        return
    if accept_callback is not None:
        try:
            accept_callback(pid or getpid(), time.monotonic())
        except Exception as error:  # as in the pool with processes: the task runs all the same
            logger.warning("The start of %s was not told to all: %s", request, described(error))
    try:
        ended = target(*args, **(kwargs or {}))
    except propagate:
        raise
    except BaseException as error:
        if _is_of_node(error):
            raise
        request.on_failure(ExceptionInfo())
    else:
        callback(ended)


def mend_handing_over() -> None:
    """Let a task fail that cannot be sent to a process, with its place in the pool free again.

    Its arguments or headers may be nested too deep for pickle, or too large.
    """
    original = may_replace("celery.worker.worker:WorkController", "_process_task", OTHERWISE)
    if original is None:
        return

    @wraps(original)
    def _process_task(worker: Any, request: Any) -> None:
        try:
            original(worker, request)
        except Exception as error:
            if is_of_broker(error) or not (isinstance(request, Mortal) and worker.pool.uses_semaphore):
                raise
            worker._quick_release()
            logger.error("%s cannot be sent to a process: %s", request, described(error))
            request.on_failure(ExceptionInfo())

    WorkController._process_task = _process_task


def _is_of_node(error: BaseException) -> bool:
    """Return whether the node itself is to end: a handler of its signals says so while a task runs."""
    if not isinstance(error, (WorkerShutdown, WorkerTerminate)):
        return False
    last: TracebackType | None = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return last is not None and last.tb_frame.f_globals.get("__name__") in OWN
