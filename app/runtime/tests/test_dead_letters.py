# SPDX-License-Identifier: MIT
"""A message that fails for good is kept, once and whole, and can run again."""

from __future__ import annotations

import base64
import json
import time
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from celery import chord
from celery.exceptions import ChordError, InvalidTaskError
from fleet_runtime.broker.unacked import UnackedRef
from fleet_runtime.dead_letters import store
from fleet_runtime.dead_letters.model import DeadLetter, End, Filter, Reason
from fleet_runtime.worker.transports import NodeChannel
from kombu import Connection

from fleet_testing.broker import Broker
from fleet_testing.commands import FLAGS, PATIENCE, Daemon, Fleet, together, wait_until
from fleet_testing.dead_letters import (
    POOLS,
    QUEUES,
    UNCONSUMED,
    caught,
    failing,
    letter_of,
    letters,
    places,
    put,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


pytestmark = pytest.mark.server
RETENTION = store.Retention(limit=3, age=14 * 86400)


@pytest.fixture(scope="module")
def fleet(redis_server: Broker) -> Fleet:
    """Return the app, with a limit that a test can reach, and with expired tasks kept."""
    return failing(redis_server, FLEET_DEAD_LETTER_LIMIT="20", FLEET_DEAD_LETTER_EXPIRED="true")


@pytest.fixture(scope="module")
def nodes(fleet: Fleet) -> Iterator[dict[str, Daemon]]:
    """Yield a node for each queue, each with another type of pool."""
    started = {
        queue: fleet.worker(f"dead-{pool}", f"--queues={queue}", f"--pool={pool}", *FLAGS)
        for queue, pool in POOLS.items()
    }
    with together(started) as nodes:
        yield nodes


@pytest.fixture(autouse=True)
def no_letters(redis_server: Broker) -> None:
    """Let a test begin without letters."""
    redis_server.client("admin").delete("fleet:dead", "fleet:dead:letters", *POOLS, UNCONSUMED)


@pytest.fixture
def worker(broker: Broker) -> Any:
    """Return a client of Redis with the rights of a node."""
    return broker.client("worker")


@QUEUES
@pytest.mark.usefixtures("nodes")
@pytest.mark.parametrize(
    ("task", "reason", "error"),
    [
        ("fail", "failed", "ValueError: bröken"),
        ("fail_quietly", "failed", "ValueError: broken"),
        ("fail_early", "failed", "ValueError: broken"),
        ("fail_by_own_request", "failed", "ValueError: broken"),
        ("reject", "rejected", "Reject: ('unwanted', False)"),
        ("nobody_knows", "unregistered", "There is no task 'failing.nobody_knows' in this app."),
    ],
)
def test_what_fails_leaves_one_letter(
    broker: Broker, web: Any, queue: str, task: str, reason: str, error: str
) -> None:
    """With all that is known, and the message as it was."""
    began = time.time()
    sent = web.send_task(f"failing.{task}", queue=queue, headers={"tenant": "a\"b'c"})
    letter = letter_of(broker, sent.id)
    message, exchange, routing_key = letter.pop("record")
    assert message["headers"]["task"] == f"failing.{task}"
    assert message["headers"]["tenant"] == "a\"b'c"
    assert json.loads(base64.b64decode(message["body"]))[0] == []
    assert (exchange, routing_key) == ("", queue)
    assert ("broken" in letter["traceback"] or "bröken" in letter["traceback"]) == (reason == "failed")
    assert {name: letter[name] for name in ("id", "task", "queue", "reason", "error", "node")} == {
        "id": sent.id,
        "task": f"failing.{task}",
        "queue": queue,
        "reason": reason,
        "error": error,
        "node": f"dead-{POOLS[queue]}@test",
    }
    assert (letter["deliveries"], letter["retries"]) == (1, 0)
    assert began - 1 < letter["died"] < time.time() + 1
    assert task == "fail_early" or began - 1 < letter["received"] <= letter["died"] + 1


@QUEUES
@pytest.mark.usefixtures("nodes")
def test_what_is_retried_leaves_a_letter_in_the_end(
    broker: Broker, web: Any, queue: str, tmp_path: Path
) -> None:
    """One, when no retry is left."""
    sent = web.send_task("failing.fail_again", (str(tmp_path / "runs"),), queue=queue)
    letter = letter_of(broker, sent.id)
    assert (letter["reason"], letter["retries"]) == ("failed", 2)
    assert (tmp_path / "runs").read_text() == "run\n" * 3


@pytest.mark.usefixtures("nodes")
def test_what_will_be_retried_leaves_none(broker: Broker, web: Any, tmp_path: Path) -> None:
    """A retry that succeeds leaves none, either; an expired or revoked task only if the settings say so."""
    sent = web.send_task("failing.fail_until", (str(tmp_path / "mark"),), queue="default")
    letter = letter_of(broker, sent.id)
    assert letter["retries"] == 1
    broker.client("admin").delete("fleet:dead", "fleet:dead:letters")
    (tmp_path / "mark").touch()
    assert web.send_task("failing.fail_until", (str(tmp_path / "mark"),), queue="default").get(PATIENCE) == 0
    assert letters(broker) == {}


@pytest.mark.usefixtures("nodes")
def test_what_exceeds_its_time_limit_leaves_one_letter(broker: Broker, web: Any) -> None:
    """Celery tells a request twice of it, and in a process only."""
    sent = web.send_task("failing.hang", queue="default")
    letter = letter_of(broker, sent.id)
    assert (letter["reason"], letter["error"]) == ("timeout", "TimeLimitExceeded: TimeLimitExceeded(1,)")
    died = letter["died"]
    time.sleep(1)
    assert letters(broker)[sent.id]["died"] == died


@QUEUES
@pytest.mark.usefixtures("nodes")
def test_what_has_expired_leaves_a_letter_if_asked(broker: Broker, web: Any, queue: str) -> None:
    """Here it is asked; a probe is worth none."""
    web.send_task("fleet.probe", queue=queue, expires=-1)
    sent = web.send_task("failing.fail", queue=queue, expires=datetime.now(UTC) - timedelta(1))
    assert letter_of(broker, sent.id)["reason"] == "expired"


def test_what_has_expired_leaves_none_by_default(broker: Broker, web: Any) -> None:
    """A revoked task leaves none, either."""
    with failing(broker).worker("plain", "--queues=email", "--pool=solo", *FLAGS) as node:
        web.send_task("failing.fail", queue="email", expires=-1)
        node.wait_for("Discarding revoked task")
        wait_until(lambda: not places(broker, "failing.fail"))
    assert letters(broker) == {}


@QUEUES
@pytest.mark.usefixtures("nodes")
def test_a_body_that_cannot_be_decoded_leaves_a_letter(broker: Broker, web: Any, queue: str) -> None:
    """A serializer that is not accepted, a body that is not what it says, or not compressed so."""
    parts = {"content-type": "application/x-python-serialize", "body": "bm8=", "compression": "gzip"}
    for name, value in parts.items():
        message = caught(web, broker, "failing.fail")
        place = message["headers"] if name == "compression" else message
        place[name] = value
        sent = put(broker, queue, message)
        letter = letter_of(broker, sent)
        assert letter["reason"] == "undecodable", name
        assert letter["record"][0] == message
        broker.client("admin").delete("fleet:dead", "fleet:dead:letters")


@QUEUES
@pytest.mark.usefixtures("nodes")
@pytest.mark.parametrize(
    ("part", "value"), [("content-type", "application/x-python-serialize"), ("body", "bm8="), ("headers", {})]
)
def test_whoever_waits_for_a_message_that_cannot_be_read_is_told(
    broker: Broker, web: Any, queue: str, part: str, value: Any
) -> None:
    """The result is a failure with the reason, unless the task ignores its result, or has no id."""
    for wanted in (False, True):
        message = caught(web, broker, "failing.fail", ignore_result=not wanted)
        name = message["headers"]["id"]
        message[part] = message["headers"] | {"task": 5} if part == "headers" else value
        letter_of(broker, put(broker, queue, message))
        result = web.AsyncResult(name)
        if wanted:
            with pytest.raises(InvalidTaskError, match="The node could not read the message"):
                result.get(timeout=PATIENCE)
        else:
            assert broker.client("admin").get(f"celery-task-meta-{name}") is None
        broker.client("admin").delete("fleet:dead", "fleet:dead:letters")


@QUEUES
def test_what_is_no_message_stops_nobody(
    broker: Broker, web: Any, nodes: dict[str, Daemon], queue: str, tmp_path: Path
) -> None:
    """Each leaves a letter, and a task behind it runs."""
    good = caught(web, broker, "failing.fail")
    items: list[bytes | str] = [
        b"not json",
        b"\xff\xfe\x00",
        b"[]",
        b"{}",
        b"null",
        b"[" * 100_000,
        b'{"__type__": "datetime", "__value__": 7}',
        json.dumps({**good, "properties": {}}),
        json.dumps({**good, "properties": {**good["properties"], "delivery_tag": [1]}}),
        json.dumps({**good, "properties": {**good["properties"], "delivery_info": {}}}),
        json.dumps({**good, "body": 7}),
        json.dumps({**good, "headers": ["task"]}),
    ]
    for item in items:
        broker.client("admin").lpush(queue, item)
    assert web.send_task("failing.note", (str(tmp_path / "runs"),), queue=queue).get(PATIENCE) == 1
    found = letters(broker).values()
    assert {letter["reason"] for letter in found} == {"malformed"}
    assert {letter.get("raw") for letter in found} == {
        None,
        *(item if isinstance(item, str) else item.decode() for item in items if item != b"\xff\xfe\x00"),
    }
    assert base64.b64decode(*[one["raw_base64"] for one in found if "raw_base64" in one]) == b"\xff\xfe\x00"
    assert nodes[queue].process.poll() is None


@QUEUES
def test_a_message_of_no_task_stops_nobody(
    broker: Broker, web: Any, nodes: dict[str, Daemon], queue: str, tmp_path: Path
) -> None:
    """With headers or a body of the wrong kind: each leaves a letter, and a task behind it runs."""
    kinds: list[dict[str, Any]] = [
        {"headers": {"task": 7}},
        {"headers": {"task": ["failing.fail"]}},
        {"headers": {"id": None}},
        {"headers": {"id": 7}},
        {"headers": {"timelimit": [1]}},
        {"headers": {"timelimit": ["soon", None]}},
        {"headers": {"stamped_headers": 1}},
        {"headers": {"eta": "soon"}},
        {"headers": {"retries": "often"}},
        {"body": 7},
        {"body": [1]},
        {"body": {"task": "failing.fail"}},
        {"body": [[], {}, 7]},
    ]
    for kind in kinds:
        message = caught(web, broker, "failing.fail")
        message["headers"].update(kind.get("headers", {}))
        if "body" in kind:
            message["body"] = base64.b64encode(json.dumps(kind["body"]).encode()).decode()
        put(broker, queue, message)
    strange = caught(web, broker, "failing.fail")
    put(broker, queue, {**strange, "headers": {"id": "strange"}})
    assert web.send_task("failing.note", (str(tmp_path / "runs"),), queue=queue).get(PATIENCE) == 1
    wait_until(lambda: not places(broker, "failing.fail"))
    found = letters(broker)
    assert len(found) == len(kinds) + 1
    assert {letter["reason"] for letter in found.values()} == {"invalid"}
    assert found["strange"]["error"] == "It does not name a task."
    assert nodes[queue].process.poll() is None


@QUEUES
@pytest.mark.usefixtures("nodes")
def test_errbacks_and_chords_are_as_without(broker: Broker, web: Any, queue: str, tmp_path: Path) -> None:
    """An errback is called, and the end of a chord fails."""
    path = tmp_path / "reported"
    errback = web.signature("failing.report", (str(path),), queue=queue)
    sent = web.send_task("failing.fail", queue=queue, link_error=errback)
    with pytest.raises(ValueError, match="bröken"):
        sent.get(PATIENCE)
    wait_until(path.exists)
    assert path.read_text() == f"{sent.id} ValueError: bröken"
    letter_of(broker, sent.id)
    header = [web.signature(name, queue=queue) for name in ("failing.fail", "failing.fail")]
    body = web.signature("failing.note", (str(tmp_path / "body"),), immutable=True, queue=queue)
    error = chord(header, app=web)(body).get(PATIENCE, propagate=False)
    assert isinstance(error, ChordError)
    assert "bröken" in str(error)
    wait_until(lambda: len(letters(broker)) == 3)


def test_a_letter_that_cannot_be_written_waits(broker: Broker, web: Any) -> None:
    """A Redis that is full refuses it: the node keeps the message, takes others, and tries again."""
    admin = broker.client("admin")
    before = set(letters(broker))
    with failing(broker, FLEET_LEASE="6").worker("full", "--queues=email", "--pool=solo", *FLAGS) as node:
        refused = []
        for _ in range(3):  # more than it may reserve
            sent = web.send_task("failing.fail_quietly", queue="email", countdown=2)
            refused.append(sent.id)
            node.wait_for(f"{sent.id}] received")
            admin.config_set("maxmemory", "1")
            try:
                node.wait_for(f"{sent.id}] failed for good, and cannot be moved")
                assert len(places(broker, sent.id)) == 1
            finally:
                admin.config_set("maxmemory", "0")
        wait_until(lambda: set(letters(broker)) - before == set(refused))
        assert not any(places(broker, one) for one in refused)
        assert len(node.lines("] failed for good, and cannot be moved")) == 3, "it ran again"


@QUEUES
@pytest.mark.usefixtures("nodes")
def test_what_is_put_back_runs_again(
    broker: Broker, web: Any, fleet: Fleet, queue: str, tmp_path: Path
) -> None:
    """Under its id, and as if for the first time."""
    mark = tmp_path / "mark"
    sent = web.send_task("failing.fail_until", (str(mark),), queue=queue, priority=9)
    assert letter_of(broker, sent.id)["retries"] == 1
    mark.touch()
    before = state(broker)
    tried = fleet.run("ops", "dead-letter", "requeue", "--id", sent.id, "--dry-run", "--json")
    assert json.loads(tried.stdout) == {"count": 1, "ids": [sent.id], "dry_run": True}
    assert state(broker) == before
    done = fleet.run("ops", "dead-letter", "requeue", "--id", sent.id)
    assert done.stdout == f"{sent.id} failing.fail_until\n1 dead letters requeued.\n", done.stderr
    wait_until(lambda: web.AsyncResult(sent.id).state == "SUCCESS")
    assert web.AsyncResult(sent.id).get(PATIENCE) == 0
    assert letters(broker) == {}
    again = fleet.run("ops", "dead-letter", "requeue", "--id", sent.id)
    assert again.stdout == "0 dead letters requeued.\n"


def test_letters_are_bounded_by_count(worker: Any, broker: Broker) -> None:
    """The oldest go first."""
    for number in range(5):
        assert store.move_item(worker, f"item {number}", End(Reason.MALFORMED), node="n", retention=RETENTION)
    assert sorted(letter["raw"] for letter in letters(broker).values()) == ["item 2", "item 3", "item 4"]


def test_malformed_items_are_bounded_by_the_retention_of_the_node(worker: Any, broker: Broker) -> None:
    """Each channel of a node's app has it, also one that a task has opened."""
    channel: Any = SimpleNamespace(
        node="n", dead_letter_retention=[2, 86400], conn_or_acquire=lambda: nullcontext(worker)
    )
    for number in range(4):
        NodeChannel.on_malformed(channel, b"item %d" % number, "default", None, ValueError("no JSON"))
    found = sorted((letter["raw"], letter["node"]) for letter in letters(broker).values())
    assert found == [("item 2", "n"), ("item 3", "n")]


def test_each_channel_of_a_nodes_app_has_its_options(broker: Broker) -> None:
    """Also one that a task has opened."""
    options = {"node": "n", "dead_letter_retention": [2, 86400]}
    transport = "fleet_runtime.worker.transports:NodeTransport"
    url = broker.url("admin")
    with Connection(url, transport=transport, transport_options=options) as connection:
        channel = connection.channel()
        assert (channel.node, channel.dead_letter_retention) == ("n", [2, 86400])


def test_letters_are_bounded_by_age(worker: Any, broker: Broker) -> None:
    """Those that are too old go with the next one, and all of them if there is none."""
    admin = broker.client("admin")
    admin.zadd("fleet:dead", {"old": time.time() - 15 * 86400, "new": time.time() - 13 * 86400})
    admin.hset("fleet:dead:letters", mapping={"old": "{}", "new": "{}"})
    assert store.move_item(worker, "item", End(Reason.MALFORMED), node="n", retention=RETENTION)
    assert len(letters(broker)) == 2
    assert "old" not in letters(broker)
    for key in ("fleet:dead", "fleet:dead:letters"):
        assert 14 * 86400 - 60 < admin.ttl(key) <= 14 * 86400


@pytest.mark.usefixtures("worker")
def test_what_was_given_back_meanwhile_is_not_dead(web: Any, broker: Broker) -> None:
    """Then it is in its queue; a dead letter would double it."""
    web.send_task("failing.fail", queue=UNCONSUMED)
    web.conf.broker_transport_options["ack_emulation"] = True
    with web.connection_for_read(broker.url("admin")) as connection:
        channel = connection.default_channel
        message = channel.basic_get(UNCONSUMED)
        assert channel.unacked_key in places(broker, message.delivery_tag)
        broker.client("admin").delete(channel.unacked_key, channel.unacked_index_key)
        assert not store.move_message(message, End(Reason.FAILED), node="n", retention=RETENTION)
        assert letters(broker) == {}
        assert store.move_message(message, End(Reason.FAILED), node="n", retention=RETENTION, held=False)
        channel.qos._delivered.clear()  # or kombu gives it back as it closes
    assert list(letters(broker)) == [message.headers["id"]]


def test_a_record_that_is_no_message_is_moved(worker: Any, broker: Broker) -> None:
    """From what a node held, once."""
    held = UnackedRef("unacked:dead", "unacked_index:dead", "tag-1")
    admin = broker.client("admin")
    admin.hset("unacked:dead", "tag-1", "garbage")
    admin.zadd("unacked_index:dead", {"tag-1": 1700000000})
    end = End(Reason.UNDECODABLE, "why")
    assert store.move_item(worker, "garbage", end, node="n", retention=RETENTION, held=held)
    assert not store.move_item(worker, "garbage", end, node="n", retention=RETENTION, held=held)
    assert not admin.exists("unacked:dead", "unacked_index:dead")
    (letter,) = letters(broker).values()
    assert (letter["raw"], letter["received"], letter["record"]) == ("garbage", 1700000000, None)


def test_what_goes_back_is_as_new() -> None:
    """Without what happened to it, and without an expiry that has passed."""
    now = datetime(2026, 1, 2, tzinfo=UTC)
    headers = {"retries": 3, "redelivered": True, "fleet_recovered": True, "expires": "2026-01-01T00:00:00"}
    delivery = {"exchange": "e", "routing_key": "q", "redelivered": True}
    message = {"body": "", "headers": headers, "properties": {"delivery_tag": "t", "delivery_info": delivery}}
    letter = DeadLetter(id="1", reason="failed", died=0, queue="q", record=[message, "e", "q"])
    revived = json.loads(letter.revived(now))
    assert revived["headers"] == {"retries": 0, "expires": None}
    assert revived["properties"]["delivery_info"] == {"exchange": "e", "routing_key": "q"}
    headers["expires"] = "2026-01-03T00:00:00+00:00"
    assert json.loads(letter.revived(now))["headers"]["expires"] == headers["expires"]


@pytest.mark.parametrize(
    ("wanted", "matches"),
    [
        (Filter(), True),
        (Filter(ids=("2", "1")), True),
        (Filter(ids=("2",)), False),
        (Filter(tasks=("mail.*", "shop.*")), True),
        (Filter(tasks=("shop",)), False),
        (Filter(queues=("q",), reasons=("failed",), since=100), True),
        (Filter(queues=("p",), reasons=("failed",)), False),
        (Filter(queues=("q",), reasons=("lost",)), False),
        (Filter(queues=("q",), since=101), False),
    ],
)
def test_filter_selects_dead_letters(wanted: Filter, matches: bool) -> None:
    """Each option of the filter must hold."""
    letter = DeadLetter(id="1", reason="failed", died=100, queue="q", task="shop.pay")
    assert wanted.matches(letter) is matches


def test_letters_are_listed_and_shown(broker: Broker, fleet: Fleet) -> None:
    """As a table and as JSON, the newest first; a missing one is reported."""
    write_letters(broker)
    table = fleet.run("ops", "dead-letter", "list").stdout.splitlines()
    assert [line.split()[-1] for line in table] == ["ERROR", "no", "Error", "letters."]
    assert table[0].split() == ["DIED", "(UTC)", "REASON", "QUEUE", "TASK", "ID", "ERROR"]
    row = "2023-11-14 22:13:21 failed heavy shop.pay id-1 ValueError: Error"
    assert " ".join(table[2].split()) == row
    assert table[-1] == "2 of 2 dead letters."
    found = fleet.run("ops", "dead-letter", "list", "--json", "--task", "shop.*", "--reason", "failed")
    assert [(one["id"], "record" in one) for one in json.loads(found.stdout)] == [("id-1", False)]
    assert fleet.run("ops", "dead-letter", "list", "--since", "1d").stdout == "0 of 2 dead letters.\n"
    page = fleet.run("ops", "dead-letter", "show", "id-1", "id-2", "id-3")
    assert page.returncode == 1
    assert page.stderr == "Error: There is no dead letter id-3.\n"
    for text in ("Traceback of it", 'body:       [["secret"], {}, {}]', "item:       no message", "shop.pay"):
        assert text in page.stdout
    whole = json.loads(fleet.run("ops", "dead-letter", "show", "--json", "id-1").stdout)
    assert whole[0]["record"][0]["headers"] == {"id": "id-1", "task": "shop.pay", "retries": 2}


def test_purge_without_a_selection_is_refused(broker: Broker, fleet: Fleet) -> None:
    """A selection is required, and a confirmation; a dry run does nothing."""
    write_letters(broker)
    before = state(broker)
    for words in (["purge", "--yes"], ["requeue"], ["purge", "--all", "--id", "id-1", "--yes"]):
        result = fleet.run("ops", "dead-letter", *words)
        assert (result.returncode, result.stderr.startswith("Error: Select some: --id, ")) == (1, True), words
    assert fleet.run("ops", "dead-letter", "purge", "--all").returncode == 1  # nobody answers the question
    dry = fleet.run("ops", "dead-letter", "purge", "--all", "--dry-run")
    assert dry.stdout.splitlines() == ["id-1 shop.pay", "id-2 -", "2 dead letters would be deleted."]
    assert state(broker) == before
    done = fleet.run("ops", "dead-letter", "purge", "--reason", "failed", "--yes", "--json")
    assert json.loads(done.stdout) == {"count": 1, "ids": ["id-1"], "dry_run": False}
    assert list(letters(broker)) == ["id-2"]


def test_what_is_no_message_does_not_go_back(broker: Broker, fleet: Fleet) -> None:
    """The rest does."""
    write_letters(broker)
    result = fleet.run("ops", "dead-letter", "requeue", "--all")
    assert result.returncode == 1
    assert result.stdout == "id-1 shop.pay\n1 dead letters requeued.\n"
    assert result.stderr == "Error: id-2 cannot be requeued: it is not a message.\n"
    assert list(letters(broker)) == ["id-2"]
    (item,) = broker.client("admin").lrange(UNCONSUMED, 0, -1)
    assert json.loads(item)["headers"] == {"id": "id-1", "task": "shop.pay", "retries": 0}


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["list", "--reason", "bored"], "Error: Unknown reason: bored. The reasons are failed, timeout, "),
        (["list", "--since", "ever"], "'ever' is neither an age such as 30m or 7d nor a time"),
        (["list"], "Error: The dead letters cannot be reached: "),
    ],
)
def test_what_cannot_be_is_told(tmp_path: Path, words: list[str], error: str) -> None:
    """In a sentence; a broker that is away, too."""
    broker = Broker(tmp_path)
    broker.stop()
    result = failing(broker).run("ops", "dead-letter", *words)
    assert result.returncode != 0
    assert error in result.stderr
    assert "Traceback" not in result.stderr


def write_letters(broker: Broker) -> None:
    """Write one of a task and one of no message."""
    body = base64.b64encode(b'[["secret"], {}, {}]').decode()
    message = {
        "body": body,
        "headers": {"id": "id-1", "task": "shop.pay", "retries": 2},
        "properties": {"delivery_tag": "tag-1", "body_encoding": "base64", "priority": 0},
    }
    task = {"id": "id-1", "reason": "failed", "died": 1700000001, "task": "shop.pay", "queue": UNCONSUMED}
    task |= {"error": "ValueError: Error", "traceback": "Traceback of it"}
    task |= {"record": [message, "", UNCONSUMED]}
    other = {"id": "id-2", "reason": "malformed", "died": 1700000002, "raw": "no message", "error": "no"}
    client = broker.client("admin")
    for letter in (task, other):
        client.hset("fleet:dead:letters", str(letter["id"]), json.dumps(letter))
        client.zadd("fleet:dead", {str(letter["id"]): letter["died"]})


def state(broker: Broker) -> dict[str, Any]:
    """Return all that there is about queues and letters."""
    client = broker.client("admin")
    return {
        **letters(broker),
        "order": client.zrange("fleet:dead", 0, -1, withscores=True),
        **{queue: client.lrange(queue, 0, -1) for queue in (*POOLS, UNCONSUMED)},
    }
