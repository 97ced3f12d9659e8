# SPDX-License-Identifier: MIT
"""The role redis: what it renders, read by real programs, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from ansible.template import trust_as_template

from tests.unit.redis_server import PASSWORDS, Server
from tests.unit.rendering import PROJECT

if TYPE_CHECKING:
    from pathlib import Path

CHECK = PROJECT / "roles/redis/files/fleet-redis-check"


@pytest.fixture
def server(tmp_path: Path) -> Server:
    """A server that is not started."""
    return Server(tmp_path)


def directives(text: str) -> list[str]:
    """Return the names of a redis.conf's directives."""
    return [line.split()[0] for line in text.splitlines() if line and not line.startswith("#")]


def test_redis_has_what_the_file_says(server: Server) -> None:
    server.write(redis_maxmemory="64mb", redis_appendfsync="always", redis_maxclients=100)
    server.start()
    live = server.client("admin").config_get("*")
    server.stop()
    expected = {
        "port": "0",
        "tls-port": str(server.port),
        "tls-auth-clients": "no",
        "tls-protocols": "TLSv1.2 TLSv1.3",
        "unixsocket": "",
        "protected-mode": "yes",
        "appendonly": "yes",
        "appendfsync": "always",
        "aof-use-rdb-preamble": "yes",
        "save": "",
        "maxmemory": str(64 * 1024**2),
        "maxmemory-policy": "noeviction",
        "maxclients": "100",
    }
    assert expected.items() <= live.items()


def test_a_reader_can_take_it_in(server: Server) -> None:
    text = server.role().template("redis.conf.j2")
    names = directives(text)
    assert len(names) == len(set(names)) <= 45
    assert all(group.startswith("#") for group in text.strip().split("\n\n"))


def test_extra_directives_come_last_and_win(server: Server) -> None:
    extra = {"hz": 50, "lazyfree-lazy-expire": True, "save": ["3600 1", "60 100"], "loglevel": "verbose"}
    server.write(redis_extra_config=extra)
    server.start()
    live = server.client("admin").config_get("*")
    server.stop()
    assert (live["hz"], live["lazyfree-lazy-expire"]) == ("50", "yes")
    assert (live["save"], live["loglevel"]) == ("3600 1 60 100", "verbose")


@pytest.mark.parametrize(
    ("given", "mebibytes"),
    [("auto", 1638), ("512mb", 512), ("3gb", 3072)],
)
def test_memory_and_disk_follow_from_the_host(server: Server, given: str, mebibytes: int) -> None:
    role = server.role(redis_maxmemory=given)
    assert f"\nmaxmemory {mebibytes}mb\n" in role.template("redis.conf.j2")
    assert role.evaluate("__redis_disk_bytes | int") == 2 * mebibytes * 1024**2


@pytest.mark.parametrize(
    ("bind", "reached"),
    [
        (["192.0.2.1", "127.0.0.1"], "192.0.2.1"),
        (["0.0.0.0"], "127.0.0.1"),
        (["*"], "127.0.0.1"),
        (["-::1"], "::1"),
        (["::"], "::1"),
    ],
)
def test_the_role_reaches_the_first_address(server: Server, bind: list[str], reached: str) -> None:
    assert server.role(redis_bind=bind).evaluate("__redis_host") == reached


def test_systemd_takes_the_drop_in(server: Server, tmp_path: Path) -> None:
    # Not the package's own unit: the package would start a server here.
    unit = tmp_path / "redis-server.service"
    unit.write_text("[Service]\nType=notify\nExecStart=/usr/bin/true\n")
    dropins = tmp_path / "redis-server.service.d"
    dropins.mkdir()
    text = server.role(redis_maxclients=70000).template("redis-server.service.d/fleet.conf.j2")
    (dropins / "fleet.conf").write_text(text)
    command = ["systemd-analyze", "verify", "--man=no", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "fleet.conf" not in done.stderr, done.stderr
    assert "LimitNOFILE=71024" in text
    # else systemd would wait for ever, after ExecStartPost, for a file that Redis does not write
    assert "\nPIDFile=\n" in text
    # a program that fails must not end a Redis that serves
    assert "\nExecStartPost=+-/usr/local/sbin/fleet-redis-functions load\n" in text


REFUSED: dict[str, dict[str, Any]] = {
    "redis_bind": {"redis_bind": []},
    "redis_passwords": {"redis_passwords": PASSWORDS | {"web": "too short"}},
    "redis_passwords with a user too few": {
        "redis_passwords": {user: word for user, word in PASSWORDS.items() if user != "ops"}
    },
    "redis_passwords with a user too many": {"redis_passwords": PASSWORDS | {"guest": "x" * 20}},
    "redis_passwords on two lines": {"redis_passwords": PASSWORDS | {"web": "x" * 20 + "\nuser x on nopass"}},
    "redis_queues": {"redis_queues": []},
    "redis_queues with an ACL pattern": {"redis_queues": ["default", "*"]},
    "redis_queues with a second rule": {"redis_queues": ["default +@all"]},
    "redis_queues with a key of kombu": {"redis_queues": ["unacked_index"]},
    "redis_queues with results": {"redis_queues": ["celery-task-meta-x"]},
    "redis_queues with remote control": {"redis_queues": ["x.celery.pidbox"]},
    "redis_exchanges": {"redis_exchanges": ["shop", "*"]},
    "redis_exchanges with remote control": {"redis_exchanges": ["celery.pidbox"]},
    "redis_expiring_queues": {"redis_expiring_queues": ["other"]},
    "redis_broadcasts": {"redis_broadcasts": {"news": "*"}},
    "redis_broadcasts with a key of kombu": {"redis_broadcasts": {"unacked": "default"}},
    "redis_app_key_prefixes of beat": {"redis_app_key_prefixes": {"beat": ["qo_"]}},
    "redis_app_key_prefixes of everything": {"redis_app_key_prefixes": {"web": ["*"]}},
    "redis_app_key_prefixes too short": {"redis_app_key_prefixes": {"web": ["c"]}},
    "redis_app_key_prefixes with results": {"redis_app_key_prefixes": {"web": ["celery-"]}},
    "redis_app_key_prefixes with leases": {"redis_app_key_prefixes": {"worker": ["fleet:leases"]}},
    "redis_app_key_prefixes with a queue": {"redis_app_key_prefixes": {"web": ["def"]}},
    "redis_db": {"redis_db": 16},
    "redis_maxmemory": {"redis_maxmemory": "lots"},
    "redis_maxmemory_percent": {"redis_maxmemory_percent": 100},
    "redis_disk_space": {"redis_disk_space": "12"},
    "redis_extra_config": {"redis_extra_config": {"port": 6379}},
    "redis_extra_config with a user": {"redis_extra_config": {"user": "x on nopass +@all ~*"}},
    "redis_extra_config in capitals": {"redis_extra_config": {"PORT": 6379}},
    "redis_extra_config with a second line": {"redis_extra_config": {"hz": "10\nport 6379"}},
}


def refusals(server: Server, **variables: Any) -> list[str]:
    """Return the messages of those checks of tasks/validate.yml that do not hold."""
    role = server.role(**variables)
    tasks = yaml.safe_load((role.path / "tasks/validate.yml").read_text())
    checks = next(task["loop"] for task in tasks if "loop" in task)

    def value(text: str) -> Any:
        return role.templar.template(trust_as_template(text))

    return [str(value(check["message"])) for check in checks if not value(check["holds"])]


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(server: Server, case: str) -> None:
    (message,) = refusals(server, **REFUSED[case])
    assert message.startswith(case.split()[0])
    assert not any(password in message for password in PASSWORDS.values())


def test_refuses_nothing_else(server: Server) -> None:
    names = ["default", "Mail-2", "a.b_c:d", "news"]
    more = {
        "redis_exchanges": ["shop.orders"],
        "redis_expiring_queues": ["Mail-2"],
        "redis_broadcasts": {"news": "default", "alerts": ""},
        "redis_app_key_prefixes": {"worker": ["qo_"], "web": ["qo_", "shop:lock:"]},
    }
    assert refusals(server, redis_queues=names, redis_extra_config={"hz": 5}, **more) == []


@pytest.fixture
def readable(server: Server) -> Server:
    """A server whose files the user redis can read, as those of a host."""
    if os.geteuid() != 0:
        pytest.skip("fleet-redis-check runs a server as the user redis, which root only can")
    for directory in (server.directory, *server.directory.parents[:2]):
        directory.chmod(directory.stat().st_mode | 0o055)
    (server.directory / "host.key").chmod(0o644)
    server.write()
    return server


def check(server: Server, kind: str, text: str) -> subprocess.CompletedProcess[str]:
    """Run fleet-redis-check."""
    candidate = server.directory / "candidate"
    candidate.write_text(text)
    return subprocess.run([str(CHECK), kind, str(candidate)], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("kind", "name"), [("config", "redis.conf"), ("acl", "users.acl")])
def test_the_check_takes_what_the_role_renders(readable: Server, kind: str, name: str) -> None:
    done = check(readable, kind, (readable.directory / name).read_text())
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("hz fast", "argument couldn't be parsed into an integer"),
        ("include /nonexistent", "can't open config file '/nonexistent'"),
        ("nonsense yes", ">>> 'nonsense yes'"),  # the reason is another one from Redis 8 on
        ("tls-cert-file /nonexistent", "Failed to load certificate: /nonexistent"),
        ("tls-key-file {ca}", "Failed to load private key"),
    ],
)
def test_the_check_says_why_redis_refuses_a_config(readable: Server, line: str, complaint: str) -> None:
    text = (readable.directory / "redis.conf").read_text() + line.format(ca=readable.authority.ca_file) + "\n"
    done = check(readable, "config", text)
    assert done.returncode == 1
    assert complaint in done.stderr


@pytest.mark.parametrize(
    ("line", "complaint"),
    [("user x on +nonsense", "Unknown command"), ("nonsense", "should start with user keyword")],
)
def test_the_check_says_why_redis_refuses_an_acl(readable: Server, line: str, complaint: str) -> None:
    done = check(readable, "acl", (readable.directory / "users.acl").read_text() + line + "\n")
    assert done.returncode == 1
    assert complaint in done.stderr


def test_the_check_needs_the_key_to_be_readable_by_redis(readable: Server) -> None:
    (readable.directory / "host.key").chmod(0o600)
    done = check(readable, "config", (readable.directory / "redis.conf").read_text())
    assert done.returncode == 1
    assert "Failed to load private key" in done.stderr


def test_kernel_values_are_in_both_files(server: Server) -> None:
    role = server.role()
    values = json.loads(json.dumps(role.evaluate("__redis_kernel")))
    assert "vm.overcommit_memory = 1" in role.template("sysctl.d/60-redis.conf.j2")
    assert f"{values['huge_pages']['path']} - - - - madvise" in role.template(
        "tmpfiles.d/redis-kernel.conf.j2"
    )
