# SPDX-License-Identifier: MIT
"""The module redis_live, on a real redis-server that is then to be another one."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING, Any

import pytest
import redis
from ansible_collections.fleet.celery.plugins.module_utils.redis_tls import served_certificate
from ansible_collections.fleet.celery.plugins.modules import redis_live

from tests.unit.redis_server import PASSWORDS, Authority, Server, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server with what the role renders."""
    with running(tmp_path) as server:
        yield server


def params(server: Server, **variables: Any) -> dict[str, Any]:
    """Return the arguments that the role gives to the module."""
    role = server.role(**variables)
    return {
        "host": "127.0.0.1",
        "port": server.port,
        "ca_file": str(server.directory / "ca.crt"),
        "timeout": 10,
        "user": "admin",
        "password": role.variables["redis_passwords"]["admin"],
        "previous_password": "",
        "config": role.template("redis.conf.j2"),
        "acl": role.template("users.acl.j2"),
    }


def apply(server: Server, *, check: bool = False, previous: str = "", **variables: Any) -> dict[str, Any]:
    """Run the module."""
    return redis_live.apply(params(server, **variables) | {"previous_password": previous}, check=check)


def pid(server: Server) -> int:
    """Return the process of the server that answers."""
    return int(server.client("admin").info("server")["process_id"])


def test_a_server_as_it_should_be_is_left_alone(server: Server) -> None:
    assert apply(server) == {"changed": False, "applied": [], "restart_required": []}


def test_directives_are_set_live(server: Server) -> None:
    wanted: dict[str, Any] = {
        "redis_maxmemory": "300mb",
        "redis_extra_config": {"hz": 20, "save": ["3600 1", "60 100"], "lazyfree-lazy-expire": True},
    }
    result = apply(server, **wanted)
    assert result["restart_required"] == []
    assert sorted(change.split(":")[0] for change in result["applied"]) == [
        "hz",
        "lazyfree-lazy-expire",
        "maxmemory",
        "save",
    ]
    live = server.client("admin").config_get("*")
    assert (live["maxmemory"], live["hz"], live["save"]) == (str(300 * 1024**2), "20", "3600 1 60 100")
    assert not apply(server, **wanted)["changed"]


def test_a_directive_that_is_no_longer_in_the_file_gets_its_default_back(server: Server) -> None:
    limits: dict[str, Any] = {
        "redis_extra_config": {"client-output-buffer-limit": "pubsub 64mb 16mb 60", "replica-priority": 7}
    }
    assert apply(server, **limits)["changed"]
    assert not apply(server, **limits)["changed"]  # replica-priority has a second, older name
    assert apply(server)["changed"]
    live = server.client("admin").config_get("*")
    assert "pubsub 33554432 8388608 60" in live["client-output-buffer-limit"]
    assert live["replica-priority"] == "100"


def test_what_an_include_says_is_compared(server: Server, tmp_path: Path) -> None:
    more = tmp_path / "more.conf"
    more.write_text("hz 33\n")
    assert apply(server, redis_extra_config={"include": str(more)})["applied"] == ["hz: '10' -> '33'"]


@pytest.mark.parametrize("check", [False, True])
def test_what_cannot_be_set_live_needs_a_restart(server: Server, check: bool) -> None:
    result = apply(server, check=check, redis_extra_config={"tcp-backlog": 2048, "hz": 20})
    assert result["restart_required"] == ["tcp-backlog: '1024' -> '2048'"]
    assert result["applied"] == ["hz: '10' -> '20'"]


def test_a_queue_is_added_and_nobody_is_cut_off(server: Server) -> None:
    worker = server.client("worker", single_connection_client=True)
    listener = server.client("worker").pubsub()
    listener.psubscribe("/0.celery.pidbox")
    name = worker.client_setname("stays")
    assert name
    with pytest.raises(redis.exceptions.NoPermissionError):
        server.client("web").lpush("new", "message")
    before = connections(server)

    result = apply(server, redis_queues=["default", "email", "new"])

    assert result["applied"] == [f"user {user}" for user in ("worker", "beat", "flower", "web", "ops")]
    assert server.client("web").lpush("new", "message") == 1
    assert worker.brpop(["new"], 1) == ("new", "message")
    assert before <= connections(server)
    assert server.client("admin").publish("/0.celery.pidbox", "x") == 1
    assert not apply(server, redis_queues=["default", "email", "new"])["changed"]


def connections(server: Server) -> set[str]:
    """Return the connections of workers, each by its number."""
    found = server.client("admin").client_list()
    return {client["id"] for client in found if client["user"] == "worker"}


def test_a_password_is_changed_live(server: Server) -> None:
    changed: dict[str, Any] = {"redis_passwords": PASSWORDS | {"web": "another password, #2"}}
    assert apply(server, **changed)["applied"] == ["user web"]
    assert server.client("web", "another password, #2").ping()
    with pytest.raises(redis.exceptions.AuthenticationError):
        server.client("web").ping()


def test_a_password_is_replaced_with_an_overlap(server: Server) -> None:
    old, new = PASSWORDS["worker"], "another password, #2"
    both: dict[str, Any] = {
        "redis_passwords": PASSWORDS | {"worker": new},
        "redis_previous_passwords": {"worker": old},
    }
    worker = server.client("worker", single_connection_client=True)
    assert apply(server, **both)["applied"] == ["user worker"]
    assert not apply(server, **both)["changed"]
    assert server.client("worker", old).ping()
    assert server.client("worker", new).ping()

    del both["redis_previous_passwords"]
    assert apply(server, **both)["applied"] == ["user worker"]
    assert server.client("worker", new).ping()
    with pytest.raises(redis.exceptions.AuthenticationError):
        server.client("worker", old).ping()
    assert worker.ping()  # what is connected stays


def test_the_administrators_password_is_replaced_without_a_restart(server: Server) -> None:
    old, new = PASSWORDS["admin"], "another password, #2"
    process = pid(server)
    both: dict[str, Any] = {
        "redis_passwords": PASSWORDS | {"admin": new},
        "redis_previous_passwords": {"admin": old},
    }
    told = apply(server, check=True, previous=old, **both)
    assert told == {"changed": True, "applied": ["user admin", "user functions"], "restart_required": []}
    assert apply(server, previous=old, **both) == told
    assert not apply(server, previous=old, **both)["changed"]

    del both["redis_previous_passwords"]
    assert apply(server, **both)["applied"] == ["user admin", "user functions"]
    # as by a run that goes on after one that was interrupted here
    assert apply(server, previous=old, **both) == {"changed": False, "applied": [], "restart_required": []}
    with pytest.raises(redis.exceptions.AuthenticationError):
        server.client("admin").ping()
    assert server.client("admin", new).info("server")["process_id"] == process


def test_rights_that_were_given_by_hand_are_taken_back(server: Server) -> None:
    admin = server.client("admin")
    admin.execute_command("ACL SETUSER", "intruder", "on", "nopass", "~*", "+@all")
    admin.execute_command("ACL SETUSER", "web", "+@all")
    admin.execute_command("ACL SETUSER", "health", ">second password")
    admin.execute_command("ACL SETUSER", "default", "on", "nopass")
    admin.config_set("maxmemory-policy", "allkeys-lru")

    result = apply(server)

    assert result["applied"] == [
        "maxmemory-policy: 'allkeys-lru' -> 'noeviction'",
        "user default",
        "user web",
        "user health",
        "user intruder: removed",
    ]
    assert not apply(server)["changed"]


def test_check_mode_tells_and_changes_nothing(server: Server) -> None:
    admin = server.client("admin")
    before = (admin.config_get("*"), sorted(admin.acl_list()))
    result = apply(server, check=True, redis_queues=["default", "new"], redis_maxmemory="300mb")
    assert len(result["applied"]) == 6
    assert (admin.config_get("*"), sorted(admin.acl_list())) == before


def test_a_renewed_certificate_is_served_without_a_restart(server: Server) -> None:
    process, before = pid(server), served(server)
    server.authority.issue()
    assert apply(server, check=True)["applied"] == [f"certificate: {server.directory / 'host.crt'}"]
    assert served(server) == before
    assert apply(server)["changed"]
    assert served(server) != before
    assert pid(server) == process
    assert not apply(server)["changed"]


def served(server: Server) -> bytes:
    """Return the certificate that the server shows."""
    return bytes(served_certificate("127.0.0.1", server.port, str(server.authority.ca_file), 10))


def test_a_certificate_with_another_key_is_refused_and_the_old_one_served(server: Server) -> None:
    before, key = served(server), (server.directory / "host.key").read_bytes()
    server.authority.issue()
    (server.directory / "host.key").write_bytes(key)
    with pytest.raises(redis_live.RefusedError, match="TLS configuration"):
        apply(server)
    assert served(server) == before


def test_an_authority_is_replaced_while_clients_run(server: Server, tmp_path: Path) -> None:
    """A client reads the file of the authorities with each connection, so that it needs no restart."""
    ca_file, old = server.directory / "ca.crt", (server.directory / "ca.crt").read_text()
    client = server.client("worker")
    assert client.ping()
    other = tmp_path / "next"
    other.mkdir()
    new = Authority(other)  # of the same name as the old one
    new.issue()

    for trusted in (old + new.ca_file.read_text(), new.ca_file.read_text() + old):
        ca_file.write_text(trusted)
        client.connection_pool.disconnect()
        assert client.ping()

    for name in ("host.key", "host.crt"):
        (server.directory / name).write_bytes((other / name).read_bytes())
    assert apply(server)["applied"] == [f"certificate: {server.directory / 'host.crt'}"]
    client.connection_pool.disconnect()
    assert client.ping()

    ca_file.write_text(new.ca_file.read_text())
    assert not apply(server)["changed"]
    client.connection_pool.disconnect()
    assert client.ping()
    ca_file.write_text(old)
    client.connection_pool.disconnect()
    with pytest.raises(redis.exceptions.ConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
        client.ping()


def test_another_password_of_the_administrator_needs_a_restart(server: Server) -> None:
    result = apply(server, redis_passwords=PASSWORDS | {"admin": "another password, #2"})
    assert result["applied"] == []
    assert "does not take the password of user admin" in result["restart_required"][0]


def test_the_password_is_not_sent_to_a_server_of_another_authority(server: Server, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    arguments = params(server) | {"ca_file": str(Authority(other).ca_file)}
    logins = commands(server)
    result = redis_live.apply(arguments, check=False)
    assert "certificate is not valid" in result["restart_required"][0]
    assert commands(server) == logins


def commands(server: Server) -> int:
    """Return how often somebody tried to log in, this time not counted."""
    stats = server.client("admin").info("commandstats")
    calls = sum(stats[name]["calls"] for name in ("cmdstat_auth", "cmdstat_hello") if name in stats)
    return int(calls) - next(commands_asked)


commands_asked = iter(range(1000))


def test_nothing_listens(server: Server) -> None:
    server.stop()
    assert apply(server)["restart_required"] == [f"127.0.0.1:{server.port}: nothing listens there"]


def test_a_hung_server_is_not_restarted(server: Server) -> None:
    assert server.process
    server.process.send_signal(signal.SIGSTOP)
    time.sleep(0.1)
    try:
        with pytest.raises(redis_live.RefusedError, match="did not answer within 1 s"):
            redis_live.apply(params(server) | {"timeout": 1}, check=False)
    finally:
        server.process.send_signal(signal.SIGCONT)
