# SPDX-License-Identifier: MIT
"""The patches around each task have the same outcome as Celery's own functions."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from celery.app import trace
from celery.app.task import Context
from celery.utils import threads
from fleet_runtime.compat import tracing
from fleet_runtime.errors import FleetError

VALUES = [None, True, False, 0, 1, 1.0, "", "a" * 3000, [None], {"a": (1, 2)}, {"x" * 50: ["y" * 500]}]
HEADERS = [
    {},
    {"id": "1", "task": "t", "lang": "py", "retries": 0, "argsrepr": "()"},
    {"id": "1", "mine": 5, "compression": None, "x": None},
]


@pytest.fixture
def patched(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Apply the patches for one test, and return the originals."""
    stack = threads._LocalStack
    places = [(stack, name) for name in ("push", "pop", "top")]
    places += [(Context, "_get_custom_headers"), (trace, "saferepr")]
    was: dict[str, Any] = {}
    for place, name in places:
        found = vars(place)[name]
        inner: Any = found.fget if isinstance(found, property) else found
        while hasattr(inner, "__wrapped__"):  # another test has had it patched
            inner = inner.__wrapped__
        was[name] = property(inner) if isinstance(found, property) else inner
        monkeypatch.setattr(place, name, was[name])
    tracing.patch()
    assert all(vars(place)[name] is not was[name] for place, name in places)
    return was


def stacks(was: dict[str, Any]) -> tuple[Any, Any]:
    """Return a stack, and one of Celery's own."""
    return threads._LocalStack(), type("Stock", (threads._LocalStack,), was)()


def test_a_stack_is_one(patched: dict[str, Any]) -> None:
    """Step by step, and empty at its end."""
    for stack in stacks(patched):
        assert (stack.top, stack.pop(), len(stack), stack.stack) == (None, None, 0, [])
        for number in range(3):
            assert stack.push(number) == list(range(number + 1))
            assert stack.top == number
        assert (len(stack), stack.stack) == (3, [0, 1, 2])
        assert [stack.pop() for _ in range(4)] == [2, 1, 0, None]
        assert not stack._local.__storage__, "it would keep something for each thread that there ever was"


def test_a_thread_has_a_stack_of_its_own(patched: dict[str, Any]) -> None:
    """A push in one thread does not show in another."""

    def look(stack: Any, found: list[Any]) -> None:
        """Use a stack."""
        found += [stack.top, stack.push("there"), stack.pop()]

    for stack in stacks(patched):
        found: list[Any] = []
        stack.push("here")
        thread = threading.Thread(target=look, args=(stack, found))
        thread.start()
        thread.join()
        assert found == [None, ["there"], "there"]
        assert stack.top == "here"


@pytest.mark.parametrize("headers", HEADERS)
def test_headers_of_the_sender_are_found(patched: dict[str, Any], headers: dict[str, Any]) -> None:
    """And only those."""
    original = patched["_get_custom_headers"]
    assert Context(headers, args=()).headers == original(Context(), headers, args=())


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("most", [None, 3, 5, 1024])
def test_a_result_has_its_text(patched: dict[str, Any], value: Any, most: int | None) -> None:
    """As long as it may be."""
    assert trace.saferepr(value, most) == patched["saferepr"](value, most)


def test_a_replaced_function_is_refused(monkeypatch: pytest.MonkeyPatch, patched: dict[str, Any]) -> None:
    """Another package has put one with other parameters in its place."""
    monkeypatch.setattr(trace, "saferepr", lambda value: repr(value))
    with pytest.raises(FleetError, match=r"celery\.app\.trace\.saferepr"):
        tracing.patch_saferepr()
