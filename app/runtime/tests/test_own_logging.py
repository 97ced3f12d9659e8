# SPDX-License-Identifier: MIT
"""TASK_ID and lines of JSON where an app sets up logging itself."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from fleet_testing.commands import APPS, PATIENCE, Fleet
from fleet_testing.journal import FLAGS, SECRET, Journal, JournalDaemon

if TYPE_CHECKING:
    from pathlib import Path

    from fleet_testing.broker import Broker

# Besides prefork, whose children write for themselves, one pool whose tasks are in the node's own process.
WAYS = [
    ("dict", "prefork"),
    ("queue", "threads"),
    *(
        pytest.param(own, pool, marks=pytest.mark.long)
        for own, pool in (("basic", "prefork"), ("file", "threads"), ("late", "prefork"))
    ),
]


@pytest.mark.parametrize(("own", "pool"), WAYS)
def test_an_app_that_sets_up_logging_itself(
    redis_server: Broker, web: Any, tmp_path: Path, own: str, pool: str
) -> None:
    """Each record is in the journal once, with the app's text, and in the file; with its task's fields."""
    listening = Journal(tmp_path)
    fleet = Fleet(redis_server, "own:app", PYTHONPATH=APPS, TEST_JOURNAL=str(listening.address))
    environment = {
        **fleet.component("worker"),
        "FLEET_NODE": "p-1@test",
        "FLEET_LOG_FILE": str(tmp_path / "{node}.jsonl"),
        "OWN": own,
        "OWN_FILE": str(tmp_path / "own"),
    }
    words = ["worker", "--loglevel=INFO", "--logfile=/dev/null", f"--pool={pool}", *FLAGS]
    with JournalDaemon(words, environment, tmp_path / "stderr"):
        listening.until("ready.")
        sent = web.send_task("own.say", (SECRET,), queue="default")
        assert sent.get(timeout=PATIENCE) == SECRET
        records = [record for record in listening.until("succeeded") if record.get("TASK_ID") == sent.id]
    lines = [json.loads(line) for line in (tmp_path / "p-1.jsonl").read_text().splitlines()]
    mine = [line["message"] for line in lines if line.get("task_id") == sent.id]
    for expected in (f"own.say[{sent.id}] received", "said by the task", f"own.say[{sent.id}] succeeded"):
        found = [record["MESSAGE"] for record in records if expected in record["MESSAGE"]]
        written = [message for message in mine if expected in message]
        # Set up late, it has handlers besides Celery's at the root, and says it twice without the fleet, too.
        assert {len(found), len(written)} <= ({1, 2} if own == "late" else {1}), (found, written)
        assert own in {"file", "late"} or found[0].startswith("own "), found
    assert {record["QUEUE"] for record in records} == {"default"}
    assert SECRET not in json.dumps([*records, *lines])
