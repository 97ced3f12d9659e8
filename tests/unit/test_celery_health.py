# SPDX-License-Identifier: MIT
"""The module celery_health: which nodes are well, from what `celery fleet consumed` prints."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.fleet.celery.plugins.modules import celery_health

if TYPE_CHECKING:
    from collections.abc import Sequence

EXPECTED = {"io-1@host1": ["io"], "p-1@host1": ["a", "b"]}


class Celery:
    """Stands for Celery's command line: each question gets the next answer, and the last one for ever."""

    def __init__(self, *answers: dict[str, list[str]] | str) -> None:
        """Take the answers, a text being printed as it is."""
        self.answers = list(answers)
        self.asked: list[list[str]] = []

    def __call__(self, argv: Sequence[str]) -> tuple[int, str, str]:
        """Answer."""
        assert argv[1:4] == ["fleet", "consumed", "--timeout=5"]
        self.asked.append(list(argv[4:]))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, str):
            return 1, "", answer
        return 0, json.dumps(answer), ""


def examine(celery: Celery, **given: Any) -> tuple[dict[str, list[str] | None], str]:
    """Return what the module does with these answers, without pauses."""
    return celery_health.examine(
        celery,
        {"command": ["celery"], "expected": EXPECTED, "timeout": 5, "retries": 2, "delay": 0, **given},
    )


@pytest.mark.parametrize(
    ("answer", "sick"),
    [
        ({"io-1@host1": ["io"], "p-1@host1": ["b", "a"]}, {}),
        ({"io-1@host1": ["io"], "p-1@host1": ["a"]}, {"p-1@host1": ["a"]}),
        ({"io-1@host1": ["io", "extra"], "p-1@host1": ["a", "b"]}, {"io-1@host1": ["extra", "io"]}),
        ({"p-1@host1": ["a", "b"]}, {"io-1@host1": None}),
        ("Error: The broker cannot be asked: Connection refused.", {"io-1@host1": None, "p-1@host1": None}),
    ],
)
def test_a_node_is_well_if_it_consumes_its_queues_and_no_other(
    answer: dict[str, list[str]] | str, sick: dict[str, list[str] | None]
) -> None:
    """And nobody is if nobody answers: then what was printed is said."""
    assert examine(Celery(answer)) == (sick, answer if isinstance(answer, str) else "")


def test_only_nodes_that_are_not_well_are_asked_again() -> None:
    """Those that started late are well in the end."""
    celery = Celery("no broker", {"io-1@host1": ["io"]}, {"p-1@host1": ["a", "b"]})
    assert examine(celery) == ({}, "")
    assert celery.asked == [["io-1@host1", "p-1@host1"], ["io-1@host1", "p-1@host1"], ["p-1@host1"]]


def test_it_gives_up() -> None:
    """After so many retries."""
    celery = Celery({})
    assert set(examine(celery)[0]) == set(EXPECTED)
    assert len(celery.asked) == 3


def test_where_no_node_should_be_none_is_asked() -> None:
    """Without names, all would be."""
    celery = Celery("asked")
    assert examine(celery, expected={}) == ({}, "")
    assert celery.asked == []


def test_what_is_no_answer_is_said() -> None:
    """Such as a traceback on the standard output."""

    def print_nonsense(_: Sequence[str]) -> tuple[int, str, str]:
        return 1, "Traceback (most recent call last)", ""

    sick, said = celery_health.examine(
        print_nonsense, {"command": [], "expected": EXPECTED, "timeout": 5, "retries": 0, "delay": 0}
    )
    assert set(sick) == set(EXPECTED)
    assert said == "Traceback (most recent call last)"
