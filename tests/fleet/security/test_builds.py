# SPDX-License-Identifier: MIT
"""What a release brings never runs with root's rights, and sees nothing of the host while it is installed."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zipfile
from typing import TYPE_CHECKING, Literal

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from tests.fleet.support.fleet import Fleet
    from tests.fleet.support.hosts import Host
    from tests.fleet.support.plays import Plays, Run

ROOT = "/opt/celery/attack"

# Tries what an attacker would, and tells of all that succeeds. It runs as part of a build hook, of each start
# of the release's interpreter, and of the app.
ATTACK = """
import glob, json, os, socket, urllib.request
def tried(action):
    try:
        action()
    except OSError:
        return False
    return True
def attack():
    targets = ["/root", "/etc", "/run", "/usr/local/bin", "/opt/celery", "/etc/cron.d", "/var/lib/fleet"]
    targets += glob.glob("/opt/celery/*/releases/*/bin")
    secrets = ["/root", *glob.glob("/etc/celery/*.env"), *glob.glob("/etc/fleet/tls/*.key"), "/etc/shadow"]
    secrets += ["/etc/celery/app.env", "/etc/celery/ops.env", "/etc/redis/users.acl"]
    mine = os.environ.get("MINE", "/nowhere")
    targets = [t for t in targets if not t.startswith(mine)]
    wrote = [t for t in targets if tried(lambda: open(t + "/attacked", "w").close())]
    read = [s for s in secrets if tried(lambda: os.listdir(s) if os.path.isdir(s) else open(s).read())]
    net = {"port": lambda: socket.create_connection(("127.0.0.1", 22), 5),
           "name": lambda: socket.getaddrinfo("deb.debian.org", 80),
           "proxy": lambda: urllib.request.urlopen("http://127.0.0.1:8009/", timeout=5)}
    net = [name for name, action in net.items() if "GATED" in os.environ and tried(action)]
    others = [p for p in glob.glob("/proc/[0-9]*") if os.stat(p).st_uid != os.getuid()]
    return {"uid": os.getuid(), "wrote": wrote, "read": read, "others": others, "net": net}
"""

HOOK = """
import base64, hashlib, json, zipfile
from attack import attack
def build_wheel(directory, config_settings=None, metadata_directory=None):
    name = "hooked-1.0-py3-none-any.whl"
    with zipfile.ZipFile(f"{directory}/{name}", "w") as wheel:
        wheel.writestr("hook.json", json.dumps(attack()))
        wheel.writestr("hooked-1.0.dist-info/METADATA",
                       "Metadata-Version: 2.1\\nName: hooked\\nVersion: 1.0\\n")
        wheel.writestr("hooked-1.0.dist-info/WHEEL",
                       "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("hooked-1.0.dist-info/RECORD", "")
    return name
"""

# Each start of the interpreter: if it is root's, or may write anywhere, that is seen afterwards.
PTH = "import attack; attack.attack()\n"

CELERY = """#!python
import json, attack
print("SEEN", json.dumps(attack.attack()))
raise SystemExit(1)
"""


def tarball(contents: dict[str, bytes], mode: Literal["w:", "w:gz"]) -> bytes:
    """Return a tar archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def evil_release(index: Path | None = None) -> bytes:
    """Return the archive of a release with a trap in a wheel, and another one in an sdist.

    Args:
        index: Where the sdist is put as into a package index, in place of the archive.
    """
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as file:
        about = "evil-1.0.dist-info"
        file.writestr("attack.py", ATTACK)
        file.writestr("evil.pth", PTH)
        file.writestr("evil-1.0.data/scripts/celery", CELERY)
        file.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n")
        file.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{about}/RECORD", "")
    toml = '[build-system]\nrequires = []\nbuild-backend = "hook"\nbackend-path = ["."]\n'
    source = {"hook.py": HOOK, "attack.py": ATTACK, "pyproject.toml": toml}
    sdist = tarball({f"hooked-1.0/{name}": text.encode() for name, text in source.items()}, "w:gz")
    files = {"evil-1.0-py3-none-any.whl": wheel.getvalue(), "hooked-1.0.tar.gz": sdist}
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    lines = [f"./{name} --hash=sha256:{digest}\n" for name, digest in digests.items()]
    if index:
        name = "hooked-1.0.tar.gz"
        folder = index / "simple" / "hooked"
        folder.mkdir(parents=True)
        (folder / name).write_bytes(files.pop(name))
        (folder / "index.html").write_text(f'<a href="{name}#sha256={digests[name]}">{name}</a>\n')
        lines[-1] = f"hooked==1.0 --hash=sha256:{digests[name]}\n"
    files["requirements.txt"] = "".join(lines).encode()
    files["release.json"] = b'{"id": "evil"}'
    return tarball(files, "w:")


@pytest.fixture
def victim(fleet: Fleet) -> Iterator[Host]:
    """A host on which an app of an attacker is installed, beside the fleet's own."""
    host = fleet.group("workers")[0]
    host.sh('rm -rf "$1"', ROOT)
    # uv keeps what it has once built
    host.sh("/opt/celery/uv/bin/uv --quiet --cache-dir /opt/celery/cache cache clean hooked")
    yield host
    host.sh('rm -rf "$1"', ROOT)


def install(
    plays: Plays,
    host: Host,
    scratch: Path,
    build: list[str],
    tasks: list[object],
    index: Path | None = None,
    before: Iterable[object] = (),
) -> Run:
    """Install the release as the role does.

    Args:
        plays: What runs playbooks.
        host: Where it is installed.
        scratch: A directory for the play and the archive.
        build: Packages that may be built from their source.
        tasks: What runs afterwards.
        index: A folder for the package to build, which the host serves as its package index on port 8008.
        before: What runs first.
    """
    archive = scratch / "evil.tar"
    archive.write_bytes(evil_release(index))
    variables = {"MINE": f"{ROOT}/releases/evil", **({"GATED": "1"} if index else {})}
    play = {
        "hosts": host.name,
        "become": True,
        "gather_facts": False,
        "tasks": [
            {"ansible.builtin.file": {"path": f"{ROOT}/releases", "state": "directory", "mode": "0755"}},
            *before,
            {"ansible.builtin.copy": {"src": str(archive), "dest": f"{ROOT}/releases/", "mode": "0600"}},
            {
                "fleet.celery.celery_release": {
                    "state": "present",
                    "path": ROOT,
                    "id": "evil",
                    "archive": f"{ROOT}/releases/evil.tar",
                    "python": "/usr/bin/python3",
                    "uv": "/opt/celery/uv/bin/uv",
                    "user": "celery-build",
                    "sandbox": "{{ [] | fleet.celery.fleet_sandbox(jit=true) }}",
                    "build_packages": build,
                    "index_url": "http://127.0.0.1:8008/simple" if index else "",
                    "index_environment": variables,
                }
            },
            *tasks,
        ],
    }
    (scratch / "attack.yml").write_text(json.dumps([play]))
    return plays.run(playbook=str(scratch / "attack.yml"))


def attacked(host: Host) -> list[str]:
    """Return the files that an attack has left."""
    return host.sh("find / -xdev -name attacked -not -path '/proc/*' 2>/dev/null || true").split()


def test_a_release_is_installed_without_rights(plays: Plays, victim: Host, tmp_path: Path) -> None:
    """Neither the hook of a package that may be built, nor a `.pth`, nor the app sees or changes anything."""
    check = {
        "fleet.celery.celery_release": {
            "state": "checked",
            "path": ROOT,
            "id": "evil",
            "uv": "/opt/celery/uv/bin/uv",
            "environment": "",
            "sandbox": "{{ [] | fleet.celery.fleet_sandbox(jit=true) }}",
        },
    }
    run = install(plays, victim, tmp_path, ["hooked"], [check])
    assert run.code, f"the app says that it is not fit to run: {run}"
    said = run.output.replace("\\", "")  # which are Ansible's
    app = json.JSONDecoder().raw_decode(said[said.index("SEEN {") + len("SEEN ") :])[0]
    hook = json.loads(victim.sh('cat "$1"/releases/evil/lib/python3*/site-packages/hook.json', ROOT))
    uids = {app.pop("uid"), hook.pop("uid")}
    assert 0 not in uids
    assert app == hook == {"wrote": [], "read": [], "others": [], "net": []}
    assert attacked(victim) == []
    whose = 'find "$1"/releases/evil ! -type l \\( ! -user root -o -perm /022 -o -perm /7000 \\) -print'
    assert victim.sh(whose, ROOT) == ""
    assert victim.sh('ls -A "$1"/releases/evil/lib/python3*/site-packages/__pycache__', ROOT)


def test_what_is_built_reaches_the_index_only(plays: Plays, victim: Host, tmp_path: Path) -> None:
    """No port of the host, no name service, and nothing by the proxy; the package comes from the index."""
    index = tmp_path / "index"
    served = f"{ROOT}/index"
    serve = {
        "ansible.builtin.shell": (
            "for port in 8008 8009; do systemctl stop attack-$port 2>/dev/null; "
            "systemd-run --quiet --collect --unit=attack-$port "
            f"python3 -m http.server $port --bind 127.0.0.1 --directory {served}; done; "
            "until python3 -c 'import urllib.request; "
            'urllib.request.urlopen("http://127.0.0.1:8009/simple/hooked/")\' 2>/dev/null; do sleep 0.2; done'
        )
    }
    copy = {"ansible.builtin.copy": {"src": f"{index}/", "dest": served, "mode": "preserve"}}
    try:
        run = install(plays, victim, tmp_path, ["hooked"], [], index, before=[copy, serve])
        run.expect_success()
        hook = json.loads(victim.sh('cat "$1"/releases/evil/lib/python3*/site-packages/hook.json', ROOT))
        assert hook["net"] == []
        asked = victim.sh("journalctl -u attack-8008 -o cat")
        assert "hooked-1.0.tar.gz" in asked
        assert "GET" not in victim.sh("journalctl -u attack-8009 -o cat | grep -v simple/hooked || true")
    finally:
        victim.sh("systemctl stop attack-8008 attack-8009")


@pytest.mark.long
def test_what_has_no_wheel_is_refused(plays: Plays, victim: Host, tmp_path: Path) -> None:
    """A package that nobody allowed to be built is named, with the variable, and its hook does not run."""
    run = install(plays, victim, tmp_path, [], [])
    assert run.code
    assert "hooked" in run.output
    assert "celery_app_build_packages" in run.output
    assert victim.sh('ls -A "$1"/releases', ROOT).split() == ["evil.tar"]


@pytest.mark.long
def test_an_installation_that_was_left_behind_is_ended(plays: Plays, victim: Host, tmp_path: Path) -> None:
    """An interrupted run's goes on on the host; the next run ends it, says so, and installs alone."""
    holder = (
        "import fcntl, os, subprocess, time; lock = open('/opt/celery/.lock', 'w'); "
        "fcntl.flock(lock, fcntl.LOCK_EX); print(os.getpid(), file=lock, flush=True); "
        "subprocess.run(['systemd-run', '--wait', '--unit=celery-release-install', 'sleep', '600'])"
    )
    victim.sh('systemd-run --quiet --unit=left-behind python3 -c "$1"', holder)
    victim.sh("until systemctl is-active -q celery-release-install; do sleep 0.1; done")
    run = install(plays, victim, tmp_path, ["hooked"], []).expect_success()
    assert "still installing, for a run that is over" in run.output
    victim.sh("! systemctl is-active -q left-behind.service celery-release-install.service")
