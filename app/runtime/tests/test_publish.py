# SPDX-License-Identifier: MIT
"""Many tasks are sent at once, and who sends them knows which."""

from __future__ import annotations

import json
from itertools import chain
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from fleet_runtime import PartlyPublishedError, publish_many

from fleet_testing.broker import Broker, counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


def add_of(app: Any) -> Any:
    """Return a task of an app."""
    app.conf.task_default_queue = "heavy"

    @app.task(name="publish.add", ignore_result=True, shared=False)
    def add(x: int, y: int) -> int:
        return x + y

    return add


def test_many_tasks_are_sent_in_few_requests(broker: Broker, web: Celery) -> None:
    """In their order, and with what each says of itself."""
    admin = broker.client("admin")
    admin.delete("heavy", "heavy\x06\x169")
    add = add_of(web)
    with counted() as sent:
        results = publish_many((add.s(number, 1) for number in range(1200)), batch=500)
    assert 0 < sent["requests"] < 20
    messages = [json.loads(item) for item in reversed(admin.lrange("heavy", 0, -1))]
    assert [message["headers"]["id"] for message in messages] == [result.id for result in results]
    assert [message["headers"]["argsrepr"] for message in messages][::400] == [
        "(0, 1)",
        "(400, 1)",
        "(800, 1)",
    ]
    assert publish_many([add.s(1, 1).set(priority=9)])[0].id
    assert admin.llen("heavy\x06\x169") == 1
    admin.delete("heavy", "heavy\x06\x169")


def test_nothing_is_nothing() -> None:
    """And asks no broker."""
    assert publish_many([]) == []


def test_a_batch_has_a_task_at_least() -> None:
    """Else it would never end."""
    with pytest.raises(ValueError, match="batch is 0"):
        publish_many([], batch=0)


def test_what_cannot_be_sent_is_told_with_what_was(broker: Broker, web: Celery) -> None:
    """A task, or what gives the tasks."""
    admin = broker.client("admin")
    add = add_of(web)

    def broken() -> Iterator[Any]:
        yield add.s(1, 1)
        raise KeyError("no more")

    for last, sent, unsure in (
        ([add.s(object(), 1)], 2, 1),
        ([add.s(1, 1) | add.s(2)], 2, 0),
        (broken(), 2, 0),
    ):
        admin.delete("heavy")
        with pytest.raises(PartlyPublishedError) as caught:
            publish_many(chain([add.s(1, 1), add.s(2, 2)], last), batch=2)
        assert (len(caught.value.sent), len(caught.value.unsure)) == (sent, unsure)
        assert admin.llen("heavy") == 2
    admin.delete("heavy")


def test_a_broker_that_fails_leaves_no_doubt(tmp_path: Path, connect: Callable[[Broker], Any]) -> None:
    """What it has, what it may have, and what was not asked for yet."""
    broker = Broker(tmp_path)
    try:
        web = connect(broker)
        web.conf.task_publish_retry_policy = {"max_retries": 0}
        add = add_of(web)

        def signatures() -> Iterator[Any]:
            for number in range(100):
                if number == 25:
                    broker.stop()
                yield add.s(number, 1)

        remaining = signatures()
        with pytest.raises(PartlyPublishedError) as caught:
            publish_many(remaining, batch=10)
        error = caught.value
        assert (len(error.sent), [one.args[0] for one in error.unsure]) == (20, list(range(20, 30)))
        assert next(remaining).args[0] == 30
        broker.start()
        assert broker.client("admin").llen("heavy") == 20
    finally:
        broker.stop()
