"""What Celery does around each task, in whatever pool, with less work and the same outcome (celery 5.7)."""

from __future__ import annotations

from functools import wraps
from typing import Any

import celery
from celery.app import trace
from celery.app.task import Context
from celery.utils import threads

from fleet_runtime.compat.versions import may_change

OTHERWISE = "Each task takes some more CPU here."
# What a stack is made of: for each thread or greenlet, a dict that has its list under this name.
NAME = "stack"
# What most tasks return, and how long its text is at most.
CONSTANTS, LENGTH = (None, True, False), len("False")


def mend() -> None:
    """Let Celery spare what it can."""
    mend_stacks()
    mend_headers()
    mend_texts()


def mend_stacks() -> None:
    """Let the stacks, of tasks and of requests, find their list by its key.

    Each task goes onto two of them and off again, and is looked up there meanwhile. Celery asks an object for
    an attribute that it never has, so that Python raises an error and handles it each time.
    """
    stack = threads._LocalStack
    originals = {"push": stack.push, "pop": stack.pop, "top": stack.top.fget}
    signatures = {"push": "(self, obj)", "pop": "(self)", "top": "(self)"}
    if not all(may_change(originals[one], signatures[one], celery, OTHERWISE) for one in originals):
        return

    @wraps(originals["push"])
    def push(self: Any, obj: Any) -> Any:
        local = self._local
        storage, ident = local.__storage__, local.__ident_func__()
        try:
            found = storage[ident][NAME]
        except KeyError:
            found = storage.setdefault(ident, {})[NAME] = []
        found.append(obj)
        return found

    @wraps(originals["pop"])
    def pop(self: Any) -> Any:
        local = self._local
        try:
            found = local.__storage__[local.__ident_func__()][NAME]
        except KeyError:
            return None
        if len(found) != 1:
            return found.pop()
        local.__release_local__()
        return found[-1]

    @wraps(originals["top"])
    def top(self: Any) -> Any:
        local = self._local
        try:
            return local.__storage__[local.__ident_func__()][NAME][-1]
        except (KeyError, IndexError):
            return None

    stack.push, stack.pop, stack.top = push, pop, property(top)


def mend_headers() -> None:
    """Let a request know which headers are Celery's own. Celery makes the set of them for each task anew."""
    original = Context._get_custom_headers
    if not may_change(original, "(self, *args, **kwargs)", celery, OTHERWISE):
        return
    besides = frozenset({"lang", "task", "argsrepr", "kwargsrepr", "compression"})
    own = besides.union(vars(Context))
    count = len(vars(Context))

    @wraps(original)
    def _get_custom_headers(self: Any, *args: Any, **kwargs: Any) -> dict[str, Any] | None:
        nonlocal own, count
        if len(vars(Context)) != count:  # an app has added some
            own, count = besides.union(vars(Context)), len(vars(Context))
        return {name: value for name, value in dict(*args, **kwargs).items() if name not in own} or None

    Context._get_custom_headers = _get_custom_headers


def mend_texts() -> None:
    """Let what most tasks return be told without the parser that looks for what may be too long in it."""
    original = trace.saferepr
    if not may_change(original, "(o, maxlen=None, maxlevels=3, seen=None)", celery, OTHERWISE):
        return

    @wraps(original)
    def saferepr(o: Any, maxlen: int | None = None, maxlevels: int = 3, seen: Any = None) -> Any:
        if (maxlen is None or maxlen > LENGTH) and any(o is constant for constant in CONSTANTS):
            return repr(o)
        return original(o, maxlen, maxlevels, seen)

    trace.saferepr = saferepr
