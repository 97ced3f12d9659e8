# SPDX-License-Identifier: MIT
"""Releases on a host: a release is whole or it is nothing, and the link leads only to what is whole."""

from __future__ import annotations

import hashlib
import io
import json
import mmap
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.fleet.celery.plugins.module_utils.app_release_tree import (
    MARKER,
    Installer,
    ReleaseTree,
    TreeError,
    seal,
)
from ansible_collections.fleet.celery.plugins.module_utils.confined import Confined

PYTHON = Path(sys.executable)
UV = Path(sys.executable).parent / "uv"


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ReleaseTree:
    """Return the tree of an app that has no release yet. Nothing reaches an index, or the whole disk."""
    monkeypatch.setattr(os, "sync", lambda: None)
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    return ReleaseTree(tmp_path / "opt" / "shop")


class Plain(Confined):
    """Runs commands with no systemd, and remembers how they were asked for."""

    def run(self, unit: str, argv: Any, **asked: Any) -> subprocess.CompletedProcess[str]:
        """Run a command as the tests' own user."""
        ASKED.append((list(map(str, argv)), asked))
        env = os.environ | asked["environment"]
        return subprocess.run(
            list(map(str, argv)), env=env, cwd=asked["cwd"], capture_output=True, text=True, check=False
        )


ASKED: list[tuple[list[str], dict[str, Any]]] = []


def installer(tree: ReleaseTree) -> Installer:
    """Return what installs, without systemd."""
    return Installer(UV, PYTHON, tree.cache, Plain(), {"UV_DEFAULT_INDEX": "http://127.0.0.1:9/simple"})


def archive(path: Path, requirements: str | None = None, files: dict[str, str] | None = None) -> Path:
    """Make a release's archive with one small wheel, as the controller does."""
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as file:
        for name, text in {"shop.py": "answer = 42\n", **(files or {})}.items():
            file.writestr(name, text)
        file.writestr("shop-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: shop\nVersion: 1.0\n")
        file.writestr(
            "shop-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr("shop-1.0.dist-info/RECORD", "")
    name = "shop-1.0-py3-none-any.whl"
    digest = hashlib.sha256(wheel.getvalue()).hexdigest()
    contents = {
        name: wheel.getvalue(),
        "requirements.txt": (requirements or f"./{name} --hash=sha256:{digest}\n").encode(),
        MARKER: b'{"id": "one"}',
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for entry, data in contents.items():
            info = tarfile.TarInfo(entry)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def fake(tree: ReleaseTree, *releases: str) -> None:
    """Make whole releases, each newer than the one before."""
    for age, release in enumerate(releases):
        path = tree.releases / release
        path.mkdir(parents=True)
        (path / MARKER).write_text(json.dumps({"id": release, "python": sys.executable}))
        os.utime(path / MARKER, (age, age))


def install(
    tree: ReleaseTree, release: str, requirements: str | None = None, files: dict[str, str] | None = None
) -> None:
    """Install a release."""
    file = archive(tree.releases / f"{release}.tar", requirements, files)
    ASKED.clear()
    tree.install(release, file, installer(tree))


def test_a_release_is_installed(tree: ReleaseTree) -> None:
    """It runs the app, says what it is, nobody but its owner may write to it, and the archive is gone."""
    umask = os.umask(0o077)
    try:
        install(tree, "one")
    finally:
        os.umask(umask)
    about = tree.about("one")
    assert about == {"id": "one", "python": str(PYTHON.resolve())}
    assert list(tree.releases.iterdir()) == [tree.releases / "one"]
    paths = [path for path in (tree.releases / "one").rglob("*") if not path.is_symlink()]
    assert any(path.name == "shop.py" for path in paths)
    assert any(path.suffix == ".pyc" for path in paths)
    for path in paths:
        mode = path.stat().st_mode
        assert mode & 0o022 == 0, path
        assert mode & 0o004, path


def test_nothing_that_a_release_brings_is_run(tree: ReleaseTree, tmp_path: Path) -> None:
    """A `.pth`, which each start of the release's own interpreter runs, is installed and not obeyed."""
    ran = tmp_path / "ran"
    pth = f"import pathlib; pathlib.Path({str(ran)!r}).touch()\n"
    install(tree, "one", files={"evil.pth": pth, "shop.py": "answer = 43\n"})
    assert list((tree.releases / "one").rglob("evil.pth"))
    assert list((tree.releases / "one").rglob("shop.*.pyc"))
    assert not ran.exists()
    subprocess.run([tree.releases / "one" / "bin" / "python", "-c", ""], check=True)
    assert ran.exists()  # as a node would: the trap works


def test_what_an_installation_may_reach(tree: ReleaseTree) -> None:
    """Only the step that may have to ask the index has a network, and none may write elsewhere."""
    install(tree, "one")
    assert not any(asked["network"] for _, asked in ASKED)  # nothing had to be fetched
    for argv, asked in ASKED:
        assert asked["writable"] == [tree.releases / "one", tree.cache], argv
    (command,) = [argv for argv, _ in ASKED if "install" in argv]
    assert command[command.index("--only-binary") + 1] == ":all:"
    with pytest.raises(TreeError, match="missing"):
        install(tree, "two", f"missing==1.0 --hash=sha256:{'0' * 64}\n")
    assert [argv[2] for argv, asked in ASKED if asked["network"]] == ["install"]


def test_what_may_build_has_no_network(tree: ReleaseTree, monkeypatch: pytest.MonkeyPatch) -> None:
    """But a gate to the index, which has the proxies' passwords; and no service that looks up names."""
    monkeypatch.setenv("https_proxy", "http://me:CANARY@proxy")
    one = installer(tree)
    one.build = ("dep",)
    ASKED.clear()
    line = f"missing==1.0 --hash=sha256:{'0' * 64}\n"
    with pytest.raises(TreeError, match="missing"):
        tree.install("one", archive(tree.releases / "one.tar", line), one)
    argv, asked = ASKED[-1]
    assert argv[0] == str(PYTHON)
    assert argv[argv.index(str(UV)) + 1 : argv.index(str(UV)) + 3] == ["pip", "install"]
    assert not asked["network"]
    assert "CANARY" not in str(asked["environment"])
    assert "InaccessiblePaths=-/run/systemd/resolve" in asked["properties"]


def test_uv_reaches_the_index_as_the_host_does(tree: ReleaseTree, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the host's proxies, but nothing else of root's environment, and no other cache than its own."""
    for name, value in {"https_proxy": "http://proxy", "SECRET": "CANARY", "UV_CACHE_DIR": "/root/x"}.items():
        monkeypatch.setenv(name, value)
    install(tree, "one")
    uv = [asked["environment"] for argv, asked in ASKED if argv[0] == str(UV)]
    assert len(uv) == 2
    for environment in uv:
        assert environment["https_proxy"] == "http://proxy"
        assert environment["UV_CACHE_DIR"] == str(tree.cache)
        assert "SECRET" not in environment
    (compiler,) = [asked["environment"] for argv, asked in ASKED if argv[0] == str(PYTHON)]
    assert set(compiler) == {"HOME"}


def test_a_package_without_a_wheel_is_built_only_if_it_is_named(tree: ReleaseTree, tmp_path: Path) -> None:
    """The error names the package and the variable. What is named is built."""
    sdist, ran = tmp_path / "dep-1.0.tar.gz", tmp_path / "ran"
    backend = f"import pathlib\npathlib.Path({str(ran)!r}).touch()\nraise SystemExit('the hook was here')\n"
    toml = "[build-system]\nrequires = []\nbuild-backend = 'hook'\nbackend-path = ['.']\n"
    with tarfile.open(sdist, "w:gz") as tar:
        for name, text in (("hook.py", backend), ("pyproject.toml", toml)):
            info = tarfile.TarInfo(f"dep-1.0/{name}")
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    digest = hashlib.sha256(sdist.read_bytes()).hexdigest()
    line = f"dep @ {sdist.as_uri()} --hash=sha256:{digest}\n"
    with pytest.raises(TreeError, match=r"dep[\s\S]*celery_app_build_packages"):
        install(tree, "one", line)
    assert not ran.exists()
    one = installer(tree)
    one.build = ("dep",)
    with pytest.raises(TreeError, match="the hook was here"):
        tree.install("one", archive(tree.releases / "one.tar", line), one)
    assert ran.exists()


def test_equal_files_of_releases_are_one(tree: ReleaseTree) -> None:
    """What did not change is on the disk once; what is the app's to change is not shared with a cache."""
    install(tree, "one", files={"same.py": "x = 1\n", "other.py": "x = 1\n"})
    install(tree, "two", files={"same.py": "x = 1\n", "other.py": "x = 2\n"})
    (same, twin), (one, two) = (
        [next((tree.releases / release).rglob(name)) for release in ("one", "two")]
        for name in ("same.py", "other.py")
    )
    assert same.samefile(twin)
    assert not one.samefile(two)
    assert (one.stat().st_nlink, same.stat().st_nlink) == (1, 2)
    compiled = next((tree.releases / "two").rglob("same.*.pyc")).read_bytes()
    assert int.from_bytes(compiled[8:12], "little") == int(twin.stat().st_mtime)  # or it would not be used


def test_sealing(tmp_path: Path) -> None:
    """Modes that let others write and set-uid bits go; links are not followed; pipes are refused."""
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    inside.mkdir(mode=0o777)
    for path, mode in ((outside, 0o600), (inside / "a", 0o666), (inside / "b", 0o4777)):
        path.touch()
        path.chmod(mode)
    (inside / "link").symlink_to(outside)
    seal(inside)
    modes = {
        path.name: path.lstat().st_mode & 0o7777 for path in (inside, inside / "a", inside / "b", outside)
    }
    assert modes == {"inside": 0o755, "a": 0o644, "b": 0o755, "outside": 0o600}
    os.mkfifo(inside / "pipe")
    with pytest.raises(TreeError, match="pipe, which is neither"):
        seal(inside)


def test_a_half_built_release_is_built_again(tree: ReleaseTree) -> None:
    """What an interrupted run left is neither whole, nor in the way, nor switched to."""
    (tree.releases / "one" / "bin").mkdir(parents=True)
    (tree.releases / "one" / "litter").touch()
    assert tree.about("one") is None
    with pytest.raises(TreeError, match="not installed"):
        tree.switch("one")
    install(tree, "one")
    assert tree.about("one")
    assert not (tree.releases / "one" / "litter").exists()


@pytest.mark.parametrize(
    ("requirements", "reason"),
    [
        (f"./shop-1.0-py3-none-any.whl --hash=sha256:{'0' * 64}\n", "Hash mismatch"),
        ("./shop-1.0-py3-none-any.whl\n", "shop"),
        (f"missing==1.0 --hash=sha256:{'0' * 64}\n", "missing"),
    ],
)
def test_what_cannot_be_installed_leaves_nothing(tree: ReleaseTree, requirements: str, reason: str) -> None:
    """A wrong hash, no hash, a package that is not there: uv's words are passed on, and nothing is left."""
    fake(tree, "zero")
    tree.switch("zero")
    with pytest.raises(TreeError, match=reason):
        install(tree, "one", requirements)
    assert not (tree.releases / "one").exists()
    assert tree.linked("current") == "zero"


def test_a_release_without_its_python_is_not_whole(tree: ReleaseTree) -> None:
    """An upgrade of the host takes its old Python away; the release has to be built for the new one."""
    fake(tree, "one")
    (tree.releases / "one" / MARKER).write_text('{"id": "one", "python": "/usr/bin/python2.7"}')
    assert tree.about("one") is None


def test_a_damaged_marker_does_not_count(tree: ReleaseTree) -> None:
    """Only a marker that can be read says that a release is whole."""
    fake(tree, "one")
    for text in ("", "{", "{}"):
        (tree.releases / "one" / MARKER).write_text(text)
        assert tree.about("one") is None


def test_switching(tree: ReleaseTree) -> None:
    """`current` leads to the new release, `previous` to the one before it; links are relative."""
    fake(tree, "one", "two")
    tree.switch("one")
    assert (tree.linked("current"), tree.linked("previous")) == ("one", None)
    tree.switch("two")
    assert (tree.linked("current"), tree.linked("previous")) == ("two", "one")
    tree.switch("two")
    assert (tree.linked("current"), tree.linked("previous")) == ("two", "one")
    assert (tree.root / "current").readlink() == Path("releases/two")
    tree.switch("one")
    assert (tree.linked("current"), tree.linked("previous")) == ("one", "two")


def test_switching_over_what_an_interrupted_run_left(tree: ReleaseTree) -> None:
    """A link that was made but not moved into place is no obstacle."""
    fake(tree, "one")
    (tree.root / ".current.new").symlink_to("nowhere")
    tree.switch("one")
    assert sorted(path.name for path in tree.root.iterdir()) == ["current", "releases"]


def test_where_a_rollback_goes(tree: ReleaseTree) -> None:
    """It is noted until it has ended, whatever the other links say meanwhile."""
    fake(tree, "one", "two")
    assert tree.linked("rollback") is None
    assert not tree.end_rollback()
    tree.begin_rollback("two")
    tree.begin_rollback("one")
    tree.switch("one")
    assert tree.linked("rollback") == "one"
    assert tree.end_rollback()
    assert sorted(path.name for path in tree.root.iterdir()) == ["current", "releases"]


def test_which_releases_load_scripts(tree: ReleaseTree) -> None:
    """Those with a runtime from before it called functions of Redis, and those without one."""
    fake(tree, "before", "then", "now", "foreign")
    modules = {"before": "scripts.py", "then": "functions.py", "now": "broker/functions.py"}
    for release, module in modules.items():
        runtime = tree.releases / release / "lib" / "python3.11" / "site-packages" / "fleet_runtime"
        (runtime / module).parent.mkdir(parents=True)
        (runtime / module).touch()
    assert sorted(tree.scripted()) == ["before", "foreign"]


def test_what_is_surplus(tree: ReleaseTree) -> None:
    """The newest, the current and the previous stay; older ones, ruins and archives go."""
    fake(tree, "one", "two", "three", "four", "five")
    tree.switch("one")
    tree.switch("two")
    (tree.releases / "ruin").mkdir()
    (tree.releases / "six.tar").touch()
    assert tree.surplus(1) == ["five", "four", "ruin", "six.tar", "three"]
    assert tree.surplus(3) == ["four", "ruin", "six.tar", "three"]
    assert tree.surplus(9) == ["ruin", "six.tar"]


def test_nothing_is_surplus_on_a_new_host(tree: ReleaseTree) -> None:
    """A host without releases has none to remove."""
    assert tree.surplus(3) == []


def test_what_a_process_runs_from_stays(tree: ReleaseTree) -> None:
    """A node that was not restarted since keeps its release, whatever was deployed meanwhile."""
    fake(tree, "one", "two", "three")
    tree.switch("two")
    tree.switch("three")
    library = tree.releases / "one" / "library.so"
    library.write_bytes(b"x" * mmap.PAGESIZE)
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ):
        assert tree.surplus(2) == []
    assert tree.surplus(2) == ["one"]


def test_removing(tree: ReleaseTree) -> None:
    """Releases and archives can be removed, and what is not there already is."""
    fake(tree, "one")
    (tree.releases / "two.tar").touch()
    for name in ("one", "two.tar", "three"):
        tree.remove(name)
    assert list(tree.releases.iterdir()) == []


def test_the_cache_is_bounded(tree: ReleaseTree) -> None:
    """A cache that has outgrown its limit is emptied."""
    assert not tree.trim_cache(10)
    (tree.cache / "wheels").mkdir(parents=True)
    (tree.cache / "wheels" / "x").write_bytes(b"x" * 100)
    assert not tree.trim_cache(100_000)
    assert tree.trim_cache(100)
    assert not tree.cache.exists()


def test_a_python_is_fetched_once(tree: ReleaseTree, tmp_path: Path) -> None:
    """By its version, into a directory that is root's afterwards; an interrupted one is fetched anew."""
    uv = tmp_path / "fake-uv"
    uv.write_text(
        "#!/bin/sh\n"
        f'echo "$UV_PYTHON_DOWNLOADS $*" >>{tmp_path}/asked\n'
        'mkdir -p "$5/cpython-3.12.9/bin"; touch "$5/cpython-3.12.9/bin/python3.12"\n'
        'ln -s python3.12 "$5/cpython-3.12.9/bin/python3"; ln -s cpython-3.12.9 "$5/cpython-3.12"\n'
    )
    uv.chmod(0o755)
    installs = Installer(uv, Path("3.12"), tree.cache, Plain(), {})
    place = tmp_path / "opt" / "python" / "3.12"
    place.mkdir(parents=True)
    (place / "half").touch()
    for _ in range(2):
        found = installs.fetch_python("3.12", place)
        assert found == place / "cpython-3.12.9" / "bin" / "python3.12"
    assert not (place / "half").exists()
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked == [f"manual python install --no-bin --install-dir {place} 3.12"]

    uv.write_text("#!/bin/sh\necho no such Python >&2; exit 1\n")
    with pytest.raises(TreeError, match=r"UV_PYTHON_INSTALL_MIRROR[\s\S]*no such Python"):
        installs.fetch_python("3.99", tmp_path / "opt" / "python" / "3.99")
