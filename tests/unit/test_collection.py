# SPDX-License-Identifier: MIT
"""The collection as a user gets it: `make collection`, of the commit that is checked out."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.lint.test_links import CODE, LINK
from tools import collection

ROOT = Path(__file__).parents[2]
MOST_BYTES = 2_000_000
UNWANTED = {"tests", "lab", "bench", "molecule", "tools", "conftest.py", "noxfile.py", "Makefile"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the archive."""
    return collection.build(ROOT, tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the installed collection."""
    folder = tmp_path_factory.mktemp("installed")
    galaxy("install", "--no-deps", "--offline", built, "--collections-path", folder, cwd=folder)
    return folder / "ansible_collections" / "fleet" / "celery"


def galaxy(*arguments: str | Path, cwd: Path) -> str:
    """Run ansible-galaxy on a collection, and return what it prints; it must succeed."""
    command = ["ansible-galaxy", "collection", *arguments]
    # With the configuration of this clone, which make sets, the collection would count as installed.
    env = {name: value for name, value in os.environ.items() if name != "ANSIBLE_CONFIG"}
    done = subprocess.run(command, cwd=cwd, env=env, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_another_clone_of_the_commit_builds_the_same_bytes(built: Path, tmp_path: Path) -> None:
    subprocess.run(["git", "clone", "--quiet", "--shared", ROOT, tmp_path / "clone"], check=True)
    again = collection.build(tmp_path / "clone", tmp_path)
    assert hashlib.sha256(again.read_bytes()).digest() == hashlib.sha256(built.read_bytes()).digest()


def test_the_order_of_the_disk_and_the_time_do_not_matter(tmp_path: Path) -> None:
    """ansible-galaxy takes files in the order in which they are on the disk, and packs them with the time."""
    packed = [repacked(tmp_path / str(time), time, order) for time, order in ((1, "ab"), (2, "ba"))]
    assert packed[0].read_bytes() == packed[1].read_bytes()
    with tarfile.open(packed[0]) as archive:
        names = archive.getnames()
        files, manifest = (member.read() for name in names[:2] if (member := archive.extractfile(name)))
    assert names == ["FILES.json", "MANIFEST.json", "a", "b"]
    assert json.loads(manifest)["file_manifest_file"]["chksum_sha256"] == hashlib.sha256(files).hexdigest()


def repacked(folder: Path, time: int, order: str) -> Path:
    """Repack an archive that was made at a time, with files in an order."""
    folder.mkdir()
    listed = {"files": [{"name": name} for name in order]}
    contents = {name: name.encode() for name in order}
    contents["MANIFEST.json"] = b'{"file_manifest_file": {"chksum_sha256": "another"}}'
    contents["FILES.json"] = json.dumps(listed).encode()
    with tarfile.open(folder / "built.tar.gz", "w:gz") as archive:
        for name, data in contents.items():
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(data), time
            archive.addfile(member, io.BytesIO(data))
    collection.repack(folder / "built.tar.gz", folder / "again.tar.gz", 1_700_000_000)
    return folder / "again.tar.gz"


def test_it_is_small(built: Path) -> None:
    assert built.stat().st_size <= MOST_BYTES


def committed(folder: str) -> set[str]:
    """Return the paths of the commit's files below a folder."""
    return set(collection.git("ls-tree", "-r", "--name-only", "HEAD", folder).decode().split())


def test_it_has_what_a_user_needs_and_nothing_of_the_tests(installed: Path) -> None:
    files = {path.relative_to(installed) for path in installed.rglob("*") if path.is_file()}
    assert not [str(file) for file in files if UNWANTED & set(file.parts) or file.parts[0].startswith(".")]
    wanted = {"site.yml", "meta/runtime.yml", "requirements/uv.txt", "app/runtime/requirements.lock"}
    for folder in ("docs", "inventories", "playbooks", "plugins", "roles"):
        wanted |= committed(folder)
    assert wanted <= {str(file) for file in files}
    assert not (installed / "app" / "runtime" / "src").exists()


def test_it_has_the_wheel_of_the_runtime(installed: Path) -> None:
    (wheel,) = (installed / "app" / "runtime").glob("*.whl")
    modules = {name for name in committed("app/runtime/src") if name.endswith((".py", ".lua"))}
    with zipfile.ZipFile(wheel) as archive:
        packed = {f"app/runtime/src/{name}" for name in archive.namelist()}
    assert modules
    assert modules <= packed
    assert not [name for name in packed if "test" in name]
    version = json.loads((installed / "MANIFEST.json").read_text())["collection_info"]["version"]
    assert wheel.name == f"celery_fleet_runtime-{version}-py3-none-any.whl"


def test_the_wheel_stays_while_the_source_of_the_runtime_does(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each commit would give hosts another release, and restart every node."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    collection.check_out(ROOT, tmp_path)
    wheel = collection.put_wheel(tmp_path / collection.RUNTIME)
    assert wheel.read_bytes() == (installed / "app" / "runtime" / wheel.name).read_bytes()


def test_its_checksums_are_right(installed: Path) -> None:
    folder = installed.parents[2]
    galaxy("verify", "--offline", "--collections-path", folder, "fleet.celery", cwd=folder)


def test_the_links_of_its_pages_lead_somewhere(installed: Path) -> None:
    broken = [
        f"{page.relative_to(installed)}: {path}"
        for page in installed.rglob("*.md")
        for path, _ in LINK.findall(CODE.sub("", page.read_text()))
        if path and not (page.parent / path).resolve().exists()
    ]
    assert not broken
