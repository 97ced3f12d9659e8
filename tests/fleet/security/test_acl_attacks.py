# SPDX-License-Identifier: MIT
"""What somebody with the password of a component can break in Redis: nothing that is not the component's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from redis.exceptions import NoPermissionError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.fleet.support.fleet import Fleet

pytestmark = pytest.mark.group("redis")

COMPONENTS = ["worker", "beat", "flower", "web", "ops", "health"]
SENDERS = ["web", "beat", "flower"]
CONTROL = "_kombu.binding.celery.pidbox"
JUNK = "x\x06\x16\x06\x16x"
LOOP = "while true do end"


@pytest.fixture
def waiting(fleet: Fleet) -> Iterator[str]:
    """Yield a list of a queue's that no node takes from: of a priority that no step of kombu's has."""
    name = f"{fleet.queues[0]}\x06\x161"
    with fleet.broker.connect("admin") as admin:
        admin.lpush(name, "a message")
        yield name
        admin.delete(name)


def refused(fleet: Fleet, user: str, *command: Any) -> bool:
    """Return whether Redis refuses a command of a user, which it runs else."""
    with fleet.broker.expected_denials(), fleet.broker.connect(user) as client:
        try:
            client.execute_command(*command)
        except NoPermissionError:
            return True
    return False


@pytest.mark.parametrize("user", SENDERS)
@pytest.mark.parametrize(
    "command",
    [
        ("DEL",),
        ("SET", "x"),
        ("SETEX", 1, "x"),
        ("SADD", "x"),
        ("PEXPIRE", 0),
        ("RPOP",),
        ("LRANGE", 0, -1),
        ("RENAME", "other"),
    ],
    ids=lambda command: command[0],
)
def test_who_sends_cannot_end_or_read_a_queue(
    fleet: Fleet, waiting: str, user: str, command: tuple[Any, ...]
) -> None:
    """They put into it, and no more; a queue of another type would refuse every producer."""
    name, *words = command
    assert refused(fleet, user, name, waiting, *words)
    with fleet.broker.connect("admin") as admin:
        assert admin.lrange(waiting, 0, -1) == ["a message"]


@pytest.mark.parametrize("user", SENDERS)
def test_who_sends_can_send(fleet: Fleet, waiting: str, user: str) -> None:
    """So the refusals above are not simply always there."""
    assert not refused(fleet, user, "LPUSH", waiting, "another")


@pytest.mark.parametrize("user", ["web", "beat", "flower", "ops"])
def test_nobody_makes_remote_control_deaf(fleet: Fleet, user: str) -> None:
    """Neither by what is bound to it, nor by taking that away."""
    assert refused(fleet, user, "SADD", CONTROL, JUNK)
    assert refused(fleet, user, "DEL", CONTROL)
    assert refused(fleet, user, "SET", CONTROL, "x")


@pytest.mark.parametrize("user", ["web", "beat"])
def test_nobody_spoils_the_answers_of_remote_control(fleet: Fleet, user: str) -> None:
    """A binding that cannot be read fails the node that answers."""
    assert refused(fleet, user, "SADD", "_kombu.binding.reply.celery.pidbox", JUNK)


@pytest.mark.parametrize("user", ["web", "beat", "flower", "ops"])
def test_nobody_forges_a_result(fleet: Fleet, user: str) -> None:
    """Nor tells who waits that there is one."""
    assert refused(fleet, user, "SETEX", "celery-task-meta-forged", 60, "{}")
    assert refused(fleet, user, "PUBLISH", "celery-task-meta-forged", "{}")


@pytest.mark.parametrize("user", COMPONENTS)
def test_nobody_stops_redis_by_a_script(fleet: Fleet, user: str) -> None:
    """One that does not end answers BUSY to everybody."""
    assert refused(fleet, user, "SCRIPT", "LOAD", LOOP)
    assert refused(fleet, user, "EVAL", LOOP, 0)
    assert refused(fleet, user, "FUNCTION", "LOAD", f"#!lua name=attack\n{LOOP}")
    with fleet.broker.connect("admin") as admin:
        script = admin.script_load("return 1")
    assert refused(fleet, user, "EVALSHA", script, 0)


def test_scripts_are_functions(fleet: Fleet) -> None:
    """They are there after a flush of what clients could load, which nobody needs."""
    with fleet.broker.connect("admin") as admin:
        admin.script_flush()
        names = [one[1] if isinstance(one, list) else one["library_name"] for one in admin.function_list()]
    assert len([name for name in names if name.startswith("fleet_")]) > 10
