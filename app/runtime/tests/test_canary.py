# SPDX-License-Identifier: MIT
"""No argument and no result is in any log, whatever becomes of a message (log_arguments is false)."""

from __future__ import annotations

import base64
import json
import logging
import pickle
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from fleet_runtime.broker import keys
from fleet_runtime.logging import redact
from kombu.utils.uuid import uuid

from fleet_testing.commands import APPS, FLAGS, PATIENCE, Fleet, wait_until
from fleet_testing.dead_letters import caught, letters, put

if TYPE_CHECKING:
    from pathlib import Path

    from fleet_testing.broker import Broker

CANARY = "CANARY4111"
ARGUMENTS = ([CANARY], {"key": CANARY})
DATE = {"__type__": "datetime", "__value__": CANARY}  # which kombu reads as a time, and quotes as it fails
# Reasons that need a process of a task's own, which is killed.
OF_PROCESSES = {"timeout", "poison"}
# What this sends and what of it is a letter at the end.
LETTERS = {
    "failed", "rejected", "timeout", "poison", "unregistered", "undecodable", "invalid", "malformed"
}  # fmt: skip


def in_base64(data: bytes) -> str:
    """Return the body of a message as kombu puts it into Redis."""
    return base64.b64encode(data).decode()


def strange(web: Any, broker: Broker) -> list[dict[str, Any]]:
    """Return messages that no task of the app gets to see, with the canary in each."""
    found = []
    for headers, parts in (
        ({"task": "canary.unknown"}, {}),
        ({}, {"body": in_base64(f'["{CANARY}", '.encode())}),
        ({}, {"body": in_base64(f'["{CANARY}\xff"'.encode("latin-1"))}),
        ({}, {"body": in_base64(json.dumps([[DATE], {}, {}]).encode())}),
        ({}, {"content-type": "application/x-python-serialize", "body": in_base64(pickle.dumps(ARGUMENTS))}),
        ({}, {"content-type": "text/strange", "body": in_base64(CANARY.encode())}),
        ({}, {"content-type": "application/x-none", "body": in_base64(CANARY.encode())}),
        ({}, {"body": in_base64(json.dumps({"args": CANARY}).encode())}),
        ({}, {"body": in_base64(json.dumps([CANARY, CANARY, CANARY]).encode())}),
        ({"eta": "0001-01-01T00:00:00+00:00"}, {}),
        ({"eta": "9999-12-31T23:59:59+00:00"}, {}),
        ({"timelimit": "soon"}, {}),
        ({"expires": datetime.now(UTC).isoformat()}, {}),
    ):  # fmt: skip
        message = caught(web, broker, "canary.keep", *ARGUMENTS[0], kwargs={})
        message["headers"].update(headers, id=uuid())
        found.append({**message, **parts})
    nameless = caught(web, broker, "canary.keep", *ARGUMENTS[0])
    found.append({**nameless, "headers": {"id": uuid(), "argsrepr": CANARY}})
    old = caught(web, broker, "canary.keep")  # of protocol 1, for a task that is not there
    body = {"id": uuid(), "task": "canary.unknown", "args": [CANARY], "kwargs": {"key": CANARY}}
    found.append({**old, "headers": {"id": body["id"]}, "body": in_base64(json.dumps(body).encode())})
    return found


# Items that are no message.
MALFORMED = (CANARY, f'{{"body": "{CANARY}"}}', f'[{{"__type__": "date", "__value__": "{CANARY}"}}]')


def missing(broker: Broker, level: str, pool: str) -> set[str]:
    """Return the reasons of which there is no letter yet."""
    expected = LETTERS if pool == "prefork" else LETTERS - OF_PROCESSES
    expected = expected if level == "full" else expected - {"malformed"}
    return expected - {one["reason"] for one in letters(broker).values()}


@pytest.mark.parametrize(
    ("log_level", "level", "pool"),
    [
        ("DEBUG", "full", "prefork"),  # which logs all that INFO does
        *(
            pytest.param(*all_three, marks=pytest.mark.long)
            for all_three in (
                ("INFO", "full", "prefork"),
                *(("DEBUG", "full", pool) for pool in ("threads", "gevent", "solo")),
                *(("DEBUG", "standard", pool) for pool in ("prefork", "threads", "gevent", "solo")),
            )
        ),
    ],
)
def test_no_log_has_an_argument(
    broker: Broker, web: Any, tmp_path: Path, log_level: str, level: str, pool: str
) -> None:
    """The output of a node, its lines of JSON, and the records that a handler of the app gets have none."""
    everything, lines = tmp_path / "everything", tmp_path / "lines"
    fleet = Fleet(broker, "canary:app", PYTHONPATH=APPS, EVERYTHING=str(everything))
    environment = {"FLEET_LOG_FILE": str(lines), "FLEET_LEVEL": level, "FLEET_MAX_CRASHES": "1"}
    admin, sent = broker.client("admin"), []
    messages = strange(web, broker)
    revoked = web.send_task("canary.keep", ARGUMENTS[0], queue="default", countdown=10)
    words = ("--queues=default", f"--pool={pool}", *FLAGS, f"--loglevel={log_level}")
    with fleet.worker("one", *words, **environment) as node:
        node.wait_for("takes tasks now")
        node.wait_for(revoked.id)
        fleet.run("ops", "control", "revoke", revoked.id)
        for message in messages:
            put(broker, "default", message)
        for item in MALFORMED if level == "full" else ():  # at the level standard, such an item ends the node
            admin.lpush("default", item)
        names = ("keep", "fail", "again", "reject", *(("linger", "die") if pool == "prefork" else ()))
        sent += [web.send_task(f"canary.{name}", ARGUMENTS[0], queue="default") for name in names]
        sent.append(web.send_task("canary.keep", *ARGUMENTS, queue="default"))  # which takes no such argument
        past = datetime.now(UTC) - timedelta(seconds=1)
        sent.append(web.send_task("canary.keep", ARGUMENTS[0], queue="default", expires=past))
        assert sent[0].get(timeout=PATIENCE) == CANARY
        try:
            wait_until(lambda: not missing(broker, level, pool))
        except AssertionError:
            none = missing(broker, level, pool)
            pytest.fail("\n".join([f"There is no letter: {none}", *node.lines("")[-60:]]))
        wait_until(lambda: revoked.state == "REVOKED")
        web.send_task("canary.end", queue="default").get(timeout=PATIENCE)
    shown = {"printed": node.printed(), "JSON": lines.read_text(), "records": everything.read_text()}
    for text in no_canary(shown):
        for expected in ("Received unregistered task", "raised unexpected", "Discarding revoked task"):
            assert expected in text, expected


def no_canary(shown: dict[str, str]) -> list[str]:
    """Return texts, in none of which is the canary."""
    for name, text in shown.items():
        where = [line for line in text.splitlines() if CANARY in line.upper()]
        assert not where, (name, where)
    return list(shown.values())


@pytest.mark.parametrize("scheduler", ["redbeat", pytest.param("persistent", marks=pytest.mark.long)])
def test_no_log_of_beats_has_an_argument(broker: Broker, tmp_path: Path, scheduler: str) -> None:
    """For an entry that is sent, and for one that cannot be sent."""
    everything, lines = tmp_path / "everything", tmp_path / "lines"
    files = {"EVERYTHING": str(everything), "FLEET_LOG_FILE": str(lines)}
    fleet = Fleet(broker, "canary:app", PYTHONPATH=APPS, SCHEDULED=CANARY, **files)
    words = [f"--schedule={tmp_path / 'schedule'}", "--scheduler=celery.beat.PersistentScheduler"]
    with fleet.beat("--loglevel=DEBUG", *(words if scheduler == "persistent" else ())) as beat:
        beat.wait_for("canary.keep sent", 2)
        beat.wait_for("Couldn't apply scheduled task")
    for text in no_canary(
        {"printed": beat.printed(), "JSON": lines.read_text(), "records": everything.read_text()}
    ):
        assert "Couldn't apply scheduled task" in text


def test_what_gives_back_prints_no_argument(broker: Broker, web: Any) -> None:
    """Of what a dead node held, be it a message or none."""
    name, admin = "gone@test", broker.client("admin")
    for number, message in enumerate([*strange(web, broker), caught(web, broker, "canary.keep", CANARY)]):
        admin.hset(keys.unacked(name), str(number), json.dumps([message, "", "default"]))
    for tag, item in {"cut": f'[{{"body": "{CANARY}"', "text": json.dumps(CANARY)}.items():
        admin.hset(keys.unacked(name), tag, item)
    fleet = Fleet(broker, "canary:app", PYTHONPATH=APPS)
    done = subprocess.run(
        [sys.executable, "-m", "fleet_runtime.recovery.requeue"],
        env={**fleet.component("worker"), "FLEET_NODE": name},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    (printed,) = no_canary({"printed": done.stdout + done.stderr})
    assert f"Requeued what {name} held" in printed


def test_what_is_hidden_is_shown_where_asked() -> None:
    """And what is neither an argument nor a result is never hidden."""
    record = logging.LogRecord(
        "celery.app.trace", 20, "a.py", 1, "%(name)s %(args)s", ({"name": "a", "args": "[1]"},), None
    )
    redact.WithoutArguments().filter(record)
    assert record.getMessage() == f"a {redact.HIDDEN}"
    redact.hide_arguments()
    try:
        assert redact.described(ValueError("1")) == "ValueError"
        redact.show_arguments()
        assert redact.described(ValueError("1")) == "ValueError('1')"
    finally:
        redact.show_arguments()
