"""Releases on a host: a release is whole or it is nothing, and the link leads only to what is whole."""

from __future__ import annotations

import hashlib
import io
import json
import mmap
import os
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from ansible.module_utils.app_release_tree import MARKER, ReleaseTree, TreeError

PYTHON = Path(sys.executable)
UV = Path(sys.executable).parent / "uv"


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ReleaseTree:
    """Return the tree of an app that has no release yet. Nothing reaches an index, or the whole disk."""
    monkeypatch.setattr(os, "sync", lambda: None)
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    return ReleaseTree(tmp_path / "opt" / "shop")


def archive(path: Path, requirements: str | None = None) -> Path:
    """Make a release's archive with one small wheel, as the controller does."""
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("shop.py", "answer = 42\n")
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


def install(tree: ReleaseTree, release: str, requirements: str | None = None) -> None:
    """Install a release."""
    file = archive(tree.releases / f"{release}.tar", requirements)
    tree.install(release, file, PYTHON, UV, {})


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
