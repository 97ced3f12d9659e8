# SPDX-License-Identifier: MIT
"""The module redis_ping: when a Redis is well, and when it may be restarted."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
from ansible_collections.fleet.celery.plugins.modules import flower_health, redis_ping

from tests.unit.redis_server import PASSWORDS, Authority, Server, running

if TYPE_CHECKING:
    from pathlib import Path

WELL = {"loading": 0, "aof_enabled": 1, "aof_last_write_status": "ok"}
UNASKED = {"host": "", "port": 0, "ca_file": "", "timeout": 0, "certificate": "", "libraries": []}


def patient(server: Server, **given: Any) -> redis_ping.Patient:
    """Return the server as the module sees it."""
    params = {
        "host": "127.0.0.1",
        "port": server.port,
        "ca_file": str(server.authority.ca_file),
        "timeout": 5,
        "health_user": "health",
        "health_password": PASSWORDS["health"],
        "admin_user": "admin",
        "admin_password": PASSWORDS["admin"],
        "previous_passwords": {},
        "certificate": str(server.directory / "host.crt"),
        "libraries": [],
    }
    return redis_ping.Patient(params | given)


class Stub(redis_ping.Patient):
    """A Redis that answers as a test wants."""

    def __init__(self, role: str = "master", **info: Any) -> None:
        """Take its role, and what differs from a healthy one's INFO."""
        super().__init__(UNASKED)
        self.role = role
        self.information = WELL | info

    def client(self, kind: str) -> Any:
        """Be the client, too."""
        return self

    def execute_command(self, command: str) -> list[str]:
        """Answer to ROLE."""
        assert command == "ROLE"
        return [self.role]

    def info(self, section: str) -> dict[str, Any]:
        """Answer to INFO."""
        assert section == "persistence"
        return self.information


def test_a_server_that_is_well(server: Server) -> None:
    assert redis_ping.wait(patient(server), retries=0, delay=0) == "master"


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"health_password": "wrong"}, "password of user health"),
        ({"admin_password": "wrong"}, "password of user admin"),
        ({"port": 1}, "nothing listens there"),
    ],
)
def test_a_server_that_does_not_let_one_ask(server: Server, given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(redis_ping.UnhealthyError, match=complaint):
        redis_ping.wait(patient(server, **given), retries=1, delay=0)


@pytest.mark.parametrize(
    ("stub", "complaint"),
    [
        (Stub(role="slave"), "it is a slave"),
        (Stub(loading=1), "is loading"),
        (Stub(aof_enabled=0), "append-only file is off"),
        (Stub(aof_last_write_status="err"), "refuses writes"),
    ],
)
def test_a_server_that_is_not_well(stub: Stub, complaint: str) -> None:
    with pytest.raises(redis_ping.UnhealthyError, match=complaint):
        redis_ping.wait(stub, retries=0, delay=0)


def test_a_server_that_knows_the_password_before_only_is_well(server: Server) -> None:
    given = {"admin_password": "new", "health_password": "new", "previous_passwords": PASSWORDS}
    assert redis_ping.wait(patient(server, **given), retries=0, delay=0) == "master"


def test_a_server_that_shows_another_certificate(server: Server, tmp_path: Path) -> None:
    """Flower's nginx is held to the same."""
    other = Authority(tmp_path)
    other.issue()
    for file, complaint in (
        (tmp_path / "host.crt", "does not show the certificate in"),
        (tmp_path / "no", "No such"),
    ):
        with pytest.raises(redis_ping.UnhealthyError, match=complaint):
            redis_ping.wait(patient(server, certificate=str(file)), retries=0, delay=0)
        asked = {"url": f"https://127.0.0.1:{server.port}", "timeout": 5, "certificate": str(file)}
        with pytest.raises(flower_health.UnhealthyError, match=complaint):
            flower_health.refuse_other_certificate(asked)
    flower_health.refuse_other_certificate(asked | {"certificate": str(server.directory / "host.crt")})


def test_a_server_that_lacks_functions(server: Server) -> None:
    admin = server.client("admin")
    admin.function_load("#!lua name=there\nredis.register_function('there', function() return 1 end)", True)
    assert redis_ping.wait(patient(server, libraries=["there"]), retries=0, delay=0) == "master"
    with pytest.raises(redis_ping.UnhealthyError, match="it lacks 1 of the functions"):
        redis_ping.wait(patient(server, libraries=["there", "missing"]), retries=0, delay=0)


def test_it_is_waited_for() -> None:
    stub = Stub(loading=1)
    answers = iter([WELL | {"loading": 1}, WELL | {"loading": 1}, WELL])
    with mock.patch.object(stub, "info", lambda _: next(answers)):
        assert redis_ping.wait(stub, retries=2, delay=0) == "master"


def test_what_only_memory_holds_is_not_restarted_away(server: Server) -> None:
    redis_ping.refuse_unwritable(patient(server))
    redis_ping.refuse_unwritable(patient(server, port=1))
    with pytest.raises(redis_ping.UnhealthyError, match="A restart would lose"):
        redis_ping.refuse_unwritable(Stub(aof_last_write_status="err"))


def test_a_server_that_runs_a_script_without_end(tmp_path: Path) -> None:
    """It is unhealthy for every user, and healthy after that."""
    with running(tmp_path) as server:
        admin = server.client("admin")
        admin.config_set("busy-reply-threshold", 100)
        server.client("admin").connection_pool.get_connection().send_command("EVAL", "while true do end", 0)
        deadline = time.monotonic() + 60
        complaint = ""
        while "BUSY" not in complaint and time.monotonic() < deadline:
            try:
                patient(server).examine()
            except redis_ping.UnhealthyError as error:
                complaint = str(error)
        admin.script_kill()
        assert "BUSY Redis is busy running a script" in complaint
        assert patient(server).examine() == "master"
