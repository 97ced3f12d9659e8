# SPDX-License-Identifier: MIT
"""The access rights of the fleet's files on its hosts, and whether the units' sandboxes hold."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from ansible_collections.fleet.celery.plugins.filter.celery_worker import user

if TYPE_CHECKING:
    from tests.fleet.support.fleet import Fleet, Node
    from tests.fleet.support.hosts import Host

# Files that hold a secret: path, owner, group, mode.
SECRET_FILES = {
    "all": ["{tls}/host.key root fleet-tls 640"],
    "redis": ["/etc/redis/users.acl root redis 640", "/etc/redis/functions.json root root 600"],
    "workers": [
        "/etc/celery/app.env root root 600",
        "/etc/celery/fleet.env root root 600",
        "/etc/celery/ops.env root root 600",
        "/etc/celery/worker.env root root 600",
    ],
    "beat": [
        "/etc/celery/app.env root root 600",
        "/etc/celery/fleet.env root root 600",
        "/etc/celery/ops.env root root 600",
        "/etc/celery/beat.env root root 600",
    ],
    "flower": [
        "/etc/celery/app.env root root 600",
        "/etc/celery/fleet.env root root 600",
        "/etc/celery/ops.env root root 600",
        "/etc/celery/flower.env root root 600",
        "/etc/nginx/flower.htpasswd root www-data 640",
    ],
}

# What a service must not read or write, though it may be there. {app} is the app's directory. Not here is
# /dev/shm, which everybody may write to: the semaphores of a pool's processes are there.
UNREADABLE = [
    "{tls}/host.key",
    "/etc/celery/app.env",
    "/etc/celery/fleet.env",
    "/etc/celery/ops.env",
    "/etc/celery/worker.env",
    "/etc/celery/beat.env",
    "/etc/celery/flower.env",
    "/etc/nginx/flower.htpasswd",
    "/etc/redis/users.acl",
    "/etc/redis/functions.json",
    "/etc/shadow",
    "/var/lib/redis",
    "/root",
    "/home",
]
UNWRITABLE = [
    "/etc",
    "/etc/celery",
    "/etc/systemd/system",
    "{app}",
    "{app}/current",
    "{app}/current/bin",
    "/opt/celery/fleet",
    "/opt/celery/fleet/current/bin",
    "/usr/local/bin",
    "/var/lib",
    "/run",
    "/root",
]


@pytest.mark.parametrize("group", SECRET_FILES)
def test_secret_files(fleet: Fleet, group: str) -> None:
    """A file that holds a secret belongs to root, and may be read by the one service that needs it."""
    for host in fleet.group(group):
        expected = [line.format(tls=host.variables["fleet_tls_dir"]) for line in SECRET_FILES[group]]
        paths = [line.split()[0] for line in expected]
        assert host.sh('stat --format="%n %U %G %a" -- "$@"', *paths).splitlines() == expected


def test_no_environment_where_it_is_not_needed(host: Host) -> None:
    """A host has the secrets of the components that it runs, and no other's."""
    components = {"workers": "worker.env", "beat": "beat.env", "flower": "flower.env"}
    found = set(host.sh("ls /etc/celery 2>/dev/null || true").split())
    assert found & set(components.values()) == {
        name for group, name in components.items() if group in host.groups
    }


def test_only_root_may_write(host: Host) -> None:
    """Nothing that shapes a service, its code included, can be changed by anybody but root."""
    tls = host.variables["fleet_tls_dir"]
    places = [
        "/opt/celery",
        "/etc/celery",
        tls,
        "/etc/redis",
        "/etc/nginx",
        "/etc/systemd/system",
        "/usr/local",
    ]
    closed = r"( -type d ! -perm -001 -prune )"  # nobody else comes to what is in it
    writable = r"( ! -type l ( -perm /022 -o ! -user root ) -print )"
    found = host.sh('find "$@" 2>/dev/null || true', *places, *closed.split(), "-o", *writable.split())
    # Debian gives the directory /etc/redis to redis, and lets the group staff write to /usr/local
    assert {path for path in found.splitlines() if not debian_owns(host, path)} == set()


def debian_owns(host: Host, path: str) -> bool:
    """Whether a directory has the owner that the distribution gives it."""
    return path == "/etc/redis" or (path.startswith("/usr/local/") and host.infra.file(path).group == "staff")


@pytest.mark.group("workers")
def test_releases(host: Host) -> None:
    """The current release is one of those that are there, and no more are kept than asked for."""
    releases = f"/opt/celery/{host.variables['celery_app_name']}/releases"
    kept = host.sh('ls "$1"', releases).split()
    current = host.sh('readlink -f "$1/../current"', releases).strip()
    assert current in [f"{releases}/{name}" for name in kept]
    assert 1 <= len(kept) <= host.variables["celery_app_keep_releases"]


@pytest.mark.group("workers")
def test_the_fleet_has_a_venv_of_its_own(host: Host) -> None:
    """Flower and the operators' tables are there and not in the app's, which they could contradict."""
    app = f"/opt/celery/{host.variables['celery_app_name']}/current"
    script = 'cd "$1"/lib/python3*/site-packages && ls -d flower rich fleet_runtime demo 2>/dev/null || true'
    assert set(host.sh(script, app).split()) == {"fleet_runtime", "demo"}
    assert set(host.sh(script, "/opt/celery/fleet/current").split()) == {"flower", "rich", "fleet_runtime"}
    assert 1 <= len(host.sh("ls /opt/celery/fleet/releases").split()) <= 2
    assert host.sh('stat --format="%U %G %a" "$1/fleet-app.json"', app).strip() == "root root 644"


@pytest.mark.group("flower")
def test_flower_has_nothing_of_the_app(host: Host) -> None:
    """Neither its environment, which may hold passwords, nor its code."""
    pid = host.unit("flower.service").main_pid
    names = {line.partition("=")[0] for line in host.sh('tr "\\0" "\\n" </proc/$1/environ', str(pid)).split()}
    assert "FLEET_APP_FILE" in names
    assert not {"FLEET_APP", *(host.variables.get("celery_app_environment") or {})} & names
    app = f"/opt/celery/{host.variables['celery_app_name']}/"
    assert app not in host.sh('cat "/proc/$1/maps"', str(pid))


# Print each path that can be read, or written to.
READ = 'for path; do if cat "$path" || ls "$path"/*; then echo "$path" >&3; fi; done 3>&1 >/dev/null 2>&1'
WRITE = 'for path; do if touch "$path/canary"; then rm "$path/canary"; echo "$path"; fi; done 2>/dev/null'


def tried(host: Host, pid: int, account: str, script: str, paths: list[str]) -> set[str]:
    """Try something with each path, as a user with the file systems of a process; return where it worked."""
    places = {
        "tls": host.variables["fleet_tls_dir"],
        "app": f"/opt/celery/{host.variables['celery_app_name']}",
    }
    group = host.sh('id --group "$1"', account).strip()
    enter = f"nsenter --target={pid} --mount setpriv --reuid={account} --regid={group} --init-groups"
    output = host.sh(f'{enter} sh -c "$@"', script, "sh", *(path.format(**places) for path in paths))
    return set(output.splitlines())


def check_sandbox(host: Host, unit: str, account: str, *writable: str) -> None:
    """Assert that a unit's processes have no right that they do not need."""
    pid = host.unit(unit).main_pid
    status = dict(re.findall(r"^(\w+):\s+(\S+)$", host.sh('cat "/proc/$1/status"', str(pid)), re.MULTILINE))
    assert {name: status[name] for name in status if name.startswith("Cap") and int(status[name], 16)} == {}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")

    # what can be read and written shows that the others were looked for in earnest
    readable = [f"{host.variables['fleet_tls_dir']}/ca.crt"]
    assert tried(host, pid, account, READ, readable + UNREADABLE) == set(readable)
    assert tried(host, pid, account, WRITE, [*writable, *UNWRITABLE]) == set(writable)


@pytest.mark.group("workers")
def test_sandbox_of_nodes(node: Node) -> None:
    """A node reads no secret of others, and writes nowhere but in its own temporary directory."""
    check_sandbox(node.host, node.unit, user(node.pool), "/tmp")


@pytest.mark.group("beat")
def test_sandbox_of_beat(host: Host) -> None:
    """Beat reads no secret of others, and writes nowhere but in its own temporary directory."""
    check_sandbox(host, "celery-beat.service", "celery-beat", "/tmp")


@pytest.mark.group("flower")
def test_sandbox_of_flower(host: Host) -> None:
    """Flower reads no secret of others, and writes nowhere but to its state."""
    check_sandbox(host, "flower.service", "flower", "/tmp", "/var/lib/flower")
