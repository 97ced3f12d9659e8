# SPDX-License-Identifier: MIT
"""The sandbox of build hooks: for root and for any other user, and what it leaves behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import packaging
import pytest
from ansible_collections.fleet.celery.plugins.module_utils.app_release_sandbox import Sandbox
from ansible_collections.fleet.celery.plugins.module_utils.app_release_source import ReleaseError

UTILS = Path(__file__).parents[2] / "plugins" / "module_utils"
OPERATOR = 12345  # a user whom nothing knows

# Tells what a command in the sandbox sees; its argument is the directory that it may write to.
LOOK = """
import json, os, socket, sys
def tried(action):
    try:
        return action()
    except OSError as error:
        return error.strerror
def capabilities():
    lines = open("/proc/self/status").read().splitlines() if os.path.exists("/proc/self/status") else []
    return sorted({line.split()[1].lstrip("0") for line in lines if line.startswith("Cap")})
print(json.dumps({
    "home": sorted(os.listdir("/home")) if os.path.isdir("/home") else [],
    "etc": [name for name in ("shadow", "ssh", "ansible") if os.path.exists(f"/etc/{name}")],
    "beside": os.listdir(os.path.dirname(sys.argv[1])),
    "usr": tried(lambda: open("/usr/attacked", "w").close()),
    "own": tried(lambda: open("own", "w").close()),
    "net": tried(lambda: socket.create_connection(("127.0.0.1", 22), 1).close()),
    "capabilities": capabilities(),
    "environment": sorted(os.environ),
}))
"""

RUN = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from ansible_collections.fleet.celery.plugins.module_utils.app_release_sandbox import Sandbox
work = Path(sys.argv[2])
argv = ["/usr/bin/python3", "-c", sys.argv[3], str(work)]
print(Sandbox().run(argv, "it failed", env={"GIVEN": "1"}, cwd=work, work=work))
"""

pytestmark = pytest.mark.skipif(not Path("/usr/bin/python3").exists(), reason="this is no Debian")


def seen(user: int) -> dict[str, Any]:
    """Return what a command sees in the sandbox of a user, who has a secret beside the directory."""
    with tempfile.TemporaryDirectory(prefix="sandbox-") as directory:
        top = Path(directory)
        package = top / "lib" / "ansible_collections" / "fleet" / "celery" / "plugins" / "module_utils"
        package.mkdir(parents=True)
        for path in UTILS.glob("app_release*.py"):
            shutil.copy(path, package)
        shutil.copytree(Path(packaging.__file__).parent, top / "lib" / "packaging")
        work = top / "own" / "work"
        work.mkdir(parents=True)
        (top / "own" / "secret").write_text("CANARY")
        for path in (top, *top.rglob("*")):
            os.chown(path, user, user)
            path.chmod(0o755)
        argv = ["/usr/bin/python3", "-c", RUN, str(top / "lib"), str(work), LOOK]
        env = {"PATH": os.environ["PATH"], "SECRET": "CANARY"}
        done = subprocess.run(
            argv, user=user, group=user, extra_groups=[], env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert (work / "own").stat().st_uid == user
        found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
@pytest.mark.parametrize("user", [0, OPERATOR], ids=["root", "an operator"])
def test_whoever_builds(user: int) -> None:
    """Root's build hooks see no more than those of another user, and neither see what that user could."""
    found = seen(user)
    assert set(found.pop("environment")) <= {"GIVEN", "HOME", "LANG", "LC_CTYPE", "OLDPWD", "PATH", "PWD"}
    assert found.pop("usr") in {"Read-only file system", "Permission denied"}
    assert found.pop("net") in {"Network is unreachable", "Connection refused"}  # of its own loopback
    assert found == {"home": [], "etc": [], "beside": ["work"], "own": None, "capabilities": [""]}


def test_the_words_of_a_command_that_fails(tmp_path: Path) -> None:
    """They follow what was being done."""
    work = tmp_path / "work"
    work.mkdir()
    with pytest.raises(ReleaseError, match=r"It cannot be built:\noh no"):
        Sandbox().run(
            ["sh", "-c", "echo oh no >&2; exit 3"], "It cannot be built", env={}, cwd=work, work=work
        )


def test_nothing_outlives_it(tmp_path: Path) -> None:
    """What a command starts in the background ends with it, and no mount is left."""
    work = tmp_path / "work"
    work.mkdir()
    Sandbox().run(["sh", "-c", "sleep 4711 &"], "failed", env={}, cwd=work, work=work)
    listing = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert "sleep 4711" not in listing
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
