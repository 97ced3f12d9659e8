# SPDX-License-Identifier: MIT
"""The records of a task in the journal: real nodes, and a datagram socket in place of the journal's."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from celery.app import trace
from fleet_runtime.logging import celery_logging, journal
from fleet_runtime.logging.celery_logging import FleetLogging, JsonLines

from fleet_testing.broker import Broker
from fleet_testing.commands import APPS, PATIENCE, Daemon, Fleet
from fleet_testing.journal import FLAGS, SECRET, Journal, JournalDaemon

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def listening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Journal:
    """Return a journal, which this process knows, too."""
    found = Journal(tmp_path)
    monkeypatch.setattr(journal, "RECORDS", found.address)
    return found


@pytest.fixture
def node(listening: Journal, redis_server: Broker, tmp_path: Path) -> Callable[..., Daemon]:
    """Return a function that starts a node whose output leads to the journal."""
    fleet = Fleet(redis_server, "chatty:app", PYTHONPATH=APPS, TEST_JOURNAL=str(listening.address))

    def start(pool: str, **variables: str) -> Daemon:
        return JournalDaemon(
            [
                "worker",
                "--loglevel=INFO",
                "--logfile=/dev/null",
                "--hostname=p-1@test",
                f"--pool={pool}",
                *FLAGS,
            ],
            {**fleet.component("worker"), "FLEET_NODE": "p-1@test", **variables},
            tmp_path / "stderr",
        )

    return start


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent", "solo"])
def test_the_journal_has_a_tasks_life(
    listening: Journal, node: Callable[..., Daemon], web: Any, pool: str
) -> None:
    """From the node, its child, the app's own loggers and print, with fields that are searched by."""
    with node(pool):
        listening.until("ready.")
        sent = web.send_task("chatty.talk", (SECRET,), queue="default")
        assert sent.get(timeout=PATIENCE) == SECRET
        records = [record for record in listening.until("succeeded") if record.get("TASK_ID") == sent.id]
    messages = [record["MESSAGE"] for record in records]
    name = f"chatty.talk[{sent.id}]"
    for expected in (
        f"Task {name} received",
        f"Task {name} retry: Retry in 0s: LookupError",
        "own logger",
        f"{name}: task logger",
        "printed",
        f"Task {name} succeeded in ",
    ):
        assert any(expected in message for message in messages), (expected, messages)
    for record in records:
        assert record["NODE"] == "p-1@test"
        assert record["SYSLOG_IDENTIFIER"] == "p-1"
        assert record["TASK_NAME"] == "chatty.talk"
        assert record["QUEUE"] == "default"
    own = next(record for record in records if record["MESSAGE"].endswith("own logger"))
    assert own["PRIORITY"] == "4"
    assert own["LOGGER"] == "chatty.orders"
    assert own["RETRIES"] == "1"
    assert own["CODE_FILE"].endswith("chatty.py")
    last = next(record for record in records if "succeeded" in record["MESSAGE"])
    assert 0 <= float(last["RUNTIME"]) < PATIENCE
    assert SECRET not in json.dumps(records)


def test_the_journal_has_tracebacks(listening: Journal, node: Callable[..., Daemon], web: Any) -> None:
    """As one record of several lines, not as many."""
    with node("prefork"):
        listening.until("ready.")
        sent = web.send_task("chatty.fail", (SECRET,), queue="default")
        found = listening.until("raised unexpected")
    record = next(record for record in found if "raised unexpected" in record["MESSAGE"])
    assert record["TASK_ID"] == sent.id
    assert record["PRIORITY"] == "3"
    assert record["MESSAGE"].splitlines()[-1] == "LookupError: out of stock"
    assert SECRET not in json.dumps(found)


def test_arguments_are_logged_where_asked(listening: Journal, node: Callable[..., Daemon], web: Any) -> None:
    """With the result."""
    with node("solo", FLEET_LOG_ARGUMENTS="true"):
        listening.until("ready.")
        web.send_task("chatty.talk", (SECRET,), queue="default")
        messages = [record["MESSAGE"] for record in listening.until("succeeded")]
    assert any("received, args:" in message and SECRET in message for message in messages)
    assert any("succeeded" in message and SECRET in message for message in messages)


def test_a_file_has_a_line_for_each_record(
    listening: Journal, node: Callable[..., Daemon], web: Any, tmp_path: Path
) -> None:
    """Before and after it was renamed, from the node and its child."""
    path = tmp_path / "p-1.jsonl"
    with node("prefork", FLEET_LOG_FILE=str(tmp_path / "{node}.jsonl")):
        listening.until("ready.")
        web.send_task("chatty.fail", (SECRET,), queue="default")
        listening.until("raised unexpected")
        path.rename(tmp_path / "old")
        sent = web.send_task("chatty.talk", (SECRET,), queue="default")
        sent.get(timeout=PATIENCE)
        listening.until("succeeded")
    before, after = ([json.loads(line) for line in (tmp_path / name).open()] for name in ("old", "p-1.jsonl"))
    failed = next(record for record in before if "raised unexpected" in record["message"])
    assert failed["task_name"] == "chatty.fail"
    assert failed["level"] == "ERROR"
    assert failed["traceback"].splitlines()[-1] == "LookupError: out of stock"
    mine = [record for record in after if record.get("task_id") == sent.id]
    assert {record["queue"] for record in mine} == {"default"}
    assert len({record["process"] for record in mine}) == 2
    assert SECRET not in json.dumps(before + after)


def test_a_node_without_its_file_does_not_start(
    listening: Journal, node: Callable[..., Daemon], tmp_path: Path
) -> None:
    """One sentence says which."""
    refused = node("solo", FLEET_LOG_FILE=str(tmp_path / "none" / "log"))
    assert refused.process.wait(PATIENCE) == 1
    assert "celery: FLEET_LOG_FILE: [Errno 2] No such file" in (tmp_path / "stderr").read_text()


@pytest.fixture
def logger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> logging.Logger:
    """Return a logger whose stream, a file, leads to the journal."""
    stream = (tmp_path / "stderr").open("w")
    status = os.fstat(stream.fileno())
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    monkeypatch.setattr(sys, "__stderr__", stream)
    logger = logging.Logger("a")
    app = Celery(set_as_current=False)
    app.fleet_settings = SimpleNamespace(node="io-2@host", log_file="")
    FleetLogging(app).setup_handlers(logger, None, "%(message)s", False)
    return logger


@pytest.mark.parametrize("text", ["x" * 10, "a\nb=c\n", "x" * 3_000_000, "é\udcff", ""])
def test_any_text_arrives(listening: Journal, logger: logging.Logger, tmp_path: Path, text: str) -> None:
    """Of several lines, too large for a datagram, or no text that can be encoded."""
    logger.error("%s", text)
    (record,) = listening.records()
    assert record["MESSAGE"] == text.encode(errors="backslashreplace").decode()
    assert record["PRIORITY"] == "3"
    assert (record["NODE"], record["SYSLOG_IDENTIFIER"]) == ("io-2@host", "io-2")
    assert "TASK_ID" not in record
    assert not (tmp_path / "stderr").read_text()


def test_what_the_journal_does_not_take_is_printed(
    listening: Journal, logger: logging.Logger, tmp_path: Path
) -> None:
    """With its level, as before: it is away, or behind."""
    listening.socket.close()
    logger.error("out of stock")
    listening.address.unlink()
    logger.warning("out of\nstock")
    assert (tmp_path / "stderr").read_text() == "<3>out of stock\n<4>out of\n<4>stock\n"


def test_a_journal_that_is_behind_stops_nobody(
    listening: Journal, logger: logging.Logger, tmp_path: Path
) -> None:
    """Each record is in one place or the other."""
    for number in range(1000):
        logger.info("%d", number)
    arrived = [int(record["MESSAGE"]) for record in listening.records()]
    printed = [int(line.removeprefix("<6>")) for line in (tmp_path / "stderr").read_text().splitlines()]
    assert sorted(arrived + printed) == list(range(1000))
    assert printed


def test_an_app_keeps_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has said what its log is to have of a task."""
    monkeypatch.setattr(trace, "LOG_SUCCESS", "done: %(return_value)s")
    monkeypatch.setattr(trace, "LOG_RECEIVED", "got: %(name)s")
    for with_arguments in (True, False):
        celery_logging.set_task_messages(with_arguments=with_arguments)
    assert (trace.LOG_SUCCESS, trace.LOG_RECEIVED) == ("done: %(return_value)s", "got: %(name)s")


def test_a_line_of_json_is_one_line() -> None:
    """Whatever is in it."""
    record = logging.LogRecord("a", logging.INFO, "a.py", 1, "one\ntwo %s", ("ü",), None)
    line = JsonLines("").format(record)
    assert "\n" not in line
    assert json.loads(line)["message"] == "one\ntwo ü"
