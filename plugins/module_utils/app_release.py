# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Builds a release on the controller: what every host needs to install the same app, in one archive.

A release is identified before it is built. Its id is a digest of what goes into it: the app's source, the
runtime's, and the complete set of dependencies. The same input has the same id on every controller and on
every day, so a host that has the id needs nothing more.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import io
import json
import os
import re
import shutil
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ansible_collections.fleet.celery.plugins.module_utils import (
    app_release_folder,
    app_release_hook,
    app_release_siblings,
    hashed_venv,
)
from ansible_collections.fleet.celery.plugins.module_utils.app_release_lock import (
    Locked,
    find_lock,
    fits,
    is_lock,
    merge,
    parse_requirements,
    read_lock,
    render,
)
from ansible_collections.fleet.celery.plugins.module_utils.app_release_sandbox import PATH as SANDBOX_PATH
from ansible_collections.fleet.celery.plugins.module_utils.app_release_sandbox import (
    PYTHON,
    Sandbox,
    own_file,
)
from ansible_collections.fleet.celery.plugins.module_utils.app_release_source import (
    LOCK_NAMES,
    RUNTIME,
    Directory,
    Pinned,
    ReleaseError,
    RuntimeWheel,
    Source,
    Wheel,
    at,
    file_digest,
    is_package,
    is_static,
    read_project,
    run,
    wheel_metadata,
)
from ansible_collections.fleet.celery.plugins.module_utils.app_release_tree import TRUST, explained, inherited
from ansible_collections.fleet.celery.plugins.module_utils.files import replace_file
from ansible_collections.fleet.celery.plugins.module_utils.index_gate import open_gate, without_proxies

with contextlib.suppress(ImportError):  # PACKAGING_ERROR of app_release_source has it
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.specifiers import SpecifierSet
    from packaging.utils import canonicalize_name, parse_sdist_filename, parse_wheel_filename
    from packaging.version import Version

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import Any

LAYOUT = 1  # raise it when what is in the archive, or how hosts install it, changes
EPOCH = "315532800"  # 1980-01-01, the first date that a wheel can carry: a rebuild gives the same bytes
RESOLVED_FOR = "# resolved for Python "
LOCK_HEADER = "# Written by playbooks/lock_app.yml"
NO_BUILD = re.compile(r"failed to build|build backend", re.I)
# How the names of uv's variables begin that name indexes, and the logins for them.
INDEXES = ("UV_DEFAULT_INDEX", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS", "UV_INDEX")
ALWAYS = ("hiredis",)  # extras of the runtime that every app's venv has: any version of these will do
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
    """The controller's uv. What it runs of others' code runs in the sandbox."""

    def __init__(
        self,
        index_url: str = "",
        sandbox: Sandbox | None = None,
        index_hosts: Iterable[str] = (),
        *,
        venv: Path | None = None,
        requirements: str = "",
        environment: Mapping[str, object] | None = None,
    ) -> None:
        """Take how uv is to be used.

        Args:
            index_url: Of the package index; empty means the controller's own configuration.
            sandbox: Where others' code runs.
            index_hosts: From which the index gives its files, where these are others than its own.
            venv: A virtual environment to install uv into if it is not beside this Python; None for none.
            requirements: Text of a requirements file that pins uv with hashes, for `venv`.
            environment: uv's variables on the hosts, of which those that name indexes hold here, too.
        """
        self.index_hosts = tuple(index_hosts)
        self.index_url = index_url
        self.venv = venv
        self.requirements = requirements
        self.sandbox = sandbox or Sandbox()
        # uv obeys the operator's own environment and configuration; only these are the fleet's.
        self.env = TRUST | {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
        self.env |= {"SOURCE_DATE_EPOCH": EPOCH, "UV_PYTHON_DOWNLOADS": "never", "UV_NO_PROGRESS": "1"}
        self.env |= {
            name: str(value) for name, value in (environment or {}).items() if name.startswith(INDEXES)
        }
        if index_url:
            self.env["UV_DEFAULT_INDEX"] = index_url

    @functools.cached_property
    def path(self) -> Path:
        """Return the uv beside this Python; without one, that of an environment which is made for it.

        Raises:
            ReleaseError: uv cannot be installed.
        """
        beside = Path(sys.executable).parent / "uv"
        if beside.exists() or not self.venv:
            return beside
        if not hashed_venv.is_whole(self.venv, self.requirements):
            index = {"PIP_INDEX_URL": self.index_url} if self.index_url else {}
            if fault := hashed_venv.install(self.venv, self.requirements, index, sys.executable):
                raise ReleaseError(
                    f"There is no {beside} on the controller, and uv cannot be installed into {self.venv}. "
                    f"Install it beside Ansible: {sys.executable} -m pip install uv\n{fault}"
                )
        return self.venv / "bin" / "uv"

    def __call__(self, *arguments: str | Path, failure: str, cwd: Path | None = None) -> str:
        """Run uv and return what it prints. Nothing that it is given may make it run code."""
        output: str = run([str(self.path), *map(str, arguments)], failure, env=self.env, cwd=cwd)
        return output

    def confined(
        self,
        *arguments: str | Path,
        failure: str,
        work: Path,
        cwd: Path | None = None,
        readable: Iterable[Path] = (),
        network: bool = False,
    ) -> str:
        """Run uv in the sandbox and return what it prints.

        Args:
            arguments: Its arguments.
            failure: What to say if it fails.
            work: The only directory that it, and what it runs, may write to.
            cwd: Where to run it; `work` if it is not said.
            readable: What it must see otherwise.
            network: Whether it, and what it runs, may ask the index, with the credentials for that.
        """
        own = {"UV_CACHE_DIR": str(work / ".uv-cache"), "SOURCE_DATE_EPOCH": EPOCH}
        env = {**(inherited(self.env) if network else {}), "UV_PYTHON_DOWNLOADS": "never", **own}
        config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "uv" / "uv.toml"
        if network and config.is_file():
            env["UV_CONFIG_FILE"] = str(config)
            readable = [*readable, config]
        trusted = [Path(env[name]) for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if name in env]
        readable = [*readable, *(path for path in trusted if path.exists())]
        command = [str(self.path), *([] if network else ["--offline", "--no-config"]), *map(str, arguments)]
        shown = [self.path, *PYTHON, *readable]
        call = functools.partial(
            self.sandbox.run, command, failure, cwd=cwd or work, work=work, readable=shown
        )
        if not network or self.sandbox.unconfined:
            return str(call(env=env))
        with open_gate(env, self.index_hosts, group=self.sandbox.group) as gate:
            return str(call(env=without_proxies(env), gate=gate))

    @at("build")
    def build(self, project: Path, work: Path, name: str) -> Distribution:
        """Build a project's wheel, or its sdist if the wheel would be for the controller's platform only.

        Args:
            project: The project, below `work`.
            work: A directory of which nothing else is needed: the build may write to all of it.
            name: What is built, for messages.
        """
        failure = f"{name} cannot be built"
        system = build_system(project, failure)  # before anything of the project has run, which may change it
        file = self._build("wheel", system, project, work, failure)
        wheel_name, version, _unused, tags = parse_wheel_filename(file.name)
        if all(tag.abi == "none" and tag.platform == "any" for tag in tags):
            return Distribution(file, wheel_name, str(version))
        file = self._build("sdist", system, project, work, failure)
        sdist_name, version = parse_sdist_filename(file.name)
        return Distribution(file, sdist_name, str(version))

    @at("build")
    def build_wheel(self, project: Path, work: Path, name: str) -> Path:
        """Build a project's wheel, whatever platform it is for."""
        failure = f"{name} cannot be built"
        return self._build("wheel", build_system(project, failure), project, work, failure)

    def _build(self, kind: str, system: BuildSystem, project: Path, work: Path, failure: str) -> Path:
        """Build a project's wheel or sdist in the sandbox, without a network, and return its file.

        What it is built with is fetched before, as wheels, of which nothing is run outside the sandbox.
        """
        out = work / f"{kind}-out"
        out.mkdir()
        pattern = "*.whl" if kind == "wheel" else "*.tar.gz"
        if self._is_own(system):  # uv builds these by itself
            options = ("--no-create-gitignore", "--python", PYTHON[0], "--out-dir", out)
            self.confined("build", f"--{kind}", *options, project, failure=failure, work=work, cwd=project)
        else:
            with tempfile.TemporaryDirectory(prefix="celery-release-") as directory:
                site = Path(directory, "site")  # where no hook can put a link
                site.mkdir(mode=0o755)
                site.parent.chmod(0o755)
                self._fetch(system.requires, site, failure)
                call = functools.partial(self._hook, system, project, work, site, out, failure)
                asked = call(f"get_requires_for_build_{kind}")
                self._fetch(list(map(str, asked)) if isinstance(asked, list) else [], site, failure)
                call(f"build_{kind}")
        found = list(out.glob(pattern)) if not out.is_symlink() else []
        if len(found) != 1:
            raise ReleaseError(f"{failure}: its backend, {system.backend}, has made no {kind}.")
        file: Path = own_file(found[0], work)
        return file

    def _is_own(self, system: BuildSystem) -> bool:
        """Whether uv builds a project itself, without fetching its backend."""
        if system.backend != "uv_build" or system.path or len(system.requires) != 1:
            return False
        version = self("--version", failure="uv cannot be run").split()[1]
        return version in Requirement(system.requires[0]).specifier

    def _fetch(self, requires: list[str], site: Path, failure: str) -> None:
        """Unpack what a backend needs into a directory, from wheels only: nothing of it is run."""
        if not requires:
            return
        for text in requires:
            try:
                unfit = Requirement(text).url
            except InvalidRequirement:
                unfit = text
            if unfit:
                raise ReleaseError(
                    f"{failure}: it is to be built with {text!r}, which must be a requirement of the index."
                )
        file = site.with_suffix(".in")
        file.write_text("".join(f"{text}\n" for text in requires), encoding="utf-8")
        options = ("--only-binary", ":all:", "--target", site, "--python", sys.executable, "--quiet")
        cause = f"{failure}: what it is built with cannot be fetched"
        self("pip", "install", *options, "--requirements", file, failure=cause, cwd=site)

    def _hook(
        self, system: BuildSystem, project: Path, work: Path, site: Path, out: Path, failure: str, name: str
    ) -> object:
        """Call a hook of a build backend in the sandbox, and return its answer."""
        request = {"hook": name, "backend": system.backend, "site": str(site), "out": str(out)}
        answer = work / f"{name}.json"
        code = inspect.getsource(app_release_hook)
        argv = [str(PYTHON[0]), "-P", "-c", code, json.dumps(request), str(answer), *system.path]
        env = {
            "SOURCE_DATE_EPOCH": EPOCH,
            "PYTHONPATH": str(site),
            "PATH": f"{site / 'bin'}:{SANDBOX_PATH}",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        self.sandbox.run(argv, failure, env=env, cwd=project, work=work, readable=[*PYTHON, site])
        try:
            return json.loads(own_file(answer, work).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ReleaseError(f"{failure}: {name} of {system.backend} has given no answer.") from error

    def export(self, project: Path, work: Path, extras: Iterable[str] = ()) -> list[Locked]:
        """Return what a project's uv.lock pins for its run time.

        In the sandbox: uv looks for the project's own interpreter, and runs it.
        """
        options = (
            "--frozen",
            "--no-default-groups",
            "--no-emit-workspace",
            "--no-emit-local",
            "--no-header",
            "--no-annotate",
        )
        chosen = [word for extra in extras for word in ("--extra", extra)]
        text = self.confined(
            "export",
            *options,
            *chosen,
            "--python",
            PYTHON[0],
            failure="uv.lock cannot be read",
            work=work,
            cwd=project,
        )
        lines: list[Locked] = parse_requirements(text, "uv.lock")
        return lines

    def resolve(
        self,
        inputs: Iterable[Path],
        preferred: Path,
        python: str,
        work: Path,
        *,
        build: Iterable[str] = (),
        extras: Iterable[str] = (),
        confined: bool = False,
        constraints: Path | None = None,
    ) -> list[Locked]:
        """Resolve dependencies for every platform.

        Nothing is built for that, so that nothing of what is resolved runs, but for the packages that the
        operator lets hosts build: these may have to be asked what they depend on, in the sandbox.

        Args:
            inputs: Projects' pyproject.toml and requirements files.
            preferred: A lock whose versions are taken wherever they fit.
            python: The oldest Python that must be served.
            work: A temporary directory.
            build: Packages that may be built.
            extras: Extras of the first input.
            confined: Whether an input is the app's, and may so name a directory, which uv asks by running it.
            constraints: A requirements file with versions that packages must have if they are needed.
        """
        output = work / "resolved.txt"
        output.write_bytes(preferred.read_bytes())  # uv keeps the versions of the file that it writes over
        options: list[str | Path] = [
            "--universal",
            "--generate-hashes",
            "--no-header",
            "--no-annotate",
            "--quiet",
        ]
        options += ["--only-binary", ":all:", *(word for name in build for word in ("--no-binary", name))]
        options += ["--python-version", python, "--output-file", output]
        options += [word for extra in extras for word in ("--extra", extra)]
        options += ["--constraints", constraints] if constraints else []
        failure = f"The dependencies of the app and the runtime cannot be resolved for Python {python}"
        command: list[str | Path] = ["pip", "compile", *options, "--python", PYTHON[0], *inputs]
        try:
            if build or confined:
                shown = [path for path in inputs if not path.is_relative_to(work)]
                self.confined(*command, failure=failure, work=work, readable=shown, network=True)
            else:
                self(*command, failure=failure, cwd=work)
        except ReleaseError as error:
            told = ReleaseError(explained(str(error)))
            told.step = "build" if NO_BUILD.search(str(error)) else ""
            raise told from error
        lines: list[Locked] = parse_requirements(own_file(output, work).read_text("utf-8"), "the resolution")
        return lines


@dataclass(frozen=True)
class BuildSystem:
    """What a project is built with: the table `build-system` of its pyproject.toml."""

    requires: list[str]
    backend: str
    path: list[str]


def build_system(project: Path, failure: str) -> BuildSystem:
    """Return what a project is built with; without a word of its own, as PEP 517 and 518 have it."""
    table = read_project(project, failure).get("build-system", {})
    backend = table.get("build-backend", "setuptools.build_meta:__legacy__")
    return BuildSystem(
        list(table.get("requires", ["setuptools>=40.8"])), backend, list(table.get("backend-path", []))
    )


class Builder:
    """One release: identified, then built if the cache has not got it."""

    def __init__(
        self,
        source: Source,
        runtime: Directory | RuntimeWheel,
        cache: Path,
        *,
        python: str,
        lock: str,
        uv: Uv,
        extras: Iterable[str] = (),
        pythons: Iterable[str] = (),
        build: Iterable[str] = (),
        needs: Iterable[str] = (),
    ) -> None:
        """Take what the release is made of.

        Args:
            source: The app.
            runtime: The runtime's source with its locks in it, or its wheel with these beside it.
            cache: Directory for what was resolved and built; it may be deleted at any time.
            python: The interpreter that hosts run the release with, which is part of what it is.
            lock: The app's lock: empty to look for it, a path below the source, or a path on the controller.
            uv: The uv to build with.
            extras: Extras of the app that are part of the release.
            pythons: The versions of that interpreter on the hosts, such as 3.11, as far as they are known.
            build: Packages that hosts may build from their source.
            needs: Extras of the runtime that the fleet's pools and scheduler need.
        """
        self.warnings: list[str] = []  # for the operator
        self.extras = tuple(sorted(extras))
        self.needs = tuple(sorted(needs))
        self.pythons = sorted(pythons, key=Version)
        self.buildable = tuple(sorted(canonicalize_name(name) for name in build))
        if isinstance(source, Directory):
            source = app_release_siblings.complete(source, self.extras)
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
        if self.extras:
            inputs["extras"] = self.extras
        if self.needs:
            inputs["needs"] = self.needs
        self.key = _digest(json.dumps(inputs, sort_keys=True))
        known = source.dependencies() if isinstance(source, Directory) else inputs["app"]
        self.resolution = _digest(json.dumps({**inputs, "app": known}, sort_keys=True))
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
            runtime = build_runtime(self.uv, self.runtime, work / "runtime")
            app = self._app(work / "app")
            about = {"name": app.name, "version": app.version, **self.about}
            about = {"id": release, "app": about, "runtime": {"version": runtime.version}}
            own = [] if isinstance(self.source, Pinned) else [app]
            files = [*own, *self._siblings(work / "beside"), runtime]
            write_archive(archive, files, requirements, about)
        return True

    @at("build")
    def _siblings(self, work: Path) -> list[Distribution]:
        """Return the distributions of packages that the app takes from beside it."""
        if isinstance(self.source, Wheel | Pinned):
            return []
        project = self.source.fetch(work / "app")
        if not is_static(read_project(project, f"The app at {self.source} cannot be built")):
            return []
        whole, found = work / "app" / "source", []
        for name, place in sorted(app_release_siblings.find(project, self.extras).places.items()):
            if not place.is_relative_to(whole.resolve()):
                raise ReleaseError(f"The app at {self.source} takes {name} from outside of what it is in.")
            own = work / name
            shutil.copytree(whole, own / "source", symlinks=True)
            beside = own / "source" / place.relative_to(whole.resolve())
            found.append(self._shippable(self.uv.build(beside, own, f"{name}, beside {self.source},")))
        return found

    @at("build")
    def _app(self, work: Path) -> Distribution:
        """Return the app's distribution; a package of the index has a name and a version, but no file."""
        match self.source:
            case Wheel(path=path):
                return _carried(path)
            case Pinned(requirement=requirement):
                return Distribution(Path(), requirement.name, next(iter(requirement.specifier)).version)
            case source:
                project = source.fetch(work)
                if not is_package(project):
                    return self._folder(project, work)
                return self._shippable(self.uv.build(project, work, f"The app at {self.source}"))

    def _shippable(self, app: Distribution) -> Distribution:
        """Return a distribution, refused if each host has to build it and may not."""
        if app.path.suffix != ".whl" and canonicalize_name(app.name) not in self.buildable:
            raise ReleaseError(
                f"{app.name} of {self.source} has an extension to compile: its wheel would fit the "
                "controller only, so each host has to build it, which runs its build hook there. Name "
                f"{app.name} in celery_app_build_packages, and a compiler in celery_app_packages; or "
                "build wheels of it for the hosts, and let celery_app_source name one, or their index."
            )
        return app

    def _folder(self, project: Path, work: Path) -> Distribution:
        """Return the wheel of an app that is no package."""
        table = read_project(project, f"The app at {self.source} cannot be built")
        wheel = app_release_folder.pack(project, work / "wheel-out", table)
        if hidden := app_release_folder.left_behind(project):
            self.warnings.append(
                f"{', '.join(hidden)} of {self.source} is not shipped, because everybody on a host can read "
                "a release. Put what the app needs of it into celery_app_environment, secrets into the vault."
            )
        name, version, *_unused = parse_wheel_filename(wheel.name)
        return Distribution(wheel, name, str(version))

    def _requirements(self, *, save: bool) -> str:
        """Return the complete set of dependencies, from the cache if it was worked out before.

        What was resolved for an older Python holds for the hosts' as well, and what they run is not resolved
        anew because one of them got a newer one.
        """
        cached = self.cache / "requirements" / f"{self.resolution}.txt"
        if cached.exists():
            text: str
            first, _separator, text = cached.read_text(encoding="utf-8").partition("\n")
            if not first.startswith(RESOLVED_FOR):
                return f"{first}\n{text}"
            oldest = first.removeprefix(RESOLVED_FOR)
            if not self.pythons or Version(oldest) <= Version(self.pythons[0]):
                return text
        with tempfile.TemporaryDirectory(prefix="celery-release-") as directory:
            lines, python = self._dependencies(Path(directory))
        text = render(lines)
        if save:
            cached.parent.mkdir(parents=True, exist_ok=True)
            replace_file(cached, f"{RESOLVED_FOR}{python}\n{text}" if python else text)
        return text

    @at("resolve")
    def _dependencies(self, work: Path) -> tuple[list[Locked], str]:
        """Return the dependencies of the app and the runtime, and the Python that they were resolved for.

        What the app's lock pins is completed, and not changed.
        """
        ours = self._runtime_lock(work)
        project = None if isinstance(self.source, Wheel | Pinned) else self.source.fetch(work / "app")
        own = self._own(work)
        lock = self._find_lock(project)
        if lock and is_lock(lock):
            theirs = self._locked(lock, project, work)
            python = self._oldest_python(project)
            if fits(theirs, runtime := read_lock(ours)):
                return merge(theirs, runtime), ""
            lines = self.uv.resolve([_pins(theirs, work), own], ours, python, work, build=self.buildable)
            return merge(theirs, _published(lines)), python
        python = self._oldest_python(project)
        resolve = self._resolver(project, lock, python, work)
        try:
            return _published(resolve(ours, [own])), python
        except ReleaseError as error:
            if "No solution found" in str(error):
                needed = ", ".join(self._runtime_project().get("dependencies", ()))
                error.args = (
                    f"{error}\nThe fleet's runtime needs {needed}. If the app asks for another version, let "
                    "it take one in that range; docs/compatibility.md lists the versions.",
                )
            raise

    def _resolver(
        self, project: Path | None, lock: Path | None, python: str, work: Path
    ) -> Callable[..., list[Locked]]:
        """Return what resolves the dependencies of an app without a lock.

        Args:
            project: The app's source.
            lock: What celery_app_lock names, if that has no hashes.
            python: The oldest Python that must be served.
            work: A temporary directory.

        Returns:
            A function of the preferred lock, of what else is to be resolved with the app, and of constraints.
        """
        inputs = [*self._unlocked(project, work, lock), *([lock] if lock else [])]
        asked = self.extras if inputs[0].name == "pyproject.toml" else ()
        confined = inputs[0].suffix == ".txt" or (lock is not None and not Path(self.lock).is_absolute())

        def resolve(preferred: Path, more: list[Path], constraints: Path | None = None) -> list[Locked]:
            lines: list[Locked] = self.uv.resolve(
                [*inputs, *more],
                preferred,
                python,
                work,
                build=self.buildable,
                extras=asked,
                confined=confined,
                constraints=constraints,
            )
            return lines

        return resolve

    @at("resolve")
    def locked(self, path: Path, *, upgrade: bool) -> str:
        """Return the text of a lock for the app: what it needs, in versions that fit the runtime.

        Args:
            path: The lock, whose versions are kept if it is there.
            upgrade: Whether to take the newest versions in place of those.

        Raises:
            ReleaseError: The app has a lock that another tool writes.
        """
        before = path.read_text(encoding="utf-8") if path.is_file() else ""
        if before and not before.startswith(LOCK_HEADER):
            raise ReleaseError(f"{path} was not written by lock_app.yml, so it is not changed.")
        with tempfile.TemporaryDirectory(prefix="celery-release-") as directory:
            work = Path(directory)
            project = None if isinstance(self.source, Wheel | Pinned) else self.source.fetch(work / "app")
            lock = self._find_lock(project)
            if lock and is_lock(lock) and not lock.read_bytes().startswith(LOCK_HEADER.encode()):
                raise ReleaseError(f"{self.source} has {lock.name}. Change it with the tool that writes it.")
            named = None if lock and is_lock(lock) else lock
            python = self._oldest_python(project)
            resolve = self._resolver(project, named, python, work)
            preferred = path if before and not upgrade else self._runtime_lock(work)
            together = resolve(preferred, [self._own(work)])
            kept = work / "kept.lock"
            kept.write_text(render(together), encoding="utf-8")
            alone = resolve(
                kept, [], _pins(_published(together), work)
            )  # without what only the runtime needs
            return f"{LOCK_HEADER} for Python {python} or later.\n{render(_published(alone))}"

    def _runtime_lock(self, work: Path) -> Path:
        """Write what the runtime needs in an app's venv, as its own locks have it, and return the file."""
        place = self.runtime.path.parent if isinstance(self.runtime, Wheel) else self.runtime.path
        names = ("requirements", *(f"requirements-{extra}" for extra in self.needs))
        lines = {line for name in names for line in read_lock(place / f"{name}.lock")}
        file = work / "runtime.lock"
        file.write_text(render(sorted(lines)), encoding="utf-8")
        return file

    def _locked(self, lock: Path, project: Path | None, work: Path) -> list[Locked]:
        """Return what the app's lock pins, refused if it cannot be what the app runs with.

        Raises:
            ReleaseError: The runtime does not accept a version of it, or the app needs what it lacks.
        """
        exported = lock.name == "uv.lock"
        theirs: list[Locked] = (
            self.uv.export(project or lock.parent, work / "app", self.extras)
            if exported
            else read_lock(lock, self.extras, self.pythons)
        )
        if isinstance(self.source, Pinned):
            _require_pin(self.source, theirs, lock)
        elif project:
            table = read_project(project, "The app cannot be resolved")
            _require_locked(_named(project, table, self.extras), self.extras, theirs, lock)
            self._note_others(project, lock)
        _require_range(self._runtime_project().get("dependencies", ()), theirs, lock)
        return theirs

    def _note_others(self, project: Path, lock: Path) -> None:
        """Warn of other locks that the app has."""
        if others := [name for name in LOCK_NAMES if name != lock.name and (project / name).is_file()]:
            self.warnings.append(
                f"{self.source} has {', '.join([lock.name, *others])}, and what is installed is {lock.name}. "
                "If that is wrong, name another one in celery_app_lock."
            )

    def _own(self, work: Path) -> Path:
        """Return a file with what the runtime requires in an app's venv.

        Its pyproject.toml as an input of uv would need the option `--extra`, which holds for the app's, too.
        """
        extras = [*ALWAYS, *self.needs]
        if isinstance(self.runtime, RuntimeWheel):
            lines = [f"{RUNTIME}[{','.join(extras)}] @ {self.runtime.path.absolute().as_uri()}"]
        else:
            lines = list(app_release_siblings.required(self._runtime_project(), extras))
        file = work / "runtime.in"
        file.write_text("".join(f"{text}\n" for text in lines), encoding="utf-8")
        return file

    def _runtime_project(self) -> dict[str, Any]:
        """Return the table `project` of the runtime, as far as it says what the runtime needs."""
        table: dict[str, Any]
        if isinstance(self.runtime, RuntimeWheel):
            metadata = wheel_metadata(self.runtime.path)[1]
            needed = [text for text in metadata.get_all("Requires-Dist", []) if "extra ==" not in text]
            return {"dependencies": needed, "requires-python": metadata.get("Requires-Python", "")}
        table = read_project(self.runtime.path, "The runtime cannot be resolved").get("project", {})
        return table

    def _oldest_python(self, project: Path | None) -> str:
        """Return the oldest Python of the hosts; if it is unknown, the oldest that app and runtime accept."""
        app = read_project(project, "The app cannot be resolved").get("project", {}) if project else {}
        accepted = SpecifierSet(app.get("requires-python", ""))
        accepted &= SpecifierSet(self._runtime_project().get("requires-python", ""))
        for version in self.pythons:
            if version not in accepted:
                raise ReleaseError(
                    f"The app or the runtime needs Python {accepted}, and a host has {version}. Let "
                    "celery_app_python name another one that the hosts have, or use a newer Debian."
                )
        for version in self.pythons or PYTHONS:
            if version in accepted:
                return version
        raise ReleaseError(f"No Python satisfies both the app and the runtime: {accepted}")

    def _find_lock(self, project: Path | None) -> Path | None:
        """Return the app's lock, or what else celery_app_lock names; None where it has none."""
        if Path(self.lock).is_absolute():
            if Path(self.lock).name == "uv.lock":
                raise ReleaseError(f"{self.lock} cannot be read alone: leave it beside its pyproject.toml.")
            return Path(self.lock)
        if not self.lock:
            found: Path | None = find_lock(project) if project else None
            root = app_release_siblings.workspace(project) if project and not found else None
            return root / "uv.lock" if root and (root / "uv.lock").is_file() else found
        if project is None or not (project / self.lock).is_file():
            raise ReleaseError(f"{self.source} has no file {self.lock}, which celery_app_lock names.")
        return project / self.lock

    def _unlocked(self, project: Path | None, work: Path, named: Path | None) -> list[Path]:
        """Return the files from which uv can read what an app without a lock depends on, and run nothing.

        Args:
            project: The app's source.
            work: A temporary directory.
            named: What celery_app_lock names, if that has no hashes.
        """
        extras = f"[{','.join(self.extras)}]" if self.extras else ""
        if project:
            table = read_project(project, "The app cannot be resolved")
            own = table.get("project", {})
            if _is_plain(project, table):
                _require_extras(self.extras, (), self.source)
                if named:
                    return []
                file = app_release_folder.requirements(project)
                if app_release_folder.names_index(file):
                    self.warnings.append(
                        f"{file.name} of {self.source} names an index, which the hosts do not know. Name it "
                        "in celery_app_index_url, or in celery_app_index_environment as UV_INDEX."
                    )
                return [file]
            if is_static(table):
                _require_extras(self.extras, own.get("optional-dependencies", {}), self.source)
                if (project / "requirements.txt").is_file() and named is None:
                    self.warnings.append(
                        f"requirements.txt of {self.source} has no hashes, so it is no lock and not read: "
                        "versions are what pyproject.toml accepts. `make lock-app` writes a lock; with "
                        "celery_app_lock: requirements.txt the versions are those of that file."
                    )
                beside = app_release_siblings.find(project, self.extras)
                if not beside.places:
                    return [project / "pyproject.toml"]
                file = work / "app.in"
                file.write_text("".join(f"{text}\n" for text in beside.required), encoding="utf-8")
                return [file]
            wheel = self.uv.build_wheel(
                project, work / "app", f"The app at {self.source}"
            )  # only its hook knows
            wanted = _stub(wheel, work, extras)
        elif isinstance(self.source, Wheel):
            wanted = _stub(self.source.path, work, extras)
        else:
            wanted = str(self.source)
        file = work / "app.in"
        file.write_text(f"{wanted}\n", encoding="utf-8")
        return [file]


def _is_plain(project: Path, table: Mapping[str, Any]) -> bool:
    """Return whether an app is a folder, of which a requirements file says what it depends on."""
    static = is_static(table) and "dependencies" in table.get("project", {})
    return not static and not is_package(project)


def _named(project: Path, table: Mapping[str, Any], extras: Iterable[str]) -> Iterator[Requirement]:
    """Yield what an app says that it requires, as far as it is known without running anything of it."""
    if is_static(table):
        yield from map(Requirement, app_release_siblings.find(project, extras).required)
    elif _is_plain(project, table):
        yield from app_release_folder.named(project)


def _pins(lines: Iterable[Locked], work: Path) -> Path:
    """Return a requirements file with the versions of a lock, and without its hashes."""
    file = work / "pins.in"
    file.write_text(render(replace(line, hashes=()) for line in lines), encoding="utf-8")
    return file


def _published(lines: Iterable[Locked]) -> list[Locked]:
    """Return the lines of what an index has: neither the app nor the runtime."""
    return [line for line in lines if not line.pin.startswith(" @ file:")]


class FleetBuilder:
    """The fleet's own venv, without the app: the runtime, Flower and what the operator's commands need."""

    def __init__(
        self, runtime: Directory | RuntimeWheel, lock: Path, cache: Path, uv: Uv, *, python: str
    ) -> None:
        """Take what the venv is made of.

        Args:
            runtime: The runtime's source, or its wheel.
            lock: The requirements file with hashes of all else in the venv.
            cache: Directory for what was built.
            uv: The uv to build with.
            python: The interpreter that hosts run it with.
        """
        self.runtime = runtime
        self.lock = lock
        self.uv = uv
        inputs = {
            "layout": LAYOUT,
            "runtime": runtime.fingerprint(),
            "lock": file_digest(lock),
            "python": python,
        }
        self.id = _digest(json.dumps(inputs, sort_keys=True))
        self.archive = cache / f"fleet-{self.id}.tar"

    def build(self) -> None:
        """Build the archive."""
        with tempfile.TemporaryDirectory(prefix="celery-release-") as directory:
            runtime = build_runtime(self.uv, self.runtime, Path(directory))
            about = {"id": self.id, "runtime": {"version": runtime.version}}
            write_archive(self.archive, [runtime], render(read_lock(self.lock)), about)


def build_runtime(uv: Uv, runtime: Directory | RuntimeWheel, work: Path) -> Distribution:
    """Return the runtime's wheel."""
    if isinstance(runtime, RuntimeWheel):
        return _carried(runtime.path)
    return uv.build(runtime.fetch(work), work, "The runtime")


def write_archive(
    archive: Path, files: Iterable[Distribution], requirements: str, about: Mapping[str, Any]
) -> None:
    """Write an archive for hosts.

    Args:
        archive: Its path.
        files: The distributions that it carries.
        requirements: The lines of a requirements file for all else.
        about: What it says of itself.
    """
    files = list(files)
    contents = {file.path.name: file.path.read_bytes() for file in files}
    contents["requirements.txt"] = ("".join(file.requirement for file in files) + requirements).encode()
    contents["release.json"] = (json.dumps(about, indent=2, sort_keys=True) + "\n").encode()
    archive.parent.mkdir(parents=True, exist_ok=True)
    replace_file(archive, _tar(contents))


def _carried(wheel: Path) -> Distribution:
    """Return a wheel that a release carries as it is."""
    name, version, *_unused = parse_wheel_filename(wheel.name)
    return Distribution(wheel, name, str(version))


def _require_extras(asked: Iterable[str], known: Iterable[str], source: Source) -> None:
    """Refuse an extra that the app does not have."""
    names = {canonicalize_name(name) for name in known}
    if unknown := [name for name in asked if canonicalize_name(name) not in names]:
        raise ReleaseError(
            f"{source} has no extra {', '.join(unknown)}, which celery_app_source asks for in brackets. "
            f"It has: {', '.join(sorted(names)) or 'none'}."
        )


def _stub(wheel: Path, work: Path, extras: str) -> str:
    """Return the requirement of a wheel that holds a wheel's metadata only, and so fits every platform."""
    metadata = wheel_metadata(wheel)[0]
    project, version, *_unused = parse_wheel_filename(wheel.name)
    stem = f"{project.replace('-', '_')}-{version}"
    stub = work / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(stub, "w") as archive:
        archive.writestr(f"{stem}.dist-info/METADATA", metadata)
        tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        archive.writestr(f"{stem}.dist-info/WHEEL", tags)
        archive.writestr(f"{stem}.dist-info/RECORD", "")
    return f"{project}{extras} @ {stub.as_uri()}"


def _require_range(required: Iterable[str], lines: Iterable[Locked], lock: Path) -> None:
    """Refuse a lock that pins a version which the runtime does not run with."""
    needed = [Requirement(text) for text in required]
    faults = [
        f"{line.name} {line.pin.removeprefix('==')}, and the runtime needs {wanted.name}{wanted.specifier}"
        for line in lines
        for wanted in needed
        if line.name == canonicalize_name(wanted.name)
        and line.pin.startswith("==")
        and not wanted.specifier.contains(line.pin.removeprefix("=="), prereleases=True)
    ]
    if faults:
        raise ReleaseError(
            f"{lock.name} of the app pins {'; '.join(faults)}. What a lock pins is not changed: let the app "
            "take a version in that range, and lock it anew. docs/compatibility.md lists the versions."
        )


def _require_locked(
    wanted: Iterable[Requirement], extras: Iterable[str], lines: Iterable[Locked], lock: Path
) -> None:
    """Refuse a lock without a package that the app requires, with the extras that are asked for."""
    known = {line.name for line in lines}
    linux = {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"}
    lacking = [
        str(one)
        for one in wanted
        if canonicalize_name(one.name) not in known and (not one.marker or one.marker.evaluate(linux))
    ]
    if lacking:
        asked = f" with {', '.join(extras)}" if extras else ""
        raise ReleaseError(
            f"{lock.name} of the app lacks {', '.join(lacking)}, which the app{asked} asks for. Lock it anew."
        )


def _require_pin(source: Pinned, lines: Iterable[Locked], lock: Path) -> None:
    """Refuse a lock that does not hold the very version of the app that is asked for."""
    wanted = (canonicalize_name(source.requirement.name), str(source.requirement.specifier))
    if wanted not in {(line.name, line.pin) for line in lines}:
        raise ReleaseError(f"{lock} does not pin {source}, which celery_app_source asks for.")


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
