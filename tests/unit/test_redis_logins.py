# SPDX-License-Identifier: MIT
"""The module redis_ping, check logins: which passwords a real redis-server takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.fleet.celery.plugins.module_utils.redis_tls import (
    StrangeServerError,
    login_with_one_of,
)
from ansible_collections.fleet.celery.plugins.modules import redis_ping

from tests.unit.redis_server import PASSWORDS, Authority, Server, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OLD = "the one before, $HOME"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server on which the password of the workers is being replaced."""
    with running(tmp_path_factory.mktemp("redis"), redis_previous_passwords={"worker": OLD}) as server:
        yield server


def problems(server: Server, taken: list[dict[str, str]], **given: Any) -> list[str]:
    """Return what the module finds."""
    params = {
        "host": "127.0.0.1",
        "port": server.port,
        "ca_file": str(server.authority.ca_file),
        "timeout": 5,
        "accepted": taken,
        "refused": {},
    }
    return redis_ping.wrong_logins(params | given)


def test_all_is_as_it_should_be(server: Server) -> None:
    assert problems(server, [PASSWORDS, {"worker": OLD}], refused={"beat": OLD, "worker": "other"}) == []


def test_who_has_the_wrong_password_is_named_and_the_password_is_not(server: Server) -> None:
    assert problems(server, [PASSWORDS | {"web": "wrong"}], refused={"worker": OLD}) == [
        "It does not take a password of user web that it should.",
        "It still takes the old password of user worker.",
    ]


def test_no_password_is_sent_to_a_stranger(server: Server, tmp_path: Path) -> None:
    with pytest.raises(StrangeServerError, match="certificate is not valid"):
        problems(server, [PASSWORDS], ca_file=str(Authority(tmp_path).ca_file))


def test_the_first_password_that_is_taken_counts(server: Server) -> None:
    place = ("127.0.0.1", server.port, str(server.authority.ca_file), 5)
    for passwords in (["wrong", OLD], [OLD, "wrong"], [PASSWORDS["worker"]]):
        assert login_with_one_of(*place, user="worker", passwords=passwords).ping()
    with pytest.raises(StrangeServerError, match="password of user worker"):
        login_with_one_of(*place, user="worker", passwords=["wrong", "wrong, too"])
