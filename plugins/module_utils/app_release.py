"""Builds a release on the controller: what every host needs to install the same app, in one archive.

A release is identified before it is built. Its id is a digest of what goes into it: the app's source, the
runtime's, and the complete set of dependencies. The same input has the same id on every controller and on
every day, so a host that has the id needs nothing more.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import tarfile
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ansible.module_utils.app_release_lock import (
    Locked,
    find_lock,
    merge,
    parse_requirements,
    read_lock,
    render,
)
from ansible.module_utils.app_release_source import (
    Directory,
    Pinned,
    ReleaseError,
    Source,
    Wheel,
    file_digest,
    run,
)
from ansible.module_utils.app_release_tree import TRUST
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name, parse_sdist_filename, parse_wheel_filename

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

LAYOUT = 1  # raise it when what is in the archive, or how hosts install it, changes
EPOCH = "315532800"  # 1980-01-01, the first date that a wheel can carry: a rebuild gives the same bytes
PYTHONS = [f"3.{minor}" for minor in range(8, 40)]


@dataclass(frozen=True)
class Distribution:
    """A wheel, or an sdist, that a release carries."""

    path: Path
    name: str
    version: str

    @property
    def requirement(self) -> str:
        """Return the line of a requirements file beside it."""
        return f"./{self.path.name} --hash=sha256:{file_digest(self.path)}\n"


class Uv:
    """The uv of the controller's own environment."""

    def __init__(self, index_url: str = "") -> None:
        """Find uv beside this Python."""
        self.path = Path(sys.executable).parent / "uv"
        # uv obeys the operator's own environment and configuration; only these are the fleet's.
        self.env = TRUST | {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
        self.env |= {"SOURCE_DATE_EPOCH": EPOCH, "UV_PYTHON_DOWNLOADS": "never", "UV_NO_PROGRESS": "1"}
        if index_url:
            self.env["UV_DEFAULT_INDEX"] = index_url

    def __call__(self, *arguments: str | Path, failure: str, cwd: Path | None = None) -> str:
        """Run uv and return what it prints."""
        output: str = run([str(self.path), *map(str, arguments)], failure, env=self.env, cwd=cwd)
        return output

    def build(self, project: Path, out: Path, name: str) -> Distribution:
        """Build a project's wheel, or its sdist if the wheel would be for the controller's platform only."""
        self._build("--wheel", project, out, name)
        wheel = next(out.glob("*.whl"))
        wheel_name, version, _, tags = parse_wheel_filename(wheel.name)
        if all(tag.abi == "none" and tag.platform == "any" for tag in tags):
            return Distribution(wheel, wheel_name, str(version))
        self._build("--sdist", project, out, name)
        sdist = next(out.glob("*.tar.gz"))
        sdist_name, version = parse_sdist_filename(sdist.name)
        return Distribution(sdist, sdist_name, str(version))

    def _build(self, kind: str, project: Path, out: Path, name: str) -> None:
        """Build a project in its own temporary directory."""
        options = ("--no-create-gitignore", "--python", sys.executable, "--out-dir", out)
        self("build", kind, *options, project, failure=f"{name} cannot be built", cwd=project)

    def export(self, project: Path) -> list[Locked]:
        """Return what a project's uv.lock pins for its run time."""
        options = ("--frozen", "--no-default-groups", "--no-emit-project", "--no-header", "--no-annotate")
        text = self("export", *options, failure="uv.lock cannot be read", cwd=project)
        lines: list[Locked] = parse_requirements(text, "uv.lock")
        return lines

    def resolve(self, inputs: Iterable[Path], preferred: Path, python: str, work: Path) -> list[Locked]:
        """Resolve dependencies for every platform.

        Args:
            inputs: Projects' pyproject.toml, setup.py, and requirements files.
            preferred: A lock whose versions are taken wherever they fit.
            python: The oldest Python that must be served.
            work: A temporary directory.
        """
        output = work / "resolved.txt"
        output.write_bytes(preferred.read_bytes())  # uv keeps the versions of the file that it writes over
        options = ("--universal", "--generate-hashes", "--no-header", "--no-annotate", "--quiet")
        pythons = ("--python", sys.executable, "--python-version", python)
        command: list[str | Path] = ["pip", "compile", *options, *pythons, "--output-file", output, *inputs]
        self(*command, failure="The app's dependencies do not fit together with the runtime's", cwd=work)
        lines: list[Locked] = parse_requirements(output.read_text(encoding="utf-8"), "the resolution")
        return lines


class Builder:
    """One release: identified, then built if the cache has not got it."""

    def __init__(
        self, source: Source, runtime: Directory, cache: Path, *, python: str, lock: str, uv: Uv
    ) -> None:
        """Take what the release is made of.

        Args:
            source: The app.
            runtime: The runtime's source, with its requirements.lock.
            cache: Directory for what was resolved and built; it may be deleted at any time.
            python: The interpreter that hosts run the release with, which is part of what it is.
            lock: The app's lock: empty to look for it, a path below the source, or a path on the controller.
            uv: The uv to build with.
        """
        self.source = source
        self.runtime = runtime
        self.cache = cache
        self.lock = lock
        self.uv = uv
        if lock and Path(lock).is_absolute() and not Path(lock).is_file():
            raise ReleaseError(f"There is no lock {lock} on the controller.")
        inputs: dict[str, Any] = {
            "layout": LAYOUT,
            "app": source.fingerprint(),
            "lock": file_digest(Path(lock)) if Path(lock).is_absolute() else lock,
            "runtime": runtime.fingerprint(),
            "python": python,
        }
        self.key = _digest(json.dumps(inputs, sort_keys=True))
        self.about = {"source": str(source), **inputs["app"]}

    def identify(self, *, save: bool) -> str:
        """Return the id of the release.

        Args:
            save: Whether to keep a new set of dependencies, so that the next run has the same one.
        """
        return _digest(self.key + self._requirements(save=save))

    def archive(self, release: str) -> Path:
        """Return where the archive of a release is in the cache."""
        return self.cache / f"{release}.tar"

    def build(self, release: str) -> bool:
        """Build the archive of a release, and return whether that was needed."""
        archive = self.archive(release)
        if archive.exists():
            return False
        requirements = self._requirements(save=True)
        with tempfile.TemporaryDirectory(prefix="celery-release-") as directory:
            work = Path(directory)
            own = self.runtime.fetch(work / "runtime")
            runtime = self.uv.build(own, work / "runtime-dist", "The runtime")
            app = self._app(work)
            about = {"name": app.name, "version": app.version, **self.about}
            about = {"id": release, "app": about, "runtime": {"version": runtime.version}}
            files = [runtime] if isinstance(self.source, Pinned) else [app, runtime]
            lines = "".join(file.requirement for file in files) + requirements
            contents = {file.path.name: file.path.read_bytes() for file in files}
            contents["requirements.txt"] = lines.encode()
            contents["release.json"] = (json.dumps(about, indent=2, sort_keys=True) + "\n").encode()
        _write(archive, _tar(contents))
        return True

    def _app(self, work: Path) -> Distribution:
        """Return the app's distribution; a package of the index has a name and a version, but no file."""
        match self.source:
            case Wheel(path=path):
                name, version, _, _ = parse_wheel_filename(path.name)
                return Distribution(path, name, str(version))
            case Pinned(requirement=requirement):
                return Distribution(Path(), requirement.name, next(iter(requirement.specifier)).version)
            case project:
                return self.uv.build(project.fetch(work), work / "app-dist", f"The app at {self.source}")

    def _requirements(self, *, save: bool) -> str:
        """Return the complete set of dependencies, from the cache if it was worked out before."""
        cached = self.cache / "requirements" / f"{self.key}.txt"
        if cached.exists():
            return cached.read_text(encoding="utf-8")
        with tempfile.TemporaryDirectory(prefix="celery-release-") as directory:
            text: str = render(self._dependencies(Path(directory)))
        if save:
            _write(cached, text.encode())
        return text

    def _dependencies(self, work: Path) -> list[Locked]:
        """Return the dependencies of the app and the runtime: the app's lock completed, or resolved anew."""
        ours = self.runtime.path / "requirements.lock"
        project = None if isinstance(self.source, Wheel | Pinned) else self.source.fetch(work)
        lock = self._find_lock(project)
        lines: list[Locked]
        if lock:
            theirs = self.uv.export(lock.parent) if lock.name == "uv.lock" else read_lock(lock)
            lines = merge(theirs, read_lock(ours))
            if isinstance(self.source, Pinned):
                _require_pin(self.source, lines, lock)
            return lines
        inputs = [self.runtime.path / "pyproject.toml", self._unlocked(project, work)]
        lines = self.uv.resolve(inputs, ours, _oldest_python(inputs), work)
        return [line for line in lines if not line.pin.startswith(" @ file:")]  # the app's own wheel

    def _find_lock(self, project: Path | None) -> Path | None:
        """Return the app's lock, or None where it has none."""
        if Path(self.lock).is_absolute():
            if Path(self.lock).name == "uv.lock":
                raise ReleaseError(f"{self.lock} cannot be read alone: leave it beside its pyproject.toml.")
            return Path(self.lock)
        if not self.lock:
            found: Path | None = find_lock(project) if project else None
            return found
        if project is None or not (project / self.lock).is_file():
            raise ReleaseError(f"{self.source} has no file {self.lock}, which celery_app_lock names.")
        return project / self.lock

    def _unlocked(self, project: Path | None, work: Path) -> Path:
        """Return the file from which uv can read what an app without a lock depends on."""
        if project:
            static = project / "pyproject.toml"
            return static if static.is_file() else project / "setup.py"
        wanted = str(self.source)
        if isinstance(self.source, Wheel):
            wanted = f"{parse_wheel_filename(self.source.path.name)[0]} @ {self.source.path.as_uri()}"
        file = work / "app.in"
        file.write_text(f"{wanted}\n", encoding="utf-8")
        return file


def _require_pin(source: Pinned, lines: Iterable[Locked], lock: Path) -> None:
    """Refuse a lock that does not hold the very version of the app that is asked for."""
    wanted = (canonicalize_name(source.requirement.name), str(source.requirement.specifier))
    if wanted not in {(line.name, line.pin) for line in lines}:
        raise ReleaseError(f"{lock} does not pin {source}, which celery_app_source asks for.")


def _oldest_python(inputs: Iterable[Path]) -> str:
    """Return the oldest Python that all projects accept."""
    accepted = SpecifierSet()
    for path in inputs:
        if path.name == "pyproject.toml":
            try:
                project = tomllib.loads(path.read_text(encoding="utf-8")).get("project", {})
                accepted &= SpecifierSet(project.get("requires-python", ""))
            except ValueError as error:
                raise ReleaseError(f"The app's pyproject.toml cannot be read: {error}") from error
    for version in PYTHONS:
        if version in accepted:
            return version
    raise ReleaseError(f"No Python satisfies both the app and the runtime: {accepted}")


def _digest(text: str) -> str:
    """Return a short digest: 48 bits tell the few releases of one app apart."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _tar(contents: Mapping[str, bytes]) -> bytes:
    """Return a tar archive of small files, the same bytes for the same contents."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in sorted(contents.items()):
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o644
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, so that an interrupted run leaves nothing that looks finished."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    Path(stream.name).replace(path)
