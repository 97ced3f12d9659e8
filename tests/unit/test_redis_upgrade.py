# SPDX-License-Identifier: MIT
"""The module redis_upgrade: when Redis may be upgraded, its snapshot, and the proof of its data."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.fleet.celery.plugins.module_utils import redis_snapshot
from ansible_collections.fleet.celery.plugins.module_utils.redis_snapshot import SnapshotError
from ansible_collections.fleet.celery.plugins.modules import redis_upgrade
from ansible_collections.fleet.celery.plugins.modules.redis_upgrade import (
    Upgrade,
    UpgradeError,
    unfit,
    unproven,
)

from tests.unit import redis_server
from tests.unit.redis_server import PASSWORDS, Server, running

if TYPE_CHECKING:
    from collections.abc import Iterator

VERSION = ".".join(map(str, redis_server.server_version())) if shutil.which("redis-server") else ""
FIT: dict[str, Any] = {
    "role": "master",
    "loading": 0,
    "aof_enabled": 1,
    "aof_last_write_status": "ok",
    "aof_last_bgrewrite_status": "ok",
    "rdb_last_bgsave_status": "ok",
    "aof_rewrite_in_progress": 0,
    "aof_rewrite_scheduled": 0,
    "rdb_bgsave_in_progress": 0,
    "used_memory": 50,
    "maxmemory": 100,
    "redis_version": "7.0.15",
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server with what the role renders, and some data."""
    (tmp_path / "redis").mkdir()
    with running(tmp_path / "redis") as server:
        server.client("admin").mset({f"key:{number}": number for number in range(100)})
        yield server


def upgrade(server: Server, *, check: bool = False, **given: Any) -> Upgrade:
    """Return the module at work on a server."""
    params = {
        "host": "127.0.0.1",
        "port": server.port,
        "ca_file": str(server.authority.ca_file),
        "timeout": 5,
        "user": "admin",
        "password": PASSWORDS["admin"],
        "db": 0,
        "queues": ["default"],
        "data_dir": str(server.directory),
        "snapshot_dir": str(server.directory.parent / "snapshots"),
        "keep": 2,
        "version": f"5:{VERSION}-1",
        "memory_percent": 80,
        "rewrite_timeout": 30,
    }
    return Upgrade({**params, **given}, check=check)


def test_a_redis_that_is_fit(server: Server) -> None:
    assert upgrade(server).upgradable() == {"changed": False}
    assert list(unfit(FIT, 80)) == []


@pytest.mark.parametrize(
    ("what", "complaint"),
    [
        ({"role": "slave"}, "It is a slave"),
        ({"loading": 1}, "is loading"),
        ({"aof_enabled": 0}, "append-only file is off"),
        ({"aof_last_write_status": "err"}, "last write to its append-only file failed"),
        ({"aof_last_bgrewrite_status": "err"}, "last rewrite .* failed.*BGREWRITEAOF"),
        ({"rdb_last_bgsave_status": "err"}, "last save failed.*BGSAVE"),
        ({"aof_rewrite_in_progress": 1}, "is rewriting"),
        ({"aof_rewrite_scheduled": 1}, "is rewriting"),
        ({"rdb_bgsave_in_progress": 1}, "is rewriting"),
        ({"used_memory": 81}, "more than 80 %"),
    ],
)
def test_what_is_not_fit(what: dict[str, Any], complaint: str) -> None:
    [found] = unfit(FIT | what, 80)
    assert re.search(complaint, found)


def test_no_bound_of_memory_is_never_near() -> None:
    assert list(unfit(FIT | {"maxmemory": 0}, 80)) == []


def test_all_findings_are_told(server: Server) -> None:
    """Memory that is nearly used up, and a disk without room, in one message."""
    client = server.client("admin")
    client.config_set("maxmemory", client.info("memory")["used_memory"] + 1000)
    task = upgrade(server)
    usage = shutil.disk_usage(server.directory)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1))
        with pytest.raises(UpgradeError, match=r"(?s)more than 80 %.*0 MiB free") as refusal:
            task.upgradable()
    assert str(refusal.value).count("\n- ") == 2


def test_a_redis_that_does_not_answer_is_not_fit(server: Server) -> None:
    with pytest.raises(UpgradeError, match="nothing listens there"):
        upgrade(server, port=1).upgradable()


def test_the_data_are_proven_after_a_restart(server: Server) -> None:
    """Nothing is left of it then, but the snapshot."""
    task = upgrade(server)
    done = task.snapshot()
    assert done["changed"]
    assert done["counts"]["keys"] == 100
    assert task.record()["record"] == done["record"]
    task.readable()
    server.stop()
    server.start()
    proven = task.verified()
    assert (proven["counts"]["keys"], proven["record"]) == (102, done["record"])
    assert server.client("admin").dbsize() == 100
    assert task.record()["record"] == {}
    assert task.verified() == {"changed": False, "record": {}, "counts": {}}


def test_data_that_are_not_there_are_noticed(server: Server) -> None:
    """A Redis that starts without its files is well, and empty."""
    task = upgrade(server)
    task.snapshot()
    server.stop()
    shutil.rmtree(server.directory / "appendonlydir")
    server.start()
    with pytest.raises(UpgradeError, match="not loaded what was there before and what was written last"):
        task.verified()
    assert task.record()["record"]


def test_what_came_after_the_rewrite_counts_too(server: Server) -> None:
    task = upgrade(server)
    task.snapshot()
    server.client("admin").delete(redis_upgrade.MARKS[1])
    with pytest.raises(UpgradeError, match="has not loaded what was written last:"):
        task.verified()


@pytest.mark.parametrize(
    ("what", "complaint"),
    [
        ({"role": "slave"}, "is a slave now"),
        ({"redis_version": "7.0.14"}, "Redis 7.0.14 runs, and 7.0.15 is installed"),
        ({"aof_last_write_status": "err"}, "refuses writes"),
    ],
)
def test_a_redis_that_is_not_as_it_should_be_is_not_proven(what: dict[str, Any], complaint: str) -> None:
    [found] = unproven(FIT | what, ["m", "m"], "m", "7.0.15")
    assert complaint in found


def test_check_mode_copies_nothing(server: Server) -> None:
    task = upgrade(server, check=True)
    assert task.snapshot()["changed"]
    assert not task.directory.exists()
    assert server.client("admin").dbsize() == 100


def test_the_version_of_before_is_that_of_the_first_try(server: Server) -> None:
    """A run that goes on after an interruption finds the new packages, and still knows the way back."""
    first = upgrade(server, version="5:7.0.1-1").snapshot()
    shutil.rmtree(first["record"]["snapshot"])  # they are named by the second
    again = upgrade(server).snapshot()
    assert again["record"]["from"] == "5:7.0.1-1"


def test_a_snapshot_can_be_put_back(server: Server) -> None:
    """What came after it is not in it, though Redis goes on with the same files."""
    task = upgrade(server)
    snapshot = task.snapshot()["record"]["snapshot"]
    server.client("admin").set("later", "1")
    server.stop()
    shutil.rmtree(server.directory / "appendonlydir")
    shutil.copytree(Path(snapshot, "appendonlydir"), server.directory / "appendonlydir")
    server.start()
    client = server.client("admin")
    assert (client.dbsize(), client.get("later"), client.get("key:99")) == (102, None, "99")


def test_only_root_sees_snapshots(server: Server) -> None:
    task = upgrade(server)
    task.snapshot()
    assert task.directory.stat().st_mode & 0o777 == 0o700


def test_most_of_a_snapshot_is_a_link(server: Server) -> None:
    """The base, that is; what is appended to is a copy."""
    task = upgrade(server)
    task.snapshot()
    links = {file.suffix: file.stat().st_nlink for file in task.directory.glob("*/appendonlydir/*")}
    assert links == {".rdb": 2, ".aof": 1, ".manifest": 1}


def test_snapshots_are_bounded(tmp_path: Path) -> None:
    for name in (
        "20260101T000000Z",
        "20260102T000000Z",
        "20260103T000000Z",
        ".20260104T000000Z.partial",
        "packages",
    ):
        (tmp_path / name).mkdir()
    redis_snapshot.prune(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "20260102T000000Z",
        "20260103T000000Z",
        "packages",
    ]


def test_a_snapshot_that_cannot_be_read_is_refused(server: Server) -> None:
    task = upgrade(server)
    task.snapshot()
    [base] = task.directory.glob("*/appendonlydir/*.base.rdb")
    data = bytearray(base.read_bytes())
    data[len(data) // 2] ^= 0xFF
    base.unlink()
    base.write_bytes(data)
    with pytest.raises(SnapshotError, match="redis-check-aof cannot read"):
        task.readable()


def test_files_that_a_rewrite_replaces_are_copied_anew(server: Server, tmp_path: Path) -> None:
    """A snapshot is of one moment, or none."""
    source, manifest = server.directory / "appendonlydir", "appendonly.aof.manifest"
    copy = redis_snapshot._copy
    replaced: list[Path] = []

    def interrupted(old: Path, new: Path) -> None:
        """Copy, and the first time let Redis rewrite the files meanwhile."""
        if not replaced:
            replaced.append(old)
            redis_upgrade.rewrite(server.client("admin"), 30)
        copy(old, new)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(redis_snapshot, "_copy", interrupted)
        redis_snapshot.take(source, manifest, tmp_path / "copy")
    named = {name for name, _ in redis_snapshot.parse_manifest((source / manifest).read_text())}
    assert {path.name for path in (tmp_path / "copy" / "appendonlydir").iterdir()} == {*named, manifest}


def test_nothing_is_followed_out_of_redis_s_directory(tmp_path: Path) -> None:
    """Root reads what Redis's user may have laid there."""
    source = tmp_path / "appendonlydir"
    source.mkdir()
    (tmp_path / "secret").write_text("root's")
    (source / "m").write_text("file a seq 1 type i\n")
    (source / "a").symlink_to(tmp_path / "secret")
    with pytest.raises(SnapshotError, match="cannot be copied"):
        redis_snapshot.take(source, "m", tmp_path / "copy")
    (source / "m").write_text("file ../secret seq 1 type i\n")
    with pytest.raises(SnapshotError, match="no plain name"):
        redis_snapshot.take(source, "m", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
