# SPDX-License-Identifier: MIT
"""Releases, built with the real uv: the same input gives the same release, whatever the way to name the app.

No test asks a package index on the network: the apps are built by uv itself, or by a backend of their own,
and what is resolved comes from an index that the tests serve.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.fleet.celery.plugins.filter.celery_app import runtime_problem
from ansible_collections.fleet.celery.plugins.module_utils import hashed_venv
from ansible_collections.fleet.celery.plugins.module_utils.app_release import Builder, FleetBuilder, Uv
from ansible_collections.fleet.celery.plugins.module_utils.app_release_sandbox import Sandbox
from ansible_collections.fleet.celery.plugins.module_utils.app_release_source import (
    Directory,
    ReleaseError,
    parse_runtime,
    parse_source,
    split_extras,
    tree_digest,
)

from tests.unit.package_index import NOWHERE, PackageIndex

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PROJECT = """\
[build-system]
requires = ["uv_build"]
build-backend = "uv_build"
[project]
name = "{name}"
version = "1.0"
requires-python = ">=3.11"
dependencies = [{dependencies}]
"""

# A build backend that makes a wheel for this platform only, as an app with an extension in C does.
COMPILED = """\
import io, tarfile, zipfile

def build_wheel(directory, config_settings=None, metadata_directory=None):
    tag, about = "cp311-cp311-linux_x86_64", "compiled-1.0.dist-info"
    with zipfile.ZipFile(f"{directory}/compiled-1.0-{tag}.whl", "w") as wheel:
        wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\\nName: compiled\\nVersion: 1.0\\n")
        wheel.writestr(f"{about}/WHEEL", f"Wheel-Version: 1.0\\nTag: {tag}\\n")
        wheel.writestr(f"{about}/RECORD", "")
    return f"compiled-1.0-{tag}.whl"

def build_sdist(directory, config_settings=None):
    with tarfile.open(f"{directory}/compiled-1.0.tar.gz", "w:gz") as sdist:
        info = tarfile.TarInfo("compiled-1.0/PKG-INFO")
        sdist.addfile(info, io.BytesIO())
    return "compiled-1.0.tar.gz"
"""

A, B, C, D = ("sha256:" + digit * 64 for digit in "abcd")
LOCK = f"dep==1.0 --hash={A}\n"
OWN_LOCK = f"dep==0.9 --hash={B}\nrt-only==1.0 --hash={C}\n"


def project(path: Path, name: str, dependencies: str = "", lock: str | None = None) -> Path:
    """Make a package that uv can build without an index."""
    (path / "src" / name).mkdir(parents=True)
    (path / "src" / name / "__init__.py").touch()
    (path / "pyproject.toml").write_text(PROJECT.format(name=name, dependencies=dependencies))
    if lock is not None:
        (path / "requirements.lock").write_text(lock)
    return path


def wheel(path: Path, about: str = "") -> Path:
    """Make a wheel without a module, with these lines in its metadata."""
    name, version, *_ = path.name.split("-")
    folder = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            f"{folder}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{about}"
        )
        archive.writestr(f"{folder}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{folder}/RECORD", "")
    return path


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """Return an app that ships a lock."""
    return project(tmp_path / "shop", "shop", '"dep"', LOCK)


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    """Return a stand-in for the fleet's runtime, which has an extra."""
    path = project(tmp_path / "runtime", "rt", '"dep"', OWN_LOCK)
    with (path / "pyproject.toml").open("a") as stream:
        stream.write('[project.optional-dependencies]\nhiredis = ["rt[more]"]\nmore = ["rt-only"]\n')
    return path


@pytest.fixture
def make(tmp_path: Path, runtime: Path, index: str) -> functools.partial[Builder]:
    """Return what makes a builder of `(source, ref="", lock="", index=<the tests' own>)`."""
    return functools.partial(builder, runtime=runtime, cache=tmp_path / "cache", index=index)


def builder(
    source: Path | str,
    ref: str = "",
    lock: str = "",
    *,
    index: str,
    runtime: Path,
    cache: Path,
    **options: Any,
) -> Builder:
    """Return a builder."""
    place, extras = split_extras(str(source))
    parsed = parse_source(place, ref, (cache,))
    own = parse_runtime(runtime)
    python = "/usr/bin/python3"
    return Builder(parsed, own, cache, python=python, lock=lock, uv=Uv(index), extras=extras, **options)


def build(builder: Builder) -> dict[str, str]:
    """Build a release and return its small files by name, and the names of the others."""
    release = builder.identify(save=True)
    assert builder.build(release)
    with tarfile.open(builder.archive(release)) as archive:
        files = {member.name: archive.extractfile(member) for member in archive}
        return {name: file.read().decode("utf-8", "replace") for name, file in files.items() if file}


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve a package index with dep 0.9, 1.0 and 1.1, rt-only 1.0, and shop 1.0, which needs dep."""
    index = PackageIndex(tmp_path_factory.mktemp("index"))
    sdist(index)
    for name, version, needs in (
        ("modern", "1.0", "Requires-Python: >=3.13\n"),
        ("dep", "0.9", ""),
        ("dep", "1.0", ""),
        ("dep", "1.1", ""),
        ("rt-only", "1.0", ""),
        ("shop", "1.0", "Requires-Dist: dep\n"),
    ):
        index.add(name, version, needs)
    with index.served():
        yield index.url


def sdist(index: PackageIndex) -> None:
    """Put raw 1.0 into an index, which has no wheel, and a build hook that tells nothing but its metadata."""
    hook = (
        "import os\n"
        "def prepare_metadata_for_build_wheel(directory, config_settings=None):\n"
        "    os.mkdir(f'{directory}/raw-1.0.dist-info')\n"
        "    with open(f'{directory}/raw-1.0.dist-info/METADATA', 'w') as stream:\n"
        "        stream.write('Metadata-Version: 2.1\\nName: raw\\nVersion: 1.0\\n')\n"
        "    return 'raw-1.0.dist-info'\n"
        "def build_wheel(directory, config_settings=None, metadata_directory=None):\n"
        "    raise SystemExit('not to be built here')\n"
    )
    toml = '[build-system]\nrequires = []\nbuild-backend = "hook"\nbackend-path = ["."]\n'
    file = index.folder("raw") / "raw-1.0.tar.gz"
    with tarfile.open(file, "w:gz") as archive:
        for name, text in (
            ("hook.py", hook),
            ("pyproject.toml", toml),
            ("PKG-INFO", "Metadata-Version: 2.1\n"),
        ):
            info = tarfile.TarInfo(f"raw-1.0/{name}")
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    index.list(file)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep uv's cache apart, and uv off the network."""
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    monkeypatch.setenv("UV_DEFAULT_INDEX", NOWHERE)
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")


def test_what_a_release_holds(make: functools.partial[Builder], app: Path) -> None:
    """It holds both wheels, their hashes, the app's lock completed with the runtime's, and what it is."""
    files = build(make(app))
    wheels = {"rt-1.0-py3-none-any.whl", "shop-1.0-py3-none-any.whl"}
    assert set(files) == wheels | {"release.json", "requirements.txt"}
    pins = [line.split(" ", 1)[0] for line in files["requirements.txt"].splitlines() if line[0] != " "]
    assert pins == ["./shop-1.0-py3-none-any.whl", "./rt-1.0-py3-none-any.whl", "dep==1.0", "rt-only==1.0"]
    about = json.loads(files["release.json"])
    assert (about["app"]["name"], about["app"]["version"]) == ("shop", "1.0")
    assert about["app"]["source"] == str(app)


def test_the_hash_of_a_wheel_is_its_own(make: functools.partial[Builder], app: Path) -> None:
    """The wheels of a release are checked like every other package."""
    release = make(app)
    build(release)
    with tarfile.open(release.archive(release.identify(save=True))) as archive:
        wheel = archive.extractfile("shop-1.0-py3-none-any.whl")
        lines = archive.extractfile("requirements.txt")
        assert wheel
        assert lines
        assert f"sha256:{hashlib.sha256(wheel.read()).hexdigest()}" in lines.read().decode()


def test_the_same_source_is_the_same_release(
    make: functools.partial[Builder], app: Path, tmp_path: Path
) -> None:
    """Neither time nor place nor a lost cache changes the id or the bytes, and no second build is made."""
    first = make(app)
    release = first.identify(save=True)
    first.build(release)
    before = first.archive(release).read_bytes()
    assert not make(app).build(release)

    shutil.rmtree(tmp_path / "cache")
    assert make(app).identify(save=False) == release
    assert not (tmp_path / "cache").exists()
    make(app).build(release)
    assert first.archive(release).read_bytes() == before

    elsewhere = shutil.copytree(app, tmp_path / "elsewhere")
    os.utime(elsewhere / "pyproject.toml", (0, 0))
    assert make(elsewhere).identify(save=True) == release


def test_what_shapes_a_release_changes_its_id(
    make: functools.partial[Builder], app: Path, runtime: Path, tmp_path: Path, index: str
) -> None:
    """The app, its lock, the runtime and the Python each do."""
    seen = [make(app).identify(save=True)]
    (app / "src" / "shop" / "__init__.py").write_text("x = 1\n")
    seen.append(make(app).identify(save=True))
    (app / "requirements.lock").write_text(f"dep==1.1 --hash={D}\n")
    seen.append(make(app).identify(save=True))
    (tmp_path / "other.lock").write_text(LOCK)
    seen.append(make(app, lock=str(tmp_path / "other.lock")).identify(save=True))
    (runtime / "src" / "rt" / "__init__.py").write_text("x = 1\n")
    seen.append(make(app).identify(save=True))
    other = Builder(
        parse_source(str(app), ""), Directory(runtime), tmp_path, python="/opt/py", lock="", uv=Uv(index)
    )
    seen.append(other.identify(save=False))
    assert len(set(seen)) == len(seen)


def test_the_source_is_not_written_to(make: functools.partial[Builder], app: Path, runtime: Path) -> None:
    """Nothing is left in the trees that were built."""
    before = [sorted(path.rglob("*")) for path in (app, runtime)]
    build(make(app))
    assert [sorted(path.rglob("*")) for path in (app, runtime)] == before


def test_git_and_sdist_are_the_same_app(make: functools.partial[Builder], app: Path, tmp_path: Path) -> None:
    """From git and from an sdist the same wheel is built, and the lock that the app ships is found."""
    expected = build(make(app))["requirements.txt"]
    shutil.copytree(app, tmp_path / "repo")
    author = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    for command in (["init", "-q"], ["add", "."], [*author, "commit", "-qm", "one"]):
        subprocess.run(["git", *command], cwd=tmp_path / "repo", check=True)
    from_git = make(f"file://{tmp_path}/repo")
    assert build(from_git)["requirements.txt"] == expected

    with tarfile.open(tmp_path / "shop-1.0.tar.gz", "w:gz") as sdist:
        sdist.add(app, "shop-1.0")
    assert build(make(tmp_path / "shop-1.0.tar.gz"))["requirements.txt"] == expected


def test_a_wheel_is_shipped_as_it_is(make: functools.partial[Builder], tmp_path: Path, index: str) -> None:
    """A wheel is not rebuilt; without a lock its dependencies are resolved."""
    files = build(make(wheel(tmp_path / "shop-1.0-py3-none-any.whl", "Requires-Dist: dep>=1\n"), index=index))
    assert "./shop-1.0-py3-none-any.whl --hash=sha256:" in files["requirements.txt"]
    assert "dep==1.1 " in files["requirements.txt"]
    assert "file:" not in files["requirements.txt"]


@pytest.fixture
def runtime_wheel(tmp_path: Path) -> Path:
    """Return a stand-in for the wheel of the runtime, which an installed collection has, with its lock."""
    (tmp_path / "collection").mkdir()
    (tmp_path / "collection" / "requirements.lock").write_text(OWN_LOCK)
    about = """Requires-Python: >=3.12
Requires-Dist: dep
Provides-Extra: hiredis
Requires-Dist: rt-only; extra == 'hiredis'
"""
    return wheel(tmp_path / "collection" / "celery_fleet_runtime-2.0-py3-none-any.whl", about)


def test_the_runtime_may_be_a_wheel(app: Path, tmp_path: Path, runtime_wheel: Path, index: str) -> None:
    """The release carries it as it is, and what it requires comes from its lock, or from its metadata."""
    make = functools.partial(builder, runtime=runtime_wheel, cache=tmp_path / "cache", index=index)
    files = build(make(app))
    pins = [line.split(" ", 1)[0] for line in files["requirements.txt"].splitlines() if line[0] != " "]
    assert pins == ["./shop-1.0-py3-none-any.whl", f"./{runtime_wheel.name}", "dep==1.0", "rt-only==1.0"]
    assert json.loads(files["release.json"])["runtime"] == {"version": "2.0"}

    (app / "requirements.lock").unlink()
    files = build(make(app))
    pins = [line.split(" ", 1)[0] for line in files["requirements.txt"].splitlines() if line[0] != " "]
    assert pins[2:] == ["dep==0.9", "rt-only==1.0"]
    assert "file:" not in files["requirements.txt"]
    texts = [path.read_text() for path in (tmp_path / "cache" / "requirements").iterdir()]
    assert [text for text in texts if text.startswith("# resolved for Python 3.12\n")]


def test_the_wheel_of_the_runtime_and_its_lock_change_the_id(
    app: Path, tmp_path: Path, runtime_wheel: Path, index: str
) -> None:
    """With the app's own lock alone, the cache would not see the other one."""
    make = functools.partial(builder, app, runtime=runtime_wheel, cache=tmp_path / "cache", index=index)
    seen = [make().identify(save=True)]
    wheel(runtime_wheel, "Summary: newer\nProvides-Extra: all\n")
    seen.append(make().identify(save=True))
    (runtime_wheel.parent / "requirements.lock").write_text(OWN_LOCK.replace(C, D))
    seen.append(make().identify(save=True))
    assert len(set(seen)) == len(seen)


def names(files: dict[str, str]) -> set[str]:
    """Return the packages of an index in an archive's requirements."""
    return {line.split("==")[0] for line in files["requirements.txt"].splitlines() if line[0] not in " ."}


def test_a_release_has_what_pools_and_scheduler_need(
    make: functools.partial[Builder], app: Path, runtime: Path
) -> None:
    """From a lock of the runtime's for each; and it is another release then."""
    (runtime / "requirements.lock").write_text(LOCK)
    (runtime / "requirements-gevent.lock").write_text(f"{LOCK}rt-green==1.0 --hash={D}\n")
    plain, with_pool = make(app), make(app, needs=["gevent"])
    assert names(build(plain)) == {"dep"}
    assert names(build(with_pool)) == {"dep", "rt-green"}
    assert with_pool.identify(save=False) != plain.identify(save=False)


def test_the_venv_of_the_fleet_has_no_app(
    runtime: Path, runtime_wheel: Path, tmp_path: Path, index: str
) -> None:
    """Only the runtime, as source or wheel, and what the lock of the bundle has; a change is another id."""
    lock = tmp_path / "fleet.txt"
    lock.write_text(f"flower==2.2.0 --hash={A}\nrich==15.0.0 --hash={B}\n")
    seen = set()
    for own, wheel_name in ((runtime, "rt-1.0-py3-none-any.whl"), (runtime_wheel, runtime_wheel.name)):
        fleet = FleetBuilder(
            parse_runtime(own), lock, tmp_path / "cache", Uv(index), python="/usr/bin/python3"
        )
        fleet.build()
        with tarfile.open(fleet.archive) as archive:
            files = {one.name: (archive.extractfile(one) or io.BytesIO()).read() for one in archive}
        assert files.keys() == {wheel_name, "requirements.txt", "release.json"}
        requirements = files["requirements.txt"].decode()
        assert requirements.startswith(f"./{wheel_name} --hash=sha256:")
        assert "flower==2.2.0 " in requirements
        assert json.loads(files["release.json"])["id"] == fleet.id
        seen.add(fleet.id)
    lock.write_text(lock.read_text().replace("15.0.0", "15.0.1"))
    parsed = parse_runtime(runtime_wheel)
    for python in ("/usr/bin/python3", "/opt/python"):
        seen.add(FleetBuilder(parsed, lock, tmp_path / "cache", Uv(index), python=python).id)
    assert len(seen) == 4


def test_what_is_no_runtime_is_refused(app: Path, runtime: Path, runtime_wheel: Path) -> None:
    """Each with its path; preflight says it before a host is touched."""
    folder = runtime_wheel.parent
    (folder / "celery_fleet_runtime-3.0-py3-none-any.whl").write_text("no archive")
    assert runtime_problem(str(runtime)) == runtime_problem(str(runtime_wheel)) == ""
    for path, said in {
        wheel(folder / "shop-1.0-py3-none-any.whl"): "is a wheel of shop, not of celery-fleet-runtime",
        folder / "celery_fleet_runtime-3.0-py3-none-any.whl": "is no wheel",
        folder / "celery_fleet_runtime-4.0-py3-none-any.whl": "There is no file",
        folder / "runtime.whl": "There is no file",
        folder: "has no pyproject.toml",
    }.items():
        assert said in runtime_problem(str(path))
        assert path.name in runtime_problem(str(path))
    (folder / "requirements.lock").unlink()
    assert "There is no file" in (problem := runtime_problem(str(runtime_wheel)))
    assert "requirements.lock" in problem


def test_a_requirement_is_resolved(make: functools.partial[Builder], index: str, tmp_path: Path) -> None:
    """A package of the index is part of the hashed set; so it is with a lock of the operator's."""
    files = build(make("shop==1.0", index=index))
    assert "shop==1.0 \\\n    --hash=sha256:" in files["requirements.txt"]
    assert [name for name in files if name.endswith(".whl")] == ["rt-1.0-py3-none-any.whl"]

    lock = tmp_path / "shop.lock"
    lock.write_text(f"shop==1.0 --hash={D}\n{LOCK}")
    assert D in build(make("shop==1.0", lock=str(lock)))["requirements.txt"]
    lock.write_text(LOCK)
    with pytest.raises(ReleaseError, match=r"does not pin shop==1\.0"):
        make("shop==1.0", lock=str(lock)).identify(save=False)


def test_without_a_lock_the_resolution_is_kept(
    make: functools.partial[Builder], app: Path, index: str, tmp_path: Path
) -> None:
    """It is made once, prefers what the runtime was tested with, and is part of the id."""
    (app / "requirements.lock").unlink()
    release = make(app, index=index).identify(save=True)
    (text,) = [path.read_text() for path in (tmp_path / "cache" / "requirements").iterdir()]
    assert [line.split()[0] for line in text.splitlines() if line[0] not in " #"] == [
        "dep==0.9",
        "rt-only==1.0",
    ]
    assert make(app, index=NOWHERE).identify(save=True) == release


def test_dependencies_that_do_not_fit_are_refused(
    make: functools.partial[Builder], app: Path, index: str
) -> None:
    """Uv's own explanation is in the message."""
    (app / "requirements.lock").unlink()
    (app / "pyproject.toml").write_text(PROJECT.format(name="shop", dependencies='"dep>2"'))
    with pytest.raises(
        ReleaseError, match=r"cannot be resolved[\s\S]*only[\s\S]*dep[\s\S]*runtime needs dep\."
    ):
        make(app, index=index).identify(save=True)


def test_uv_lock_is_exported(make: functools.partial[Builder], app: Path, index: str) -> None:
    """A uv.lock is read without the app's groups for development."""
    (app / "requirements.lock").unlink()
    with (app / "pyproject.toml").open("a") as stream:
        stream.write('[dependency-groups]\ndev = ["rt-only"]\n')
    Uv(index)("lock", "--quiet", failure="lock", cwd=app)
    before = tree_digest(app)
    requirements = build(make(app))["requirements.txt"]
    assert "dep==1.1 \\\n    --hash=sha256:" in requirements
    assert f"rt-only==1.0 \\\n    --hash={C}" in requirements  # the runtime's line, not that of the group
    assert tree_digest(app) == before


def test_a_named_lock_must_exist(make: functools.partial[Builder], app: Path) -> None:
    """A lock is looked for below the source, or on the controller, and nowhere else."""
    shutil.move(app / "requirements.lock", app / "prod.lock")
    assert "dep==1.0" in build(make(app, lock="prod.lock"))["requirements.txt"]
    with pytest.raises(ReleaseError, match=r"has no file stage\.lock"):
        make(app, lock="stage.lock").identify(save=False)
    with pytest.raises(ReleaseError, match="no lock /nowhere"):
        make(app, lock="/nowhere/prod.lock")


def test_a_compiled_app_is_shipped_as_source(make: functools.partial[Builder], tmp_path: Path) -> None:
    """A wheel for the controller's platform would not fit the hosts, which compile the sdist."""
    path = tmp_path / "compiled"
    path.mkdir()
    (path / "backend.py").write_text(COMPILED)
    (path / "requirements.lock").write_text(LOCK)
    (path / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    )
    with pytest.raises(ReleaseError, match=r"Name compiled in celery_app_build_packages"):
        build(make(path))
    files = build(make(path, build=["Compiled"]))
    assert "compiled-1.0.tar.gz" in files
    assert files["requirements.txt"].startswith("./compiled-1.0.tar.gz --hash=sha256:")
    assert not any(name.startswith("compiled") and name.endswith(".whl") for name in files)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[project\n", "TOML"),
        ('[build-system]\nrequires = []\nbuild-backend = "missing"\nbackend-path = ["."]\n', "missing"),
    ],
)
def test_a_broken_project_is_refused(
    make: functools.partial[Builder], app: Path, tmp_path: Path, text: str, reason: str
) -> None:
    """The message says what the build tool said, and the cache gets nothing that looks like a release."""
    (app / "pyproject.toml").write_text(text)
    release = make(app)
    with pytest.raises(ReleaseError, match=rf"cannot be (built|resolved)[\s\S]*{reason}"):
        release.build(release.identify(save=True))
    assert not list((tmp_path / "cache").glob("*.tar"))


def test_an_unreadable_project_is_refused(make: functools.partial[Builder], app: Path) -> None:
    """Without a lock, a project is read before it is built; the message is as plain."""
    (app / "requirements.lock").unlink()
    future = PROJECT.format(name="shop", dependencies="").replace("3.11", "4.0")
    for text, reason in (("[project\n", "cannot be read"), (future, "No Python satisfies both")):
        (app / "pyproject.toml").write_text(text)
        with pytest.raises(ReleaseError, match=reason):
            make(app).identify(save=True)


def test_uv_trusts_what_the_machine_trusts(monkeypatch: pytest.MonkeyPatch) -> None:
    """An index of a company's own authority works as it does with pip; who wants it otherwise says so."""
    monkeypatch.delenv("UV_SYSTEM_CERTS", raising=False)
    assert Uv().env["UV_SYSTEM_CERTS"] == "1"
    monkeypatch.setenv("UV_SYSTEM_CERTS", "0")
    assert Uv().env["UV_SYSTEM_CERTS"] == "0"


def test_a_missing_uv_is_named(app: Path, runtime: Path, tmp_path: Path) -> None:
    """Without uv the message says where it was looked for."""
    uv = Uv()
    uv.path = tmp_path / "uv-is-not-here"
    release = Builder(parse_source(str(app), ""), Directory(runtime), tmp_path, python="p", lock="", uv=uv)
    with pytest.raises(ReleaseError, match=r"there is no .*uv-is-not-here on the controller"):
        release.build(release.identify(save=True))


def test_a_controller_without_uv_gets_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is pinned, made once, and only where it is needed; what hinders it is in the message."""
    made = []

    def install(path: Path, requirements: str, env: dict[str, str], python: str) -> str:
        made.append((path, requirements, env, python))
        return "no index" if len(made) == 1 else ""

    python = tmp_path / "bin" / "python"
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(hashed_venv, "install", install)
    uv = functools.partial(Uv, "https://index.example.org", venv=tmp_path / "uv", requirements="uv==1\n")
    with pytest.raises(ReleaseError, match=rf"no {tmp_path}/bin/uv[\s\S]*pip install uv\nno index"):
        uv()("--version", failure="uv")
    assert uv().path == tmp_path / "uv" / "bin" / "uv"
    assert made[1] == (
        tmp_path / "uv", "uv==1\n", {"PIP_INDEX_URL": "https://index.example.org"}, str(python)
    )  # fmt: skip
    (tmp_path / "uv").mkdir()
    (tmp_path / "uv" / "requirements.txt").write_text("uv==1\n")
    assert uv().path == tmp_path / "uv" / "bin" / "uv"
    python.parent.mkdir()
    python.with_name("uv").touch()
    assert uv().path == python.with_name("uv")
    assert len(made) == 2


# A build backend that tries what an attacker would, and puts what it found into the wheel.
EVIL = """\
import json, os, socket, urllib.request, zipfile

def tried(action):
    try:
        return str(action())[:99]
    except OSError as error:
        return ""

def attack():
    read = {{path: tried(lambda: open(path).read()) for path in {secrets!r}}}
    wrote = tried(lambda: open({target!r}, "w").write("x"))
    net = tried(lambda: urllib.request.urlopen({index!r}, timeout=5).read())
    agent = os.environ.get("SSH_AUTH_SOCK", "") or os.environ.get("ANSIBLE_VAULT_PASSWORD_FILE", "")
    credentials = [name for name in os.environ if name.startswith("UV_")]
    processes = len([name for name in os.listdir("/proc") if name.isdigit()]) if os.path.isdir("/proc") else 0
    return dict(read=read, wrote=wrote, net=net, agent=agent, credentials=credentials, processes=processes,
                root=os.getuid() == 0 and os.access("/etc/shadow", os.R_OK))

def get_requires_for_build_wheel(config_settings=None):
    print("noise of a backend")
    return []

def build_wheel(directory, config_settings=None, metadata_directory=None):
    about = "evil-1.0.dist-info"
    name = "evil-1.0-py3-none-any.whl"
    with zipfile.ZipFile(f"{{directory}}/{{name}}", "w") as wheel:
        wheel.writestr("found.json", json.dumps(attack()))
        wheel.writestr(f"{{about}}/METADATA",
                       "Metadata-Version: 2.1\\nName: evil\\nVersion: 1.0\\nRequires-Dist: dep\\n"
                       "Provides-Extra: more\\nRequires-Dist: shop; extra == 'more'\\n")
        wheel.writestr(f"{{about}}/WHEEL",
                       "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(f"{{about}}/RECORD", "")
    {last}
    return name
"""


def evil(path: Path, index: str, lock: str | None = LOCK, last: str = "") -> Path:
    """Make an app whose build hook looks for what the controller holds."""
    path.mkdir()
    secret = path.parent / "vault-password"
    secret.write_text("CANARY")
    secrets = [str(secret), "/etc/shadow", str(path.parent / "runtime" / "pyproject.toml")]
    target = str(path.parent / "attacked")
    backend = EVIL.format(secrets=secrets, target=target, index=index, last=last)
    (path / "hook.py").write_text(backend)
    (path / "pyproject.toml").write_text(
        '[project]\nname = "evil"\nversion = "1.0"\ndynamic = ["dependencies"]\n'
        '[build-system]\nrequires = []\nbuild-backend = "hook"\nbackend-path = ["."]\n'
    )
    if lock is not None:
        (path / "requirements.lock").write_text(lock)
    return path


def found(release: Builder) -> dict[str, Any]:
    """Return what the build hook of a release has found."""
    with tarfile.open(release.archive(release.identify(save=True))) as archive:
        wheel = archive.extractfile("evil-1.0-py3-none-any.whl")
        assert wheel
        with zipfile.ZipFile(io.BytesIO(wheel.read())) as file:
            found: dict[str, Any] = json.loads(file.read("found.json"))
    return found


def test_a_build_hook_sees_nothing_of_the_controller(
    make: functools.partial[Builder], tmp_path: Path, index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file, no variable, no network, no process; and it can write beside what is built only."""
    monkeypatch.setenv("SSH_AUTH_SOCK", "/run/agent")
    monkeypatch.setenv("ANSIBLE_VAULT_PASSWORD_FILE", str(tmp_path / "vault-password"))
    release = make(evil(tmp_path / "evil", index), index=index)
    build(release)
    seen = found(release)
    assert set(seen.pop("read").values()) == {""}
    assert seen.pop("processes") <= 1
    nothing = {"wrote": "", "net": "", "agent": "", "credentials": [], "root": False}
    assert seen == nothing
    assert not (tmp_path / "attacked").exists()


def test_without_the_sandbox_a_build_hook_sees_what_the_operator_sees(
    make: functools.partial[Builder], tmp_path: Path, index: str
) -> None:
    """Which the operator has to accept; and the attack of these tests is one."""
    release = make(evil(tmp_path / "evil", index), index=index)
    release.uv.sandbox = Sandbox(unconfined=True)
    build(release)
    seen = found(release)
    assert seen["read"][str(tmp_path / "vault-password")] == "CANARY"
    assert seen["net"]
    assert (tmp_path / "attacked").exists()


def test_without_namespaces_nothing_is_built_unasked(
    make: functools.partial[Builder], app: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The refusal says what to do, and which variable accepts the risk."""
    release = make(app)
    monkeypatch.setattr(Sandbox, "_fault", "unshare: unshare failed: Operation not permitted")
    with pytest.raises(ReleaseError, match=r"Operation not permitted[\s\S]*celery_app_build_unconfined"):
        release.build(release.identify(save=True))


@pytest.mark.parametrize(
    "last",
    [
        'os.rename(f"{{directory}}/{{name}}", "kept"); os.symlink({secret!r}, f"{{directory}}/{{name}}")',
        'os.rename(directory, "kept"); os.symlink("/etc", directory)',
        'os.remove(f"{{directory}}/{{name}}"); os.mkfifo(f"{{directory}}/{{name}}")',
    ],
)
def test_what_a_build_hook_leaves_must_be_its_own(
    make: functools.partial[Builder], tmp_path: Path, index: str, last: str
) -> None:
    """A link in place of the wheel would be read with the operator's rights, and shipped to the hosts."""
    last = last.format(secret=str(tmp_path / "vault-password")).replace("{{", "{").replace("}}", "}")
    release = make(evil(tmp_path / "evil", index, last=last), index=index)
    with pytest.raises(ReleaseError, match=r"not a file of its own|has made no wheel"):
        release.build(release.identify(save=True))


def test_what_a_backend_needs_is_fetched_before(
    make: functools.partial[Builder], tmp_path: Path, index: str
) -> None:
    """From wheels; what is no requirement of the index is refused."""
    path = evil(tmp_path / "evil", index)
    text = (path / "pyproject.toml").read_text()
    (path / "hook.py").write_text("import dep_code\n" + (path / "hook.py").read_text())
    (path / "pyproject.toml").write_text(text.replace("requires = []", 'requires = ["dep==1.0"]'))
    build(make(path, index=index))
    for refused in ("--index-url=http://evil", "dep @ file:///etc/passwd"):
        (path / "pyproject.toml").write_text(text.replace("requires = []", f'requires = ["{refused}"]'))
        release = make(path, index=index)
        with pytest.raises(ReleaseError, match="must be a requirement of the index"):
            release.build(release.identify(save=True))


def test_only_a_build_hook_knows_what_an_app_depends_on(
    make: functools.partial[Builder], tmp_path: Path, index: str
) -> None:
    """It is asked in the sandbox; extras are those of the wheel that it makes."""
    path = evil(tmp_path / "evil", index, lock=None)
    assert "shop==1.0" not in build(make(path, index=index))["requirements.txt"]
    assert "shop==1.0" in build(make(f"{path}[more]", index=index))["requirements.txt"]
    assert not (tmp_path / "attacked").exists()


def test_extras_are_part_of_a_release(
    make: functools.partial[Builder], app: Path, index: str, tmp_path: Path
) -> None:
    """Those of a path, of git and of a wheel; one that the app does not have is refused."""
    (app / "requirements.lock").unlink()
    plain = make(app, index=index).identify(save=False)
    with (app / "pyproject.toml").open("a") as stream:
        stream.write('[project.optional-dependencies]\nworker = ["shop==1.0"]\n')
    release = make(f"{app}[worker]", index=index)
    assert release.identify(save=False) != plain
    assert "shop==1.0" in build(release)["requirements.txt"]
    with pytest.raises(ReleaseError, match=r"has no extra beat[\s\S]*It has: worker"):
        make(f"{app}[beat]", index=index).identify(save=False)


def test_resolved_for_the_python_of_the_hosts(
    make: functools.partial[Builder], index: str, tmp_path: Path
) -> None:
    """A package that needs a newer Python than the controller's resolves, if the hosts have it."""
    with pytest.raises(ReleaseError, match=r"cannot be resolved[\s\S]*3\.13"):
        make("modern==1.0", index=index, pythons=["3.13", "3.11"]).identify(save=True)
    release = make("modern==1.0", index=index, pythons=["3.13"])
    assert "modern==1.0" in build(release)["requirements.txt"]
    known = release.identify(save=True)
    assert make("modern==1.0", index=NOWHERE, pythons=["3.14"]).identify(save=True) == known
    assert make("modern==1.0", index=NOWHERE).identify(save=True) == known
    with pytest.raises(ReleaseError, match="cannot be resolved"):  # an older one is resolved anew
        make("modern==1.0", index=index, pythons=["3.12"]).identify(save=True)


def test_an_app_that_is_too_new_for_a_host_is_refused(make: functools.partial[Builder], app: Path) -> None:
    """By the Python that the host has."""
    (app / "requirements.lock").unlink()
    text = (app / "pyproject.toml").read_text()
    (app / "pyproject.toml").write_text(text.replace(">=3.11", ">=3.12"))
    with pytest.raises(ReleaseError, match=r"needs Python [\s\S]*3\.12[\s\S]*a host has 3\.11"):
        make(app, pythons=["3.13", "3.11"]).identify(save=True)


def test_a_package_without_a_wheel_is_named(make: functools.partial[Builder], app: Path, index: str) -> None:
    """Its build hook would run on each host, and here to be resolved."""
    (app / "requirements.lock").unlink()
    (app / "pyproject.toml").write_text(PROJECT.format(name="shop", dependencies='"raw"'))
    with pytest.raises(ReleaseError, match=r"raw[\s\S]*celery_app_build_packages"):
        make(app, index=index).identify(save=True)
    assert "raw==1.0" in build(make(app, index=index, build=["raw"]))["requirements.txt"]


def monorepo(root: Path, origin: str) -> Path:
    """Make an app that takes shop-core from beside it, which takes shop-base; return the app."""
    core, base = root / "libs" / "core", root / "libs" / "base"
    app = project(root / "apps" / "shop", "shop", '"shop-core[pg]", "dep"')
    project(core, "shop_core", '"shop-base"')
    project(base, "shop_base", '"dep>=1"')
    for path, sibling, place in (
        (app, "shop-core", "../../libs/core"),
        (core, "shop-base", "../base"),
    ):
        said = origin.format(place)
        with (path / "pyproject.toml").open("a") as stream:
            stream.write(f"[tool.uv.sources]\n{sibling} = {said}\n")
    with (core / "pyproject.toml").open("a") as stream:
        stream.write('[project.optional-dependencies]\npg = ["rt-only"]\n')
    if "workspace" in origin:
        members = '[tool.uv.workspace]\nmembers = ["apps/*", "libs/*"]\n'
        (root / "pyproject.toml").write_text(members)
    return app


@pytest.mark.parametrize("origin", ["{{ workspace = true }}", '{{ path = "{}" }}'])
def test_what_is_beside_an_app_is_shipped_with_it(
    make: functools.partial[Builder], tmp_path: Path, origin: str
) -> None:
    """As wheels of their own, from a directory and from git; a change of one is another release."""
    app = monorepo(tmp_path / "mono", origin)
    expected = {f"{name}-1.0-py3-none-any.whl" for name in ("shop", "shop_core", "shop_base", "rt")}
    release = make(app)
    files = build(release)
    assert {name for name in files if name.endswith(".whl")} == expected
    pins = {line.split(" ")[0] for line in files["requirements.txt"].splitlines() if line[0] not in " "}
    assert pins == {f"./{name}" for name in expected} | {"dep==1.1", "rt-only==1.0"}

    author = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    for command in (["init", "-q"], ["add", "."], [*author, "commit", "-qm", "one"]):
        subprocess.run(["git", *command], cwd=tmp_path / "mono", check=True)
    from_git = build(make(f"file://{tmp_path}/mono#subdirectory=apps/shop"))
    assert from_git["requirements.txt"] == files["requirements.txt"]

    before = release.identify(save=True)
    (tmp_path / "mono/libs/base/src/shop_base/__init__.py").write_text("x = 1\n")
    assert make(app, index=NOWHERE).identify(save=True) != before


def test_the_lock_of_a_workspace_is_respected(
    make: functools.partial[Builder], tmp_path: Path, index: str
) -> None:
    """It is at the root."""
    app = monorepo(tmp_path / "mono", "{{ workspace = true }}")
    text = (tmp_path / "mono/libs/base/pyproject.toml").read_text()
    (tmp_path / "mono/libs/base/pyproject.toml").write_text(text.replace("dep>=1", "dep==1.0"))
    Uv(index)("lock", "--quiet", failure="lock", cwd=tmp_path / "mono")
    (tmp_path / "mono/libs/base/pyproject.toml").write_text(text)
    assert "dep==1.0 " in build(make(app))["requirements.txt"]


def test_what_is_beside_an_app_stays_within_its_source(
    make: functools.partial[Builder], tmp_path: Path
) -> None:
    """A repository names no directory of the controller, and a member that is not there is named."""
    outside = project(tmp_path / "outside", "shop_core")
    app = project(tmp_path / "mono" / "shop", "shop", '"shop-core"')
    with (app / "pyproject.toml").open("a") as stream:
        stream.write(f'[tool.uv.sources]\nshop-core = {{ path = "{outside}" }}\n')
    author = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    for command in (["init", "-q"], ["add", "."], [*author, "commit", "-qm", "one"]):
        subprocess.run(["git", *command], cwd=app, check=True)
    release = make(f"file://{app}")
    with pytest.raises(ReleaseError, match="takes shop-core from outside"):
        release.build(release.identify(save=True))
    missing = monorepo(tmp_path / "other", "{{ workspace = true }}")
    shutil.rmtree(tmp_path / "other" / "libs" / "base")
    with pytest.raises(ReleaseError, match="takes shop-base from its uv workspace, which has no such member"):
        make(missing).identify(save=True)


def test_history_without_settings(tmp_path: Path) -> None:
    """A backend may take the version from a tag, but finds no credentials in the repository's settings."""
    repository = project(tmp_path / "shop", "shop")
    author = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    for command in (["init", "-q"], ["add", "."], [*author, "commit", "-qm", "one"], ["tag", "v7"]):
        subprocess.run(["git", *command], cwd=repository, check=True)
    with (repository / ".git" / "config").open("a") as stream:
        stream.write('[remote "origin"]\nurl = https://me:CANARY@git.example.org/shop.git\n')
    copy = Directory(repository).fetch(tmp_path / "work")
    described = subprocess.run(
        ["git", "describe", "--tags", "--dirty"], cwd=copy, capture_output=True, text=True
    )
    assert described.stdout == "v7\n"
    assert "CANARY" not in (copy / ".git" / "config").read_text()


FLAT = {
    "app.py": "import celery\n",
    "worker/tasks.py": "x = 1\n",
    "templates/mail.html": "<p>",
    "requirements.txt": "dep==0.9  # pinned, and no hash\n",
}


def folder(path: Path, **files: str) -> Path:
    """Make an app that is a folder with files, and no package."""
    for name, text in {**FLAT, **files}.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    return path


def wheel_of(release: Builder) -> dict[str, bytes]:
    """Return the files of the app's wheel in a release."""
    with tarfile.open(release.archive(release.identify(save=True))) as archive:
        (name,) = [name for name in archive.getnames() if name.startswith("celery_fleet_app-")]
        member = archive.extractfile(name)
        assert member
        with zipfile.ZipFile(io.BytesIO(member.read())) as wheel:
            return {name: wheel.read(name) for name in wheel.namelist()}


def test_a_folder_is_shipped_as_it_is(make: functools.partial[Builder], tmp_path: Path) -> None:
    """With its pins, and without what is hidden or left by runs, which change nothing."""
    release = make(folder(tmp_path / "celery"))
    files = build(release)
    assert "dep==0.9 \\\n" in files["requirements.txt"]
    assert files["requirements.txt"].startswith("./celery_fleet_app-0-py3-none-any.whl --hash=sha256:")
    place = "celery_fleet_app-0.data/data/source"
    assert {f"{place}/{name}" for name in FLAT} < {*wheel_of(release)}
    assert release.warnings == []

    litter = {".env": "PASSWORD=CANARY", "db.sqlite3": "", "celerybeat-schedule.db": "", ".git/HEAD": ""}
    again = make(folder(tmp_path / "celery", **litter))
    assert again.identify(save=True) == release.identify(save=True)
    again.archive(again.identify(save=True)).unlink()
    build(again)
    assert wheel_of(again) == wheel_of(release)
    assert "celery_app_environment" in again.warnings[0]
    (tmp_path / "celery" / "app.py").write_text("import celery  # changed\n")
    assert make(tmp_path / "celery").identify(save=True) != release.identify(save=True)


def test_a_folder_runs_as_in_its_directory(make: functools.partial[Builder], tmp_path: Path) -> None:
    """Its modules come before those of the same name that were installed; `src` is a place of modules."""
    path = folder(tmp_path / "shop", **{"dep_code.py": "ours = True\n", "src/more.py": ""})
    release = make(path)
    release.runtime.path.joinpath("requirements.lock").write_text("")
    build(release)
    archive = release.archive(release.identify(save=True))
    (tmp_path / "dist").mkdir()
    subprocess.run(["tar", "-xf", archive, "-C", tmp_path / "dist"], check=True)
    venv = tmp_path / "venv"
    Uv()("venv", "--quiet", venv, failure="venv")
    python = venv / "bin" / "python"
    install = ("pip", "install", "--quiet", "--require-hashes", "--python", python, "--requirements")
    Uv(release.uv.env["UV_DEFAULT_INDEX"])(*install, "requirements.txt", failure="x", cwd=tmp_path / "dist")
    code = "import dep_code, worker.tasks, more; print(dep_code.ours, worker.tasks.__file__)"
    said = subprocess.run([python, "-c", code], cwd="/", capture_output=True, text=True, check=True).stdout
    assert said == f"True {venv}/source/worker/tasks.py\n"


@pytest.mark.parametrize("said", ["[tool.uv]\npackage = false\n", "[tool.poetry]\npackage-mode = false\n"])
def test_a_project_may_say_that_it_is_no_package(
    make: functools.partial[Builder], tmp_path: Path, said: str
) -> None:
    """What it depends on is then still what its pyproject.toml says."""
    text = PROJECT.format(name="shop", dependencies='"dep==1.0"') + said
    files = build(make(folder(tmp_path / "shop", **{"pyproject.toml": text})))
    assert "celery_fleet_app-1.0-py3-none-any.whl" in files
    assert "dep==1.0 " in files["requirements.txt"]


def test_a_folder_that_cannot_run_is_refused(make: functools.partial[Builder], tmp_path: Path) -> None:
    """Where a module hides a package of the runtime's, and where nothing says what the app depends on."""
    release = make(folder(tmp_path / "shop", **{"redis/__init__.py": ""}))
    with pytest.raises(ReleaseError, match=r"redis/__init__\.py at its top[\s\S]*Rename") as caught:
        release.build(release.identify(save=True))
    assert caught.value.step == "build"
    path = folder(tmp_path / "other", **{"pyproject.toml": "[tool.ruff]\n"})
    (path / "requirements.txt").unlink()
    with pytest.raises(ReleaseError, match=r"Write a requirements\.txt"):
        make(path).identify(save=True)
    release = make(
        folder(tmp_path / "fourth", **{"requirements.txt": "--extra-index-url=https://x.example\ndep\n"})
    )
    with pytest.raises(ReleaseError, match="cannot be resolved"):
        release.identify(save=True)
    assert "names an index, which the hosts do not know" in release.warnings[0]
    with pytest.raises(ReleaseError, match="has no extra s3"):
        make(f"{folder(tmp_path / 'third')}[s3]").identify(save=True)


def test_pins_without_hashes_are_taken(make: functools.partial[Builder], app: Path, tmp_path: Path) -> None:
    """From a file that celery_app_lock names; else the release says that it is not read."""
    (app / "requirements.lock").unlink()
    (app / "requirements.txt").write_text("dep==1.0\n")
    release = make(app)
    release.runtime.path.joinpath("requirements.lock").write_text("")
    assert "dep==1.1 " in build(release)["requirements.txt"]
    assert "celery_app_lock: requirements.txt" in release.warnings[0]
    assert "dep==1.0 " in build(make(app, lock="requirements.txt"))["requirements.txt"]
    (tmp_path / "pins.txt").write_text("dep==0.9\n")
    assert "dep==0.9 " in build(make(app, lock=str(tmp_path / "pins.txt")))["requirements.txt"]


def test_a_folder_may_name_directories_that_run(make: functools.partial[Builder], tmp_path: Path) -> None:
    """Uv runs the setup.py of an editable requirement: in the sandbox, and the release is refused."""
    attack = f"open({str(tmp_path / 'attacked')!r}, 'w')\n"
    path = folder(tmp_path / "shop", **{"requirements.txt": "-e ./lib\n", "lib/setup.py": attack})
    with pytest.raises(ReleaseError):
        make(path).identify(save=True)
    assert not (tmp_path / "attacked").exists()


def test_a_lock_outside_the_range_is_refused(
    make: functools.partial[Builder], app: Path, runtime: Path
) -> None:
    """By package, version and range, and no index is asked."""
    text = (runtime / "pyproject.toml").read_text()
    (runtime / "pyproject.toml").write_text(text.replace('["dep"]', '["dep>=1.1"]'))
    with pytest.raises(
        ReleaseError, match=r"requirements\.lock of the app pins dep 1\.0, and .*dep>=1\.1"
    ) as caught:
        make(app, index=NOWHERE).identify(save=True)
    assert caught.value.step == "resolve"


def test_a_lock_without_what_the_app_asks_for_is_refused(make: functools.partial[Builder], app: Path) -> None:
    """An extra for instance, which was not locked."""
    with (app / "pyproject.toml").open("a") as stream:
        stream.write(
            '[project.optional-dependencies]\nworker = ["more", "other; sys_platform == \'win32\'"]\n'
        )
    with pytest.raises(ReleaseError, match=r"lacks more, which the app with worker asks for"):
        make(f"{app}[worker]").identify(save=True)


def test_what_a_lock_pins_stays(
    make: functools.partial[Builder], app: Path, runtime: Path, index: str
) -> None:
    """What the runtime needs besides is resolved with it: its own lock may have another version."""
    (runtime / "requirements.lock").write_text(f"dep==0.9 --hash={B}\nshop==1.0 --hash={C}\n")
    text = (runtime / "pyproject.toml").read_text()
    (runtime / "pyproject.toml").write_text(text.replace('["rt-only"]', '["shop"]'))
    requirements = build(make(app))["requirements.txt"]
    assert f"dep==1.0 \\\n    --hash={A}\n" in requirements
    assert "shop==1.0 " in requirements
    (app / "requirements.lock").write_text(f"{LOCK}rt-only==2.0 --hash={D}\n")
    with pytest.raises(ReleaseError, match=r"cannot be resolved[\s\S]*rt-only==2\.0"):
        make(app).identify(save=True)


@pytest.mark.parametrize("name", ["poetry.lock", "Pipfile.lock"])
def test_locks_of_other_tools(make: functools.partial[Builder], tmp_path: Path, name: str) -> None:
    """They are found, and what they pin is installed; another lock beside it is told."""
    text = {
        "poetry.lock": f'[[package]]\nname = "dep"\nversion = "0.9"\ngroups = ["main"]\n'
        f'files = [{{file = "x", hash = "{A}"}}]\n',
        "Pipfile.lock": json.dumps({"default": {"dep": {"version": "==0.9", "hashes": [A]}}}),
    }[name]
    release = make(folder(tmp_path / "shop", **{name: text}))
    assert f"dep==0.9 \\\n    --hash={A}\n" in build(release)["requirements.txt"]
    assert f"{name}, requirements.txt" in release.warnings[0]


def test_code_resolves_nothing_anew(make: functools.partial[Builder], app: Path, tmp_path: Path) -> None:
    """A change of what the app depends on does."""
    (app / "requirements.lock").unlink()
    flat = folder(tmp_path / "flat")
    seen = [make(path).identify(save=True) for path in (app, flat)]
    for path in (app / "src/shop/__init__.py", flat / "worker/tasks.py"):
        path.write_text("x = 2\n")
    seen += [make(path, index=NOWHERE).identify(save=True) for path in (app, flat)]
    assert len(set(seen)) == len(seen)
    (flat / "requirements.txt").write_text("dep\n")
    with pytest.raises(ReleaseError, match=r"cannot be resolved[\s\S]*Failed to fetch"):
        make(flat, index=NOWHERE).identify(save=True)


def test_a_lock_is_written_for_the_app(make: functools.partial[Builder], tmp_path: Path, index: str) -> None:
    """It has what the app needs in versions that fit the runtime, is stable, and is what a release takes."""
    app = folder(tmp_path / "flat", **{"requirements.txt": "shop\n"})
    path = app / "requirements.lock"
    text = make(app, pythons=["3.13"]).locked(path, upgrade=False)
    assert text.startswith("# Written by playbooks/lock_app.yml for Python 3.13 or later.\n")
    assert [line.split()[0] for line in text.splitlines() if line[0] not in " #"] == ["dep==0.9", "shop==1.0"]
    path.write_text(text)
    assert make(app, pythons=["3.13"]).locked(path, upgrade=False) == text
    assert "shop==1.0 " in build(make(app))["requirements.txt"]

    (app / "requirements.txt").write_text("shop\nmore>=1  # since\n")
    with pytest.raises(ReleaseError, match=r"requirements\.lock of the app lacks more>=1"):
        make(app).identify(save=True)
    (app / "requirements.txt").write_text("shop\n")
    path.write_text(text.replace("dep==0.9", "dep==1.0"))
    assert "dep==1.0 " in make(app).locked(path, upgrade=False)
    assert "dep==0.9 " in make(app).locked(path, upgrade=True)  # which the runtime was tested with


def test_a_lock_of_another_tool_is_left_alone(make: functools.partial[Builder], app: Path) -> None:
    """Whether it is in the way, or elsewhere in the app."""
    with pytest.raises(ReleaseError, match=r"requirements\.lock was not written by lock_app"):
        make(app).locked(app / "requirements.lock", upgrade=False)
    with pytest.raises(ReleaseError, match=r"has requirements\.lock\. Change it with the tool"):
        make(app).locked(app / "other.lock", upgrade=False)
