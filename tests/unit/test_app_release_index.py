# SPDX-License-Identifier: MIT
"""What a release asks a package index, on the controller and on a host, and what a private index is told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.fleet.celery.plugins.module_utils.app_release import Builder, Uv
from ansible_collections.fleet.celery.plugins.module_utils.app_release_source import Directory, ReleaseError
from ansible_collections.fleet.celery.plugins.module_utils.app_release_tree import Installer, ReleaseTree
from ansible_collections.fleet.celery.plugins.module_utils.confined import Confined

from tests.unit.package_index import PackageIndex

if TYPE_CHECKING:
    from collections.abc import Iterator

MANY = 200  # packages that the app depends on
LOGIN = "fleet:s3cret-of-the-index"
RUNTIME = """\
[build-system]
requires = ["uv_build"]
build-backend = "uv_build"
[project]
name = "rt"
version = "1.0"
[project.optional-dependencies]
all = []
"""


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PackageIndex]:
    """Serve an index that asks for a password. Nothing else is asked."""
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    monkeypatch.setattr(os, "sync", lambda: None)
    index = PackageIndex(tmp_path / "index", LOGIN)
    with index.served():
        yield index


class Plain(Confined):
    """Runs commands with no systemd, and remembers them."""

    def run(self, unit: str, argv: Any, **asked: Any) -> subprocess.CompletedProcess[str]:
        """Run a command as the tests' own user."""
        command = list(map(str, argv))
        COMMANDS.append(command)
        env = os.environ | asked["environment"]
        return subprocess.run(command, env=env, cwd=asked["cwd"], capture_output=True, text=True, check=False)


COMMANDS: list[list[str]] = []


def prepare(tmp_path: Path, requirements: str) -> tuple[Path, Path]:
    """Make an app that is a folder, and a runtime that needs nothing."""
    app, runtime = tmp_path / "shop", tmp_path / "runtime"
    (app / "pages").mkdir(parents=True)
    for number in range(20):
        (app / "pages" / f"page{number}.py").write_text(f"number = {number}\n")
    (app / "requirements.txt").write_text(requirements)
    (runtime / "src" / "rt").mkdir(parents=True)
    (runtime / "src" / "rt" / "__init__.py").touch()
    (runtime / "requirements.lock").touch()
    (runtime / "pyproject.toml").write_text(RUNTIME)
    return app, runtime


def release(tmp_path: Path, index: PackageIndex) -> str:
    """Release the app as a run does, and return the id: only what is not there yet is built and installed."""
    url, cache = index.private_url(), tmp_path / "cache"
    builder = Builder(
        Directory(tmp_path / "shop"),
        Directory(tmp_path / "runtime"),
        cache,
        python=sys.executable,
        lock="",
        uv=Uv(url),
    )
    name = builder.identify(save=True)
    tree = ReleaseTree(tmp_path / "opt" / "shop")
    if not tree.about(name):
        builder.build(name)
        archive = tree.releases / f"{name}.tar"
        archive.parent.mkdir(parents=True, exist_ok=True)
        archive.write_bytes(builder.archive(name).read_bytes())
        uv = Path(sys.executable).parent / "uv"
        installer = Installer(uv, Path(sys.executable), tree.cache, Plain(), {"UV_DEFAULT_INDEX": url})
        tree.install(name, archive, installer)
    return name


def own_files(tmp_path: Path, name: str) -> set[str]:
    """Return the files of a release that it shares with no other, but for what is compiled there."""
    root = tmp_path / "opt" / "shop" / "releases" / name
    files = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
    return {
        str(path.relative_to(root)) for path in files if path.stat().st_nlink == 1 and path.suffix != ".pyc"
    }


def test_a_second_run_asks_nothing_and_a_change_ships_itself(tmp_path: Path, index: PackageIndex) -> None:
    """Of an app with 200 dependencies: the index is asked for each of them once."""
    for number in range(MANY):
        index.add(f"needed{number}", "1.0")
    app, _ = prepare(tmp_path, "".join(f"needed{number}\n" for number in range(MANY)))
    first = release(tmp_path, index)
    assert len({path for path in index.asked if path.endswith(".whl")}) == MANY

    index.asked.clear()
    COMMANDS.clear()
    assert release(tmp_path, index) == first
    assert (index.asked, COMMANDS) == ([], [])

    (app / "pages" / "page7.py").write_text("number = 70\n")
    second = release(tmp_path, index)
    assert second != first
    assert index.asked == []
    changed = own_files(tmp_path, second)
    assert "source/pages/page7.py" in changed
    assert not [name for name in changed if name.startswith("source/") and "page7" not in name]
    assert not [name for name in changed if "needed" in name]


def test_a_password_of_the_index_stays_with_it(tmp_path: Path, index: PackageIndex) -> None:
    """It is in no command, no file that others may read, and no message."""
    index.add("needed", "1.0")
    prepare(tmp_path, "needed\n")
    COMMANDS.clear()
    name = release(tmp_path, index)
    assert COMMANDS
    secret = LOGIN.partition(":")[2]
    assert secret not in str(COMMANDS)
    for place in ("cache", f"opt/shop/releases/{name}"):
        files = [path for path in (tmp_path / place).rglob("*") if path.is_file()]
        assert files
        assert not [path for path in files if secret.encode() in path.read_bytes()]


def test_an_index_beside_another(
    tmp_path: Path, index: PackageIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The login of an index by its name is for the controller, too; proxies are for the hosts alone."""
    index.add("needed", "1.0")
    user, _, password = LOGIN.partition(":")
    environment = {
        "UV_DEFAULT_INDEX": f"corp={index.url}",
        "UV_INDEX_CORP_USERNAME": user,
        "UV_INDEX_CORP_PASSWORD": password,
        "HTTP_PROXY": "http://127.0.0.1:9",
    }
    prepare(tmp_path, "needed\n")
    app, runtime = Directory(tmp_path / "shop"), Directory(tmp_path / "runtime")
    options: dict[str, Any] = {"python": sys.executable, "lock": ""}
    monkeypatch.delenv("UV_DEFAULT_INDEX", raising=False)
    builder = Builder(app, runtime, tmp_path, uv=Uv(environment=environment), **options)
    assert "needed==1.0 " in builder._requirements(save=False)

    wrong = environment | {"UV_INDEX_CORP_PASSWORD": "another-s3cret"}
    builder = Builder(app, runtime, tmp_path, uv=Uv(environment=wrong), **options)
    with pytest.raises(ReleaseError) as caught:
        builder._requirements(save=False)
    assert "another-s3cret" not in str(caught.value)
    builder = Builder(
        app, runtime, tmp_path, uv=Uv(index.private_url().replace(password, "third-s3cret")), **options
    )
    with pytest.raises(ReleaseError) as caught:
        builder._requirements(save=False)
    assert "third-s3cret" not in str(caught.value)
