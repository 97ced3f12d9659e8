# SPDX-License-Identifier: MIT
"""The role redis: all that each user of Redis may do, of all that Redis can do.

The commands are those that the server itself lists, with their subcommands. Each is tried (ACL DRYRUN) by
each user with a key of each kind, and with a channel of each kind. redis_rights.yml has what must be allowed;
nothing else may be.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.unit.redis_server import USERS, running

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis

    from tests.unit.redis_server import Server

COMPONENTS = [user for user in USERS if user != "admin"]
TABLE = Path(__file__).with_name("redis_rights.yml")
UUID = "3bb2a0d6-3a9c-3d0c-a3cc-3f8e8b1f9b4e"

# A key of each kind, and what it is called in the table.
KEYS = {
    "queue": "default",
    "priority": "default\x06\x169",
    "other": "other",
    "prefix": "defaultx",
    "direct": "default-1@worker1.dq2",
    "broadcast": f"news.{UUID}",
    "unnamed broadcast": f"bcast.{UUID}",
    "binding": "_kombu.binding.default",
    "binding of control": "_kombu.binding.celery.pidbox",
    "binding of replies": "_kombu.binding.reply.celery.pidbox",
    "binding of events": "_kombu.binding.celeryev",
    "binding of another": "_kombu.binding.other",
    "permanent binding": "_kombu.binding_permanent.default",
    "permanent binding of replies": "_kombu.binding_permanent.reply.celery.pidbox",
    "deadlines": "_kombu.binding_deadlines",
    "control": "default-1@worker1.celery.pidbox",
    "reply": f"{UUID}.reply.celery.pidbox",
    "events": f"celeryev.{UUID}",
    "unacked": "unacked:default-1@worker1",
    "unacked_index": "unacked_index:default-1@worker1",
    "unacked_mutex": "unacked_mutex:default-1@worker1",
    "kombu's unacked": "unacked",
    "leases": "fleet:leases",
    "nodes": "fleet:nodes",
    "dead": "fleet:dead",
    "letters": "fleet:dead:letters",
    "drained": "fleet:drained",
    "wanted": "fleet:wanted",
    "history": "fleet:history",
    "wanted beat": "fleet:beat:wanted",
    "beat's lease": "fleet:beat:lease",
    "losses": "fleet:losses:1",
    "revoked": "fleet:revoked",
    "once": "fleet:once:1",
    "proof": "fleet:proof:default-1@worker1",
    "result": "celery-task-meta-1",
    "group": "celery-taskset-meta-1.j",
    "entry": "redbeat:nightly",
    "schedule": "redbeat::schedule",
    "lock": "redbeat::lock",
    "app": "qo_lock",
}
CHANNELS = {
    "channel of control": "/0.celery.pidbox",
    "channel of events": "/0.celeryev/*",
    "channel of a node's events": "/0.celeryev/worker.*",
    "channel of an event": "/0.celeryev/task.succeeded",
    "channel of sent": "/0.celeryev/task.sent",
    "channel of a result": "celery-task-meta-1",
    "channel of a group": "celery-taskset-meta-1",
    "channel of another db": "/1.celery.pidbox",
    "channel of a broadcast": "/0.news/default",
    "channel of a broadcast without a key": "/0.alerts",
    "channel": "other",
    "all channels": "*",
}
PUBSUB = {"publish", "spublish", "subscribe", "ssubscribe", "psubscribe"}
# Nobody can be refused these: they are how one logs in and out.
EVERYBODYS = {"auth", "hello", "quit", "reset"}


# Every feature that a variable allows.
FEATURES: dict[str, Any] = {
    "redis_exchanges": ["other"],
    "redis_expiring_queues": ["default"],
    "redis_broadcasts": {"news": "default", "alerts": ""},
    "redis_worker_direct": True,
    "redis_beat_remote_control": True,
    "redis_web_may_control": True,
    "redis_web_may_schedule": True,
    "redis_app_key_prefixes": {"worker": ["qo_"], "web": ["qo_"]},
}


def commands_of(admin: redis.Redis) -> dict[str, list[Any]]:
    """Return what the server says of each command, and of each subcommand, such as `client|setname`."""
    found = {}
    connection = admin.connection_pool.get_connection()
    connection.send_command("COMMAND")  # by itself, since the client would make something else of the answer
    for one in connection.read_response():
        for about in one[9] or [one]:
            found[about[0]] = about
    admin.connection_pool.release(connection)
    return found


def words_of(about: list[Any], key: str) -> list[str]:
    """Return a command with a key wherever one belongs, and enough else; without keys, as short as may be."""
    name, arity, specs = about[0], about[1], about[8]
    words = [*name.split("|"), *["1"] * (abs(arity) - 1 - name.count("|"))]

    def put(at: int, word: str) -> None:
        words.extend(["1"] * (at + 1 - len(words)))
        words[at] = word

    for spec in specs:
        begin, find = spec["begin_search"], spec["find_keys"]
        at = begin["spec"].get("index")
        if begin["type"] == "index" and find["type"] == "keynum":
            put(at + find["spec"]["keynumidx"], "1")
            put(at + find["spec"]["firstkey"], key)
        elif begin["type"] == "index":
            put(at, key)
    for spec in specs:
        if spec["begin_search"]["type"] == "keyword" and "incomplete" not in spec["flags"]:
            words += [spec["begin_search"]["spec"]["keyword"], key, "1"]
    return words


def granted(server: Server, user: str) -> dict[str, list[str]]:
    """Return the commands that a user may run, by what they name; `anything` are those that name nothing."""
    admin = server.client("admin", protocol=3)
    trials = []
    for name, about in commands_of(admin).items():
        if name in EVERYBODYS:
            continue
        if name in PUBSUB:
            subjects = {subject: [name, channel] for subject, channel in CHANNELS.items()}
            if name.endswith("publish"):
                subjects = {subject: [*words, "x"] for subject, words in subjects.items()}
        elif about[8]:
            subjects = {subject: words_of(about, key) for subject, key in KEYS.items()}
        else:
            subjects = {"anything": words_of(about, "")}
        trials += [(subject, name, words) for subject, words in subjects.items()]
    pipeline = admin.pipeline(transaction=False)
    for _, _, words in trials:
        pipeline.execute_command("ACL DRYRUN", user, *words)
    found = defaultdict(list)
    for (subject, name, words), answer in zip(trials, pipeline.execute(raise_on_error=False), strict=True):
        assert answer == "OK" or "no permissions" in str(answer), (words, answer)
        if answer == "OK" and name != "client|setinfo":  # which not every version of Redis has
            found[subject].append(name)
    return {subject: sorted(names) for subject, names in found.items()}


def table(which: str) -> dict[str, dict[str, list[str]]]:
    """Return what users may do, of one part of redis_rights.yml."""
    rights = yaml.safe_load(TABLE.read_text())[which]
    return {
        user: {subject: words.split() for subject, words in of.items() if words}
        for user, of in rights.items()
    }


def difference(found: dict[str, list[str]], wanted: dict[str, list[str]]) -> list[str]:
    """Return what is otherwise, a line each."""
    return sorted(
        f"{sign} {subject}: {name}"
        for sign, one, other in (
            ("may, and should not", found, wanted),
            ("should, and may not", wanted, found),
        )
        for subject, names in one.items()
        for name in set(names) - set(other.get(subject, ()))
    )


@pytest.mark.parametrize("user", COMPONENTS)
def test_a_user_may_do_this_and_nothing_else(server: Server, user: str) -> None:
    assert difference(granted(server, user), table("always")[user]) == []


@pytest.fixture(scope="module")
def featured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Yield a server with every feature that the role can allow."""
    with running(tmp_path_factory.mktemp("features"), **FEATURES) as server:
        yield server


@pytest.mark.parametrize("user", COMPONENTS)
def test_features_add_this_and_nothing_else(featured: Server, user: str) -> None:
    always, more = table("always")[user], table("features").get(user, {})
    wanted = {key: [*always.get(key, []), *more.get(key, [])] for key in always.keys() | more.keys()}
    assert difference(granted(featured, user), wanted) == []


def test_who_could_load_scripts_still_can_while_a_release_does(server: Server) -> None:
    """Nothing else comes with it, and without it nobody has a trace of it."""
    now, before = (
        server.role(__redis_queues={"any_script": any_script}).template("users.acl.j2").split()
        for any_script in (False, True)
    )
    assert set(before) - set(now) == {"+script|load", "+script|exists", "+evalsha)", "+fcall"}
    assert not {word for word in now if "script" in word or "eval" in word}
