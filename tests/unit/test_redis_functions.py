"""The functions of Redis: the role has what the fleet's processes call, and a server takes it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import redis
from modules.redis_functions import RefusedError, load, name_of, present

from tools import redis_functions

if TYPE_CHECKING:
    from tests.unit.redis_server import Server

FOLDER = Path(__file__).parents[2] / "roles" / "redis" / "files" / "functions"
OTHER = "#!lua name=fleet_other\nredis.register_function('other', function() return 1 end)\n"


@pytest.fixture
def empty(server: Server) -> redis.Redis:
    """Return the administrator of a server without functions."""
    client = server.client("admin")
    client.function_flush()
    return client


def libraries() -> list[str]:
    """Return what the role loads."""
    return [path.read_text() for path in sorted(FOLDER.glob("*.lua"))]


def test_the_files_are_up_to_date() -> None:
    """Else a process of the fleet would call what Redis does not have."""
    assert {path.name: path.read_text() for path in FOLDER.glob("*.lua")} == redis_functions.files(), (
        "run `make functions`"
    )


def test_whose_scripts_there_are() -> None:
    """A script of theirs that has another name now would be missing."""
    assert {
        "celery.CHORD_CLAIM_EXTEND_LUA.lua",
        "celery.CHORD_CLEANUP_LUA.lua",
        "celery.CHORD_PART_RETURN_LUA.lua",
        "kombu.REFRESH_BINDING.lua",
        "kombu.SWEEP_BINDINGS.lua",
        "redbeat.LUA_EXTEND_TO_SCRIPT.lua",
        "redis-py.LUA_EXTEND_SCRIPT.lua",
        "redis-py.LUA_REACQUIRE_SCRIPT.lua",
        "redis-py.LUA_RELEASE_SCRIPT.lua",
        "recovery.RENEW.lua",
        "transport.TURN.lua",
    } <= {path.name for path in FOLDER.glob("*.lua")}


def test_they_are_loaded_once(empty: redis.Redis) -> None:
    names = sorted(map(name_of, libraries()))
    assert load(empty, libraries(), check=True) == list(map(name_of, libraries()))
    assert present(empty) == {}
    assert sorted(load(empty, libraries(), check=False)) == names
    assert load(empty, libraries(), check=False) == []
    assert sorted(present(empty)) == names


def test_what_is_missing_or_otherwise_is_loaded_and_others_stay(empty: redis.Redis) -> None:
    """Those of another release, which nodes of it call."""
    load(empty, [OTHER, *libraries()], check=False)
    first, second = map(name_of, libraries()[:2])
    empty.function_delete(first)
    empty.function_load(f"#!lua name={second}\nredis.register_function('x', function() return 1 end)", True)
    assert load(empty, libraries(), check=False) == [first, second]
    assert present(empty).keys() == {*map(name_of, libraries()), "fleet_other"}


def test_a_redis_that_is_full_says_so(empty: redis.Redis) -> None:
    empty.config_set("maxmemory", "1")
    try:
        with pytest.raises(RefusedError, match="Redis is full: let tasks run"):
            load(empty, libraries(), check=False)
    finally:
        empty.config_set("maxmemory", "0")


@pytest.mark.parametrize("text", ["return 1", "#!lua name=x y\nreturn 1", ""])
def test_a_library_without_a_name_is_refused(empty: redis.Redis, text: str) -> None:
    with pytest.raises(RefusedError, match="first line"):
        load(empty, [text], check=False)
