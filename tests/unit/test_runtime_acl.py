# SPDX-License-Identifier: MIT
"""The runtime's tests run Redis with the access rules that the role `redis` renders.

The rules are files there, since these tests know no role. `make fixtures` writes the files anew.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

from fleet_testing.broker import ACL, PASSWORDS, QUEUES, SETINFO
from tests.unit.rendering import Role

# By the name of the file, the variables of the role.
FILES: dict[str, dict[str, Any]] = {
    "fleet": {},
    "control": {"redis_web_may_control": True, "redis_expiring_queues": ["email"]},
    "wide": {
        "redis_queues": [*QUEUES, "news"],
        "redis_broadcasts": {"news": "default"},
        "redis_worker_direct": True,
        "redis_beat_remote_control": True,
        "redis_web_may_schedule": True,
        "redis_app_key_prefixes": {"worker": ["qo_"], "web": ["qo_"]},
    },
}


def rendered(name: str, *, has_client_setinfo: bool) -> str:
    """Return users.acl with the variables of a file."""
    variables: dict[str, Any] = {
        "redis_passwords": PASSWORDS,
        "redis_queues": QUEUES,
        "redis_exchanges": ["topics"],  # of the tests' apps, the one that is not named as a queue is
        "__redis_has_client_setinfo": has_client_setinfo,
    }
    return Role("redis", **(variables | FILES[name])).template("users.acl.j2")


@pytest.mark.parametrize("name", FILES)
def test_file_equals_what_the_role_renders(name: str) -> None:
    wanted = rendered(name, has_client_setinfo=True)
    if os.environ.get("WRITE_FIXTURES"):
        (ACL / f"{name}.acl").write_text(wanted)
    assert (ACL / f"{name}.acl").read_text() == wanted, "run `make fixtures`"
    assert wanted.replace(SETINFO, "") == rendered(name, has_client_setinfo=False)


def test_each_file_is_known() -> None:
    assert {path.stem for path in ACL.iterdir()} == set(FILES)
