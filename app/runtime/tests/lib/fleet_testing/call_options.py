# SPDX-License-Identifier: MIT
"""The options with which a task may be sent, by Celery's own lists, with a value of each to try."""

from __future__ import annotations

import inspect
from typing import Any

from celery import Celery
from celery.app.task import Task
from kombu import Exchange, Producer, Queue

TOPICS = Exchange("topics", "topic")

# Said together in place of a queue: each alone does nothing.
TO_TOPICS: dict[str, Any] = {
    "exchange": TOPICS,
    "exchange_type": "topic",
    "routing_key": "io.eu",
    "declare": [Queue("io", TOPICS, "io.#")],
}
# A value of each option that is said when a task is sent; a test compares messages with stock Celery's.
CALL_OPTIONS: dict[str, Any] = {
    **TO_TOPICS,
    "countdown": 60,
    "eta": None,
    "expires": 600,
    "expiration": 600,
    "queue": "io",
    "priority": 3,
    "serializer": "json",
    "compression": "gzip",
    "headers": {"tenant": "eu-3"},
    "time_limit": 20,
    "soft_time_limit": 10,
    "shadow": "shown",
    "ignore_result": True,
    "task_id": "4f1d",
    "root_id": "4f1e",
    "parent_id": "4f1f",
    "group_id": "4f20",
    "group_index": 3,
    "reply_to": "4f21",
    "delivery_mode": 1,
    "mandatory": True,
    "immediate": True,
    "retry": False,
    "retries": 2,
    "retry_policy": {"max_retries": 1},
    "timeout": 5,
    "confirm_timeout": 5,
    "add_to_parent": False,
    "link": [],
    "link_error": [],
    "chain": [{"task": "shop.next"}],
    "chord": {"task": "shop.all"},
    "replaced_task_nesting": 1,
    "argsrepr": "(7,)",
    "kwargsrepr": "{}",
    "stamped_headers": ["tenant"],
}
# Parameters of these functions that are no options of a task: what is sent, by what, and what Celery works
# out and hands from one function to the next.
NO_OPTIONS = {
    *("args", "kwargs", "producer", "publisher", "connection", "router", "result_cls", "route_name"),
    *("task_type", "callbacks", "errbacks", "create_sent_event", "now", "timezone", "origin"),
    *("event_dispatcher", "content_type", "content_encoding"),
}


def call_options() -> list[str]:
    """Return what may be said as a task is sent, by the functions through which it goes."""
    app = Celery(set_as_current=False)
    senders = (
        Task.apply_async,
        Celery.send_task,
        app.amqp.as_task_v2,
        app.amqp.send_task_message,
        Producer.publish,
    )
    parameters = [one for sender in senders for one in inspect.signature(sender).parameters.values()]
    return sorted({one.name for one in parameters if one.default is not one.empty} - NO_OPTIONS)
