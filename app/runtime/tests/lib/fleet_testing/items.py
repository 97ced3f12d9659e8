# SPDX-License-Identifier: MIT
"""Items that a client may put into a queue or on a channel: no messages, and nearly messages."""

from __future__ import annotations

import base64
import json
from typing import Any

DEPTHS = (100, 900, 10_000, 1_000_000)


def nested(depth: int) -> str:
    """Return lists in lists, as JSON."""
    return "[" * depth + "]" * depth


def message(body: Any, **parts: Any) -> dict[str, Any]:
    """Return a message as kombu publishes it, with other parts in place of its own.

    Args:
        body: Becomes JSON, unless it is a text already.
        parts: headers, properties, content-type, or another key of a message.
    """
    text = body if isinstance(body, str) else json.dumps(body)
    properties = {
        "delivery_mode": 2,
        "delivery_tag": "0b7a8c1e-2f1c-4a77-8d3a-5f0d5b1f9e10",
        "delivery_info": {"exchange": "celery.pidbox", "routing_key": ""},
        "priority": 0,
        "body_encoding": "base64",
    }
    return {
        "body": base64.b64encode(text.encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"clock": 1, "expires": None},
        "properties": properties,
        **parts,
    }


def no_messages() -> dict[str, bytes]:
    """Return items that are no message, by what they are."""
    values = ["5", "-1e400", "NaN", "null", "true", '""', '"text"', "[]", "{}", '{"body": 5}', "[1, 2, 3]"]
    found = {value: value.encode() for value in values}
    found |= {f"{depth} lists": nested(depth).encode() for depth in DEPTHS}
    found |= {"no JSON": b"{", "no text": b"\xff\xfe\x00", "pickle": b"\x80\x04]\x94."}
    return found


def bad_messages() -> dict[str, bytes]:
    """Return messages whose parts are none, by what is wrong."""
    whole: dict[str, list[Any]] = {
        "headers": [5, "text", [], None, {"clock": "x"}, {"clock": 1e400}, {"clock": 10**400}],
        "properties": [5, "text", [], None, {}, {"delivery_tag": 5, "delivery_info": 5}],
        "content-type": [5, None, "application/x-python-serialize", "no/such"],
        "content-encoding": [5, "no-such-encoding", "binary"],
        "body": [5, None, [], "no base64 \u20ac"],
    }
    found = {
        f"{name} is {part!r:.40}": json.dumps({**message({"method": "ping"}), name: part}).encode()
        for name, parts in whole.items()
        for part in parts
    }
    for depth in DEPTHS:
        found[f"{depth} lists as body"] = json.dumps(message(nested(depth))).encode()
        header = json.dumps(message({"method": "ping"}, headers={"x": "HERE"}))
        found[f"{depth} lists as a header"] = header.replace('"HERE"', nested(depth)).encode()
    return found


def bad_commands() -> dict[str, bytes]:
    """Return messages on the control channel that are no command, by their body."""
    bodies: list[Any] = [
        5, "text", None, [], [1], {}, {"method": 5}, {"method": None}, {"method": []}, {"method": "no-such"},
        {"method": "ping", "arguments": 5}, {"method": "ping", "arguments": [1]},
        {"method": "ping", "arguments": {"no": "such"}}, {"method": "rate_limit", "arguments": {}},
        {"method": "ping", "destination": 5}, {"method": "ping", "destination": {"a": 1}},
        {"method": "ping", "pattern": 5, "matcher": 5}, {"method": "ping", "pattern": "[", "matcher": "pcre"},
        {"method": "ping", "pattern": "x", "matcher": "no-such"},
        {"method": "ping", "reply_to": 5}, {"method": "ping", "reply_to": {}},
        {"method": "ping", "reply_to": {"exchange": 5, "routing_key": []}, "ticket": 5},
        {"method": "ping", "reply_to": {"exchange": "reply.celery.pidbox"}},
        {"method": "ping", "reply_to": {"exchange": "no.such", "routing_key": "x"}, "ticket": "t"},
        {"method": "ping", "no-such": 1},
        {"method": "revoke", "arguments": {"task_id": 5}},
        {"method": "revoke", "arguments": {"task_id": [[], {}]}},
        {"method": "time_limit", "arguments": {"task_name": [], "hard": "x"}},
        {"method": "add_consumer", "arguments": {"queue": {}}},
        {"method": "add_consumer", "arguments": {"queue": None}},
        {"method": "cancel_consumer", "arguments": {"queue": []}},
        {"method": "election", "arguments": {"id": [], "topic": {}}},
        {"method": "hello", "arguments": {"from_node": 5, "revoked": 5}},
        {"method": "query_task", "arguments": {"ids": [[], {}, None]}},
        {"method": "pool_grow", "arguments": {"n": "x"}},
        {"method": "autoscale", "arguments": {"max": "x"}},
    ]  # fmt: skip
    return {json.dumps(body): json.dumps(message(body)).encode() for body in bodies}


def bad_events(node: str = "other@test") -> dict[str, bytes]:
    """Return messages on the channel of events that are none, by what is wrong.

    Args:
        node: Whose events they claim to be. Whoever hears of one that is not known counts it as there.
    """
    good = {"type": "worker-heartbeat", "hostname": node, "pid": 1, "clock": 5, "timestamp": 1.0}
    bodies: list[Any] = [
        5, "text", None, [], {}, [5], [good, 5], {**good, "type": 5}, {**good, "type": None},
        {**good, "clock": "x"}, {**good, "clock": None}, {**good, "hostname": []}, {**good, "hostname": None},
        {**good, "timestamp": "x"}, {**good, "utcoffset": "x"}, {**good, "pid": {}},
    ]  # fmt: skip
    found = {}
    for body in bodies:
        for key in ("worker.heartbeat", "worker.elect", "worker.elect.ack", 5, None):
            item = message(body)
            item["properties"]["delivery_info"] = {"exchange": "celeryev", "routing_key": key}
            found[f"{key}: {json.dumps(body)}"] = json.dumps(item).encode()
    return found
