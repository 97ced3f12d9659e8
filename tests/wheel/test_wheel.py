# SPDX-License-Identifier: MIT
"""The runtime as an index and its users get it: wheel and sdist, built, checked, installed and tested.

Nothing of this checkout is on the path of what is tested here. Packages come from the index, in the versions
that requirements/dev.txt pins.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROOT = Path(__file__).resolve().parents[2]
RUNTIME = ROOT / "app" / "runtime"
REPORT = ROOT / ".cache" / "test" / "wheel-sdist.xml"
OPTIONAL = ("flower", "gevent", "hiredis", "redbeat", "rich")
TESTS_TAKE = 1500  # seconds, at most
# Imports every module but the one that loads an app, and the one that is for an extra alone.
IMPORT_ALL = """
import importlib, pkgutil, fleet_runtime
for info in pkgutil.walk_packages(fleet_runtime.__path__, "fleet_runtime."):
    if info.name not in {"fleet_runtime.app", "fleet_runtime.cli.render"}:
        importlib.import_module(info.name)
print(fleet_runtime.__file__)
"""
LIST = "import importlib.metadata as m; print(*{one.name for one in m.distributions()})"


def run(
    *words: str | Path, cwd: Path, env: Mapping[str, str] | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        words, cwd=cwd, env=env, timeout=timeout, text=True, capture_output=True, check=False
    )


def require(done: subprocess.CompletedProcess[str]) -> str:
    """Return what a command printed, which must have succeeded."""
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(project: Path, out: Path) -> dict[str, Path]:
    """Build a project's wheel and sdist; return them by `wheel` and `sdist`."""
    require(run(sys.executable, "-m", "hatchling", "build", "--directory", out, cwd=project))
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return {"wheel": wheel, "sdist": sdist}


def digest(file: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the wheel and the sdist."""
    return build(RUNTIME, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def unpacked(built: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the sdist, unpacked outside of this checkout."""
    folder = tmp_path_factory.mktemp("sdist")
    subprocess.run(["tar", "-xf", built["sdist"], "-C", folder], check=True)
    (project,) = folder.iterdir()
    return project


def venv(folder: Path, wheel: Path, extras: str = "") -> Path:
    """Make a venv with the wheel, and return its folder of programs."""
    env = {**os.environ, "UV_SYSTEM_CERTS": "1", "VIRTUAL_ENV": str(folder)}
    index = ROOT / ".venv" / "index"  # uv does not read pip's configuration
    if index.exists() and (url := index.read_text().strip()):
        env["UV_DEFAULT_INDEX"] = url
    uv = Path(sys.executable).with_name("uv")
    require(run(uv, "venv", "--quiet", "--python", sys.executable, folder, cwd=ROOT, env=env))
    wanted = f"celery-fleet-runtime{extras} @ {wheel.as_uri()}"
    pins = ("--constraints", ROOT / "requirements" / "dev.txt")
    require(run(uv, "pip", "install", "--quiet", *pins, wanted, cwd=ROOT, env=env))
    require(run(uv, "pip", "check", "--quiet", cwd=ROOT, env=env))
    return folder / "bin"


@pytest.fixture(scope="module")
def core(built: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the programs of a venv without extras."""
    return venv(tmp_path_factory.mktemp("core"), built["wheel"])


def clean(programs: Path, **variables: str) -> dict[str, str]:
    """Return an environment with the programs of a venv, and nothing of this one."""
    return {"PATH": f"{programs}:/usr/bin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/nonexistent", **variables}


def test_two_builds_have_the_same_bytes(built: dict[str, Path], tmp_path: Path) -> None:
    """Also of a copy of the files that is newer, and in another place."""
    copy = shutil.copytree(RUNTIME, tmp_path / "copy", copy_function=shutil.copyfile)
    again = build(copy, tmp_path / "dist")
    assert {kind: digest(file) for kind, file in again.items()} == {
        kind: digest(file) for kind, file in built.items()
    }


def test_the_sdist_builds_the_same_wheel(built: dict[str, Path], unpacked: Path, tmp_path: Path) -> None:
    """So an installation from the sdist has the same files as one from the index."""
    assert digest(build(unpacked, tmp_path)["wheel"]) == digest(built["wheel"])


def test_an_index_takes_both(built: dict[str, Path]) -> None:
    """With their metadata and the description."""
    require(run(sys.executable, "-m", "twine", "check", "--strict", *built.values(), cwd=ROOT))


def test_contents_of_the_wheel(built: dict[str, Path]) -> None:
    """All of the package, and nothing of its tests."""
    source = RUNTIME / "src"
    wanted = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()}
    with zipfile.ZipFile(built["wheel"]) as archive:
        names = set(archive.namelist())
        (about,) = {name.partition("/")[0] for name in names if ".dist-info/" in name}
        metadata = message_from_bytes(archive.read(f"{about}/METADATA"))
    packaged = {name for name in names if not name.startswith(f"{about}/")}
    assert packaged == {name for name in wanted if "__pycache__" not in name}
    assert {"fleet_runtime/py.typed", f"{about}/licenses/LICENSE"} <= names
    assert metadata["License-Expression"] == "MIT"
    assert {*OPTIONAL, "all"} <= set(metadata.get_all("Provides-Extra") or ())
    required = [text for text in metadata.get_all("Requires-Dist") or () if "extra ==" not in text]
    assert not [text for text in required if text.startswith((*OPTIONAL, "celery-redbeat"))]


def test_licence_is_that_of_the_project() -> None:
    """It is a file of the package, which has no other."""
    assert (RUNTIME / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


def test_without_extras_every_module_can_be_imported(core: Path, tmp_path: Path) -> None:
    """An app that wants none of them gets none."""
    place = require(run("python", "-c", IMPORT_ALL, cwd=tmp_path, env=clean(core)))
    assert Path(place.strip()).is_relative_to(core.parent)
    listed = require(run("python", "-c", LIST, cwd=tmp_path, env=clean(core)))
    assert not {*OPTIONAL, "celery-redbeat"} & set(listed.split())


def test_without_extras_an_app_can_be_checked(core: Path, tmp_path: Path) -> None:
    """And what needs an extra names it."""
    (tmp_path / "shop.py").write_text("from celery import Celery\napp = Celery('shop')\n")
    url = "rediss://worker:pw@127.0.0.1:1/0?ssl_cert_reqs=required"
    variables = {"PYTHONPATH": str(tmp_path), "FLEET_APP": "shop:app", "FLEET_COMPONENT": "ops"}
    variables |= {"CELERY_BROKER_URL": url, "CELERY_RESULT_BACKEND": url}
    command: Sequence[str] = ("celery", "-A", "fleet_runtime.app", "fleet")
    said = require(run(*command, "check", cwd=tmp_path, env=clean(core, **variables)))
    assert "The app is fit to run at the level full." in said
    ended = run(*command, "status", cwd=tmp_path, env=clean(core, **variables))
    assert ended.returncode
    assert "install celery-fleet-runtime[rich]" in ended.stderr


@pytest.mark.timeout(TESTS_TAKE)
def test_the_tests_of_the_sdist_pass(
    built: dict[str, Path], unpacked: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """With the installed wheel, and no file of this checkout."""
    programs = venv(tmp_path_factory.mktemp("tests"), built["wheel"], "[test]")
    shutil.rmtree(unpacked / "src")  # what is tested is the wheel
    names = [
        path for path in unpacked.rglob("*") if path.is_file() and str(ROOT) in path.read_text("latin-1")
    ]
    assert names == []
    server = Path(os.environ.get("TEST_REDIS_SERVER") or shutil.which("redis-server") or "")
    (programs / "redis-server").symlink_to(server.resolve())  # its name says which of Redis's programs it is
    words = ("--quiet", "--numprocesses=4", "--dist=loadfile", f"--junitxml={REPORT}")
    done = run(
        programs / "pytest",
        *words,
        cwd=unpacked,
        env=clean(programs),
        timeout=TESTS_TAKE,
    )
    print(done.stdout[-2000:])
    require(done)
