# SPDX-License-Identifier: MIT
"""The functions of Redis: the role has what nodes call, and its host loads it at each start."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.redis_server import Server, running
from tests.unit.rendering import PROJECT
from tools import redis_functions

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis

PROGRAM = PROJECT / "roles" / "redis" / "files" / "fleet-redis-functions"
FOLDER = PROJECT / "roles" / "redis" / "files" / "functions"
LIBRARIES = [path.read_text() for path in sorted(FOLDER.glob("*.lua"))]
OTHER = "#!lua name=an_operators\nredis.register_function('other', function() return 1 end)\n"
FORMER = f"fleet_{'0' * 40}"


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Yield a server of this file's own, which tests start again and take the data of."""
    with running(tmp_path_factory.mktemp("functions")) as server:
        yield server


@pytest.fixture
def program(host: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the program, which has no suffix, with the files that the role writes for it."""
    loader = importlib.machinery.SourceFileLoader("fleet_redis_functions", str(PROGRAM))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec
    module: Any = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    role = host.role(redis_bind=["127.0.0.1"])
    task = next(
        one for one in role.read("tasks/internal/configure.yml") if "__redis_login" in one.get("vars", {})
    )
    texts = {name: text.strip("{} ") for name, text in task["vars"]["__redis_login"].items()}
    login = {name: role.evaluate(text) for name, text in texts.items() if name != "username"}
    module.LOGIN, module.LIBRARIES = tmp_path / "functions.json", tmp_path / "libraries"
    module.LOGIN.write_text(json.dumps(login | {"username": texts["username"]}))
    module.LIBRARIES.mkdir()
    for file in role.evaluate(
        f"__redis_functions | fleet.celery.fleet_redis_library_files('{module.LIBRARIES}')"
    ):
        (tmp_path / "libraries" / Path(file["path"]).name).write_text(file["content"])
    host.client("admin").function_flush()
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    return module


def call(program: Any, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Run the program, and return its exit status."""
    monkeypatch.setattr(sys, "argv", [str(PROGRAM), *words])
    status: int = program.main()
    program.signal.alarm(0)
    return status


def names(client: redis.Redis) -> set[str]:
    """Return the names of the libraries that a server has."""
    return {one["library_name"] if isinstance(one, dict) else one[1] for one in client.function_list()}


def test_the_files_are_up_to_date() -> None:
    """Else a process of the fleet would call what Redis does not have."""
    there = [*FOLDER.glob("*.lua"), redis_functions.KEYS, redis_functions.FIGURES]
    assert {path: path.read_text() for path in there} == redis_functions.files(), "run `make functions`"


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
        "fleet.fetch_and_ack.lua",
        "fleet.renew_lease.lua",
    } <= {path.name for path in FOLDER.glob("*.lua")}


def test_they_are_loaded_once(
    program: Any, host: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a user that may do nothing else; what it printed is what was changed."""
    wanted = sorted(map(program.name_of, LIBRARIES))
    assert call(program, monkeypatch, "load") == 0
    assert capsys.readouterr().out.split() == wanted
    assert call(program, monkeypatch, "load") == 0
    assert capsys.readouterr().out == ""
    assert sorted(names(host.client("admin"))) == wanted


def test_they_are_there_after_a_start_without_data(
    program: Any, host: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or after a flush: the unit runs the program after each start."""
    wanted = {*map(program.name_of, LIBRARIES)}
    assert call(program, monkeypatch, "load") == 0
    host.stop()
    host.start()
    assert names(host.client("admin")) == wanted
    host.client("admin").function_flush()
    host.stop()
    host.start()
    assert names(host.client("admin")) == set()
    assert call(program, monkeypatch, "load") == 0
    host.stop()
    shutil.rmtree(host.directory / "appendonlydir")
    host.start()
    assert names(host.client("admin")) == set()
    assert call(program, monkeypatch, "load") == 0
    assert names(host.client("admin")) == wanted


def test_what_is_missing_or_otherwise_is_loaded_and_others_stay(
    program: Any, host: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of another release, which nodes of it call."""
    admin = host.client("admin")
    admin.function_load(OTHER)
    call(program, monkeypatch, "load")
    first, second = sorted(map(program.name_of, LIBRARIES))[:2]
    admin.function_delete(first)
    admin.function_load(f"#!lua name={second}\nredis.register_function('x', function() return 1 end)", True)
    capsys.readouterr()
    assert call(program, monkeypatch, "load") == 0
    assert capsys.readouterr().out.split() == [first, second]
    assert names(admin) == {*map(program.name_of, LIBRARIES), "an_operators"}


def test_what_no_release_needs_is_removed(
    program: Any, host: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From Redis and from the disk, and nothing that is not the fleet's."""
    admin, former = host.client("admin"), program.LIBRARIES / f"{FORMER}.lua"
    former.write_text(f"#!lua name={FORMER}\nredis.register_function('former', function() return 1 end)\n")
    admin.function_load(OTHER)
    call(program, monkeypatch, "load")
    needed = {*map(program.name_of, LIBRARIES)}
    capsys.readouterr()
    assert call(program, monkeypatch, "prune", *needed, FORMER) == 0
    assert capsys.readouterr().out == ""
    assert call(program, monkeypatch, "prune", *needed) == 0
    assert capsys.readouterr().out.split() == [FORMER]
    assert names(admin) == {*needed, "an_operators"}
    assert not former.exists()
    assert call(program, monkeypatch, "load") == 0
    assert call(program, monkeypatch, "prune", *needed) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("words", [(), ("prune",), ("load", "x"), ("drop",)])
def test_nothing_is_done_by_mistake(
    program: Any, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    """A list of needed libraries that came out empty would remove all of them."""
    assert call(program, monkeypatch, *words) == 2


def test_a_redis_that_is_full_says_so(
    program: Any, host: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    admin = host.client("admin")
    admin.config_set("maxmemory", "1")
    try:
        assert call(program, monkeypatch, "load") == 1
    finally:
        admin.config_set("maxmemory", "0")
    assert "Redis is full: let tasks run" in capsys.readouterr().err


def test_a_redis_that_cannot_be_asked_says_so(
    program: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without its password, and in the journal as an error."""
    login = json.loads(program.LOGIN.read_text())
    monkeypatch.setenv("JOURNAL_STREAM", "1:1")
    for given in ({"password": "wrong"}, {"port": 1}, {"ssl_ca_certs": "/none"}):
        program.LOGIN.write_text(json.dumps(login | given))
        assert call(program, monkeypatch, "load") == 1
        said = capsys.readouterr().err
        assert said.startswith("<3>Redis cannot be asked for its functions: ")
        assert "playbooks/redis.yml loads them" in said
        assert login["password"] not in said


@pytest.mark.parametrize("text", ["return 1", "#!lua name=x y\nreturn 1", ""])
def test_a_library_without_a_name_is_refused(
    program: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (program.LIBRARIES / "0.lua").write_text(text)
    assert call(program, monkeypatch, "load") == 1
    assert "The first line of a library" in capsys.readouterr().err


def test_who_loads_them_may_do_nothing_else(host: Server) -> None:
    admin = host.client("admin")
    commands = [*(("SET", "default", "x"), ("GET", "default"), ("FCALL", "x", 0), ("EVAL", "return 1", 0))]
    commands += [("FUNCTION", "FLUSH"), ("CONFIG", "GET", "*"), ("ACL", "LIST"), ("PUBLISH", "x", "x")]
    for words in commands:
        assert "no permissions" in admin.execute_command("ACL DRYRUN", "functions", *words), words


def test_its_password_is_replaced_with_the_administrators(host: Server) -> None:
    """And while that is replaced Redis takes both."""
    now = host.role().evaluate("__redis_loader_passwords")
    previous = host.role(redis_previous_passwords={"admin": "before" * 4}).evaluate(
        "__redis_loader_passwords"
    )
    assert len(now) == 1
    assert previous[0] == now[0] != previous[1]
    assert len(previous) == 2
