# SPDX-License-Identifier: MIT
"""A fleet from before selectors and functions: its users keep what its releases need, and then lose it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.fleet.celery.plugins.modules import redis_queues
from redis.exceptions import NoPermissionError

from tests.unit.redis_server import PASSWORDS, Server
from tests.unit.rendering import Role
from tests.unit.test_redis_live import apply

if TYPE_CHECKING:
    from collections.abc import Iterator

# What the role wrote then, with {user} for the digest of each password; one user a line, and no selectors.
BEFORE = Path(__file__).with_name("users-5ea04fb.acl")
# As a release of then does: it loads a script, and calls that.
SCRIPT = "return redis.call('LLEN', KEYS[1])"


@pytest.fixture
def old(tmp_path: Path) -> Iterator[Server]:
    """Yield a server that runs with the users of then."""
    server = Server(tmp_path)
    server.write()
    digests = {user: hashlib.sha256(password.encode()).hexdigest() for user, password in PASSWORDS.items()}
    (tmp_path / "users.acl").write_text(BEFORE.read_text().format(**digests))
    server.start()
    yield server
    server.stop()


def look(server: Server) -> dict[str, Any]:
    """Return what the play finds in the file that is there, and in Redis."""
    return redis_queues.look(
        {
            "acl_file": str(server.directory / "users.acl"),
            "queues": ["default", "email"],
            "exchanges": [],
            "host": "127.0.0.1",
            "port": server.port,
            "ca_file": str(server.directory / "ca.crt"),
            "timeout": 5,
            "user": "admin",
            "password": PASSWORDS["admin"],
            "db": 0,
        }
    )


def write_and_apply(server: Server, **variables: Any) -> None:
    """Do what the role does: write users.acl, and change the users of the running server."""
    (server.directory / "users.acl").write_text(server.role(**variables).template("users.acl.j2"))
    apply(server, **variables)


def runs_scripts(server: Server, user: str) -> bool:
    """Return whether a release of then can run its scripts, from one that it loads."""
    client = server.client(user)
    try:
        return bool(client.evalsha(client.script_load(SCRIPT), 1, "default") == 0)
    except NoPermissionError:
        return False


def binds_anything(server: Server) -> bool:
    """Return whether a sender may use the bindings of an exchange that the inventory does not name."""
    try:
        server.client("web").smembers("_kombu.binding.shop")
    except NoPermissionError:
        return False
    return True


def test_the_first_run_takes_no_right_that_a_release_needs_and_the_last_step_does(old: Server) -> None:
    """The server is the same all the time, and its clients stay connected."""
    connected = old.client("worker", single_connection_client=True)
    assert runs_scripts(old, "worker")
    found = look(old)
    assert (found["former"], found["any_script"], found["any_exchange"]) == ([], True, True)

    write_and_apply(old, __redis_queues=found)
    assert runs_scripts(old, "worker")
    assert runs_scripts(old, "beat") is False  # it reads no queue, then as now
    assert old.client("beat").script_load(SCRIPT)
    assert binds_anything(old)
    assert connected.ping()
    # A run that is interrupted here, or a rollback to a release of then, finds the same.
    again = look(old)
    assert (again["former"], again["any_script"], again["any_exchange"]) == ([], True, True)
    write_and_apply(old, __redis_queues=again)
    assert runs_scripts(old, "worker")

    # No kept release loads scripts any more, and each exchange is named.
    write_and_apply(old, __redis_queues=again, __redis_any_script=False, __redis_any_exchange=False)
    assert not runs_scripts(old, "worker")
    with pytest.raises(NoPermissionError):
        old.client("beat").script_load(SCRIPT)
    assert not binds_anything(old)
    assert connected.ping()
    found = look(old)
    assert (found["former"], found["any_script"], found["any_exchange"]) == ([], False, False)


@pytest.mark.parametrize(
    ("scripted", "exchanges", "narrowed"),
    [([], [], True), (["a release of then"], [], True), (["a release of then"], ["shop"], False)],
)
def test_when_the_last_step_writes(scripted: list[str], exchanges: list[str], narrowed: bool) -> None:
    """Each right goes by itself, as soon as nothing needs it."""
    tasks = Role("redis").read("tasks/retire_queues.yml")
    when = next(one["when"] for one in tasks if one["name"] == "Remove the rights that nobody uses")
    found = {"former": [], "used": [], "any_exchange": True, "any_script": True, "exchanges": exchanges}
    given = Role("redis", __redis_queues=found, redis_scripted_releases=scripted)
    assert given.evaluate(when) is narrowed
