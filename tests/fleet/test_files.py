"""Who may read and write what the fleet leaves on its hosts, and whether the units' sandboxes hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.fleet.support.fleet import Fleet, Node
    from tests.fleet.support.hosts import Host

# Files that hold a secret: path, owner, group, mode.
SECRET_FILES = {
    "all": ["{tls}/host.key root fleet-tls 640"],
    "redis": ["/etc/redis/users.acl root redis 640"],
    "workers": [
        "/etc/celery/app.env root root 600",
        "/etc/celery/ops.env root root 600",
        "/etc/celery/worker.env root root 600",
    ],
    "beat": [
        "/etc/celery/app.env root root 600",
        "/etc/celery/ops.env root root 600",
        "/etc/celery/beat.env root root 600",
    ],
    "flower": [
        "/etc/celery/app.env root root 600",
        "/etc/celery/ops.env root root 600",
        "/etc/celery/flower.env root root 600",
        "/etc/nginx/flower.htpasswd root www-data 640",
    ],
}

# What a service must not read or write, though it may be there. {app} is the app's directory.
UNREADABLE = [
    "{tls}/host.key",
    "/etc/celery/app.env",
    "/etc/celery/ops.env",
    "/etc/celery/worker.env",
    "/etc/celery/beat.env",
    "/etc/celery/flower.env",
    "/etc/nginx/flower.htpasswd",
    "/etc/redis/users.acl",
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
    "/usr/local/bin",
    "/var/lib",
    "/run",
    "/dev/shm",  # noqa: S108
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
    places = [
        "/opt/celery",
        "/etc/celery",
        host.variables["fleet_tls_dir"],
        "/etc/redis",
        "/usr/local",
        "/etc/nginx",
    ]
    script = r"""find "$@" ! -type l \( -perm /022 -o ! -user root \) 2>/dev/null || true"""
    # Debian lets the group staff write to /usr/local, and gives /etc/redis to redis
    found = {path for path in host.sh(script, *places).splitlines() if path != "/etc/redis"}
    assert {path for path in found if not is_debians(host, path)} == set()


def is_debians(host: Host, path: str) -> bool:
    """Whether a directory is as the distribution's package makes it."""
    return path.startswith("/usr/local/") and host.infra.file(path).group == "staff"


@pytest.mark.group("workers")
def test_releases(host: Host) -> None:
    """The current release is one of those that are there, and no more are kept than asked for."""
    releases = f"/opt/celery/{host.variables['celery_app_name']}/releases"
    kept = host.sh('ls "$1"', releases).split()
    current = host.sh('readlink -f "$1/../current"', releases).strip()
    assert current in [f"{releases}/{name}" for name in kept]
    assert 1 <= len(kept) <= host.variables["celery_app_keep_releases"]


def sandboxed(host: Host, pid: int, user: str, script: str, *words: str) -> str:
    """Run a script as a user in the file systems that a process sees."""
    enter = [
        "nsenter",
        f"--target={pid}",
        "--mount",
        "--",
        "setpriv",
        f"--reuid={user}",
        f"--regid={user}",
        "--init-groups",
    ]
    return host.sh('"$@"', *enter, "sh", "-c", script, "sh", *words)


def check_sandbox(host: Host, unit: str, user: str) -> None:
    """Assert that a unit's processes have no right that they do not need."""
    places = {
        "tls": host.variables["fleet_tls_dir"],
        "app": f"/opt/celery/{host.variables['celery_app_name']}",
    }
    pid = host.unit(unit).main_pid
    status = dict(
        line.split(":\t", 1)
        for line in host.sh('cat "/proc/$1/status"', str(pid)).splitlines()
        if ":\t" in line
    )
    rights = {name: int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
    assert not any(rights.values())
    assert (status["NoNewPrivs"].strip(), status["Seccomp"].strip()) == ("1", "2")

    read = 'for path; do if cat "$path" >/dev/null 2>&1 || ls "$path"/* >/dev/null 2>&1; then echo "$path"; fi; done'
    write = (
        'for path; do if touch "$path/.canary" 2>/dev/null; then rm "$path/.canary"; echo "$path"; fi; done'
    )
    # what it can read and write shows that the checks see anything at all
    readable = sandboxed(
        host, pid, user, read, f"{places['tls']}/ca.crt", *(path.format(**places) for path in UNREADABLE)
    )
    writable = sandboxed(host, pid, user, write, "/tmp", *(path.format(**places) for path in UNWRITABLE))  # noqa: S108
    assert readable.split() == [f"{places['tls']}/ca.crt"]
    assert writable.split() == ["/tmp"]  # noqa: S108


@pytest.mark.group("workers")
def test_sandbox_of_nodes(node: Node) -> None:
    """A node reads no secret of others, and writes nowhere but in its own temporary directory."""
    check_sandbox(node.host, node.unit, "celery")


@pytest.mark.group("beat")
def test_sandbox_of_beat(host: Host) -> None:
    """Beat reads no secret of others, and writes nowhere but in its own temporary directory."""
    check_sandbox(host, "celery-beat.service", "celery-beat")


@pytest.mark.group("flower")
def test_sandbox_of_flower(host: Host) -> None:
    """Flower reads no secret of others, and writes nowhere but to its state."""
    check_sandbox(host, "flower.service", "flower")
