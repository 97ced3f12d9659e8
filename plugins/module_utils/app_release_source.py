# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where an app comes from: a directory, a git repository, an sdist, a wheel, or a requirement.

Each kind of source can say what it is, with no network but `git ls-remote`, so that an unchanged source
is recognised without a build: that is its fingerprint. `fetch` then puts it where it can be built.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tarfile
import tomllib
import traceback
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.parser import BytesParser
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import parse_qs, unquote, urlsplit, urlunsplit

try:
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import (
        InvalidSdistFilename,
        InvalidWheelFilename,
        parse_sdist_filename,
        parse_wheel_filename,
    )
except ImportError:
    PACKAGING_ERROR = traceback.format_exc()  # the module app_release fails with it
else:
    PACKAGING_ERROR = ""

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from email.message import Message

RUNTIME = "celery-fleet-runtime"
# Not part of an app: what version control keeps in a source tree, and what tools leave there.
IGNORED_NAMES = frozenset(
    {".bzr", ".git", ".hg", ".svn", "__pycache__", "node_modules"}
    | {".ansible", ".eggs", ".hypothesis", ".mypy_cache", ".nox", ".pytest_cache", ".ruff_cache", ".tox"}
)
IGNORED_SUFFIXES = (".egg-info", ".pyc", ".pyo")
# Nor these, at the top and unless they are packages: no node is to restart because a test changed.
IGNORED_AT_TOP = frozenset({"build", "dist", "docs", "tests"})

COMMIT = re.compile(r"[0-9a-f]{40}\Z")
SCP_LIKE = re.compile(r"[\w.-]+@[\w.-]+:(?!//)")  # git@host:path
EXTRAS = re.compile(r"(?<=[\w/])\[(?P<names>[\w.,\s-]+)\]\Z")  # those of a requirement are before its version
# `shop[s3] @ git+https://...`, as in a requirement, and `#egg=shop[s3]`, as older versions of pip want it.
NAMED = re.compile(r"[\w.-]+\s*(?:\[(?P<names>[\w.,\s-]+)\])?\s*@\s+(?P<url>\S+)\Z")
REF = re.compile(r"(?<=[^/])@(?P<ref>[^@]+)\Z")
EGG = re.compile(r"[\w.-]+\[(?P<names>[\w.,\s-]+)\]")

# What makes a directory an app: it says what the app depends on.
LOCK_NAMES = (
    "uv.lock", "pylock.toml", "poetry.lock", "Pipfile.lock", "requirements.lock", "requirements.txt",
)  # fmt: skip
REQUIREMENT_NAMES = (
    "requirements.txt",
    "requirements/production.txt",
    "requirements/prod.txt",
    "requirements/base.txt",
)
# Of an app whose files are shipped as they are, what running it leaves there. Hidden files stay behind, too.
LEFT_BY_RUNS = (".db", ".db-journal", ".log", ".pid", ".sqlite", ".sqlite3", ".sqlite3-journal")
SCHEDULE = "celerybeat-schedule"
# How names of files end that say what an app depends on.
DECLARING = (".cfg", ".in", ".lock", ".toml", ".txt")


class ReleaseError(Exception):
    """The release cannot be built; the message tells the operator why."""

    step = ""  # `resolve` or `build`, where one of these has failed


@contextmanager
def at(step: str) -> Iterator[None]:
    """Mark what fails as a failure of a step, unless it is one of a step within."""
    try:
        yield
    except ReleaseError as error:
        error.step = error.step or step
        raise


@dataclass(frozen=True)
class Directory:
    """A source tree on the controller. It is read, never written to."""

    path: Path
    ignored: tuple[Path, ...] = ()
    beside: tuple[Path, ...] = ()  # directories and files that belong to it, and are not below it

    def __post_init__(self) -> None:
        """Refuse what is not a Python project."""
        if not self.path.is_absolute():
            raise ReleaseError(
                f"{self.path} is relative, so it depends on where Ansible is started. "
                'Write it from the inventory: "{{ inventory_dir }}/../my-app".'
            )
        if not self.path.is_dir():
            raise ReleaseError(f"There is no directory {self.path} on the controller.")
        _require_project(self.path, str(self.path))

    def __str__(self) -> str:
        """Return the path."""
        return str(self.path)

    def fingerprint(self) -> dict[str, str]:
        """Return the digest of every file that may shape the app."""
        own = tree_digest(self.path, self.ignored, plain=not is_package(self.path))
        return {"tree": own, **self._beside(("",))}

    def _beside(self, only: tuple[str, ...]) -> dict[str, str]:
        """Return the digests of what is beside it, by the places relative to it."""
        return {
            os.path.relpath(path, self.path): tree_digest(path, self.ignored, only=only)
            if path.is_dir()
            else file_digest(path)
            for path in self.beside
        }

    def dependencies(self) -> dict[str, str]:
        """Return the digest of the files that may say what the app depends on, so that code changes nothing.

        Where only a build hook knows that, it may read every file.
        """
        try:
            static = not is_package(self.path) or is_static(read_project(self.path, ""))
        except ReleaseError:
            static = False
        if not static:
            return self.fingerprint()
        own = tree_digest(self.path, self.ignored, only=DECLARING)
        return {"dependencies": own, **self._beside(DECLARING)}

    def fetch(self, work: Path) -> Path:
        """Copy the tree, because build backends write beside what they build."""
        target = work / "source"
        target.mkdir(parents=True)
        base = Path(os.path.commonpath([self.path, *(path.parent for path in self.beside)]))
        for root in (self.path, *self.beside):
            files = tree_files(root, self.ignored) if root.is_dir() else [(root, "")]
            for path, name in files:
                copy = target / root.relative_to(base) / name
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, copy)
        if (base / ".git").exists():  # some backends take the version from the tags
            copy_history(base, target)
        return target / self.path.relative_to(base)


@dataclass(frozen=True)
class Git:
    """A commit of a git repository, named by a branch, a tag or its id."""

    url: str
    ref: str
    subdirectory: str = ""
    userinfo: str = field(default="", repr=False)

    def __str__(self) -> str:
        """Return the URL, without the credentials."""
        return self.url

    def fingerprint(self) -> dict[str, str]:
        """Return the commit that the ref names now."""
        return {"commit": self.commit, "subdirectory": self.subdirectory}

    @cached_property
    def commit(self) -> str:
        """Return the id of the commit that the ref names now, which a remote is asked for.

        Raises:
            ReleaseError: The repository does not answer, or has no such branch or tag.
        """
        if COMMIT.match(self.ref):
            return self.ref
        # In the order in which git itself prefers them; ^{} is the commit of an annotated tag.
        wanted = (
            [f"refs/tags/{self.ref}^{{}}", f"refs/tags/{self.ref}", f"refs/heads/{self.ref}", self.ref]
            if self.ref
            else ["HEAD"]
        )
        listing = self._git("ls-remote", "--", self.url, *wanted)
        found = {name: commit for commit, name in (line.split("\t", 1) for line in listing.splitlines())}
        for name in wanted:
            if name in found:
                return found[name]
        raise ReleaseError(
            f"{self.url} has no branch or tag {self.ref or 'HEAD'!r}. A commit is written with all 40 digits."
        )

    def fetch(self, work: Path) -> Path:
        """Check out the commit, with the history's tags but not its files."""
        target = work / "source"
        self._git("clone", "--quiet", "--no-checkout", "--filter=blob:none", "--", self.url, str(target))
        at = ("-C", str(target))
        self._git(*at, "-c", "advice.detachedHead=false", "checkout", "--quiet", self.commit)
        if (target / ".gitmodules").is_file():
            self._git(*at, "submodule", "--quiet", "update", "--init", "--recursive", "--filter=blob:none")
        project = target / self.subdirectory
        _require_project(project, f"{self.url} at {self.commit} in /{self.subdirectory}")
        return project

    def _git(self, *arguments: str) -> str:
        """Run git and return what it prints. Credentials go through its environment, out of sight of ps."""
        env = {**os.environ, "GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0"}
        if self.userinfo:
            parts = urlsplit(self.url)
            public = urlunsplit((parts.scheme, parts.netloc, "/", "", ""))
            private = urlunsplit((parts.scheme, f"{self.userinfo}@{parts.netloc}", "/", "", ""))
            number = int(env.get("GIT_CONFIG_COUNT", "0"))
            env[f"GIT_CONFIG_KEY_{number}"] = f"url.{private}.insteadOf"
            env[f"GIT_CONFIG_VALUE_{number}"] = public
            env["GIT_CONFIG_COUNT"] = str(number + 1)
        return run(["git", *arguments], f"git cannot read {self.url}", env=env)


@dataclass(frozen=True)
class Sdist:
    """A source archive on the controller."""

    path: Path

    def __post_init__(self) -> None:
        """Refuse what is not an sdist."""
        _require_file(self.path)
        try:
            parse_sdist_filename(self.path.name)
        except InvalidSdistFilename as error:
            raise ReleaseError(f"{self.path} is not named like an sdist: {error}") from error

    def __str__(self) -> str:
        """Return the path."""
        return str(self.path)

    def fingerprint(self) -> dict[str, str]:
        """Return the digest of the archive."""
        return {"file": file_digest(self.path)}

    def fetch(self, work: Path) -> Path:
        """Unpack the archive: it may hold a lock, and it is built like any other tree."""
        target = work / "source"
        try:
            with tarfile.open(self.path) as archive:
                archive.extraction_filter = getattr(tarfile, "data_filter", None)  # from Python 3.11.4 on
                archive.extractall(target)  # noqa: S202 - the operator chose it, and it is built next
        except (tarfile.TarError, OSError) as error:
            raise ReleaseError(f"{self.path} cannot be unpacked: {error}") from error
        projects = [entry for entry in target.iterdir() if entry.is_dir()]
        if len(projects) != 1:
            raise ReleaseError(f"{self.path} must hold one directory, as every sdist does.")
        _require_project(projects[0], str(self.path))
        return projects[0]


@dataclass(frozen=True)
class Wheel:
    """A wheel on the controller, installed as it is."""

    path: Path

    def __post_init__(self) -> None:
        """Refuse what is not a wheel."""
        _require_file(self.path)
        try:
            parse_wheel_filename(self.path.name)
        except InvalidWheelFilename as error:
            raise ReleaseError(f"{self.path} is not named like a wheel: {error}") from error

    def __str__(self) -> str:
        """Return the path."""
        return str(self.path)

    def fingerprint(self) -> dict[str, str]:
        """Return the digest of the wheel."""
        return {"file": file_digest(self.path)}


@dataclass(frozen=True)
class RuntimeWheel(Wheel):
    """A wheel of the fleet's runtime. The locks of its dependencies are beside it."""

    def __post_init__(self) -> None:
        """Refuse a wheel of something else, and one without a lock."""
        super().__post_init__()
        if (name := parse_wheel_filename(self.path.name)[0]) != RUNTIME:
            raise ReleaseError(f"{self.path} is a wheel of {name}, not of {RUNTIME}.")
        wheel_metadata(self.path)
        _require_file(self.path.with_name("requirements.lock"))

    def fingerprint(self) -> dict[str, str]:
        """Return the digests of the wheel and of its locks."""
        locks = sorted(self.path.parent.glob("requirements*.lock"))
        return {**super().fingerprint(), **{lock.name: file_digest(lock) for lock in locks}}


@dataclass(frozen=True)
class Pinned:
    """A package of the index, at exactly one version."""

    requirement: Requirement

    def __str__(self) -> str:
        """Return the requirement."""
        return str(self.requirement)

    def fingerprint(self) -> dict[str, str]:
        """Return the requirement: an index never gives other files under the same version."""
        return {"requirement": str(self.requirement)}


Source: TypeAlias = "Directory | Git | Sdist | Wheel | Pinned"


def parse_source(text: str, git_ref: str, ignored: tuple[Path, ...] = ()) -> Source:
    """Return the source that `celery_app_source` names.

    Args:
        text: A path, a git URL (`git+https://...`, `ssh://...`, `git@host:path`, each with `@ref` and
            `#subdirectory=`), the path of a wheel or sdist, or a requirement such as `myapp==1.2.3`.
        git_ref: Branch, tag or commit, for a git URL only.
        ignored: Directories that are no part of any source, such as the cache of releases.

    Raises:
        ReleaseError: There is no such source, or it is of no use.
    """
    text = text.strip()
    if text.startswith("git+") or "://" in text or SCP_LIKE.match(text):
        return _parse_git(text.removeprefix("git+"), git_ref)
    if git_ref:
        raise ReleaseError(f"celery_app_git_ref is set, but {text} is not a git URL, which starts with git+.")
    path = Path(text).expanduser()
    if path.suffix == ".whl":
        return Wheel(path)
    if path.name.endswith(".tar.gz"):
        return Sdist(path)
    if "/" in text or text.startswith((".", "~")) or (text and path.is_dir()):
        return Directory(path, ignored)
    return _parse_requirement(text)


def parse_runtime(path: Path) -> Directory | RuntimeWheel:
    """Return the fleet's runtime that `celery_app_runtime_source` names: its source directory, or its wheel.

    Raises:
        ReleaseError: It is neither.
    """
    if path.suffix == ".whl":
        return RuntimeWheel(path)
    if path.is_dir() and not (path / "pyproject.toml").is_file():
        raise ReleaseError(f"{path} has no pyproject.toml, so it is not the source of the fleet's runtime.")
    return Directory(path)


def wheel_metadata(path: Path) -> tuple[bytes, Message]:
    """Return the metadata of a wheel, as they are and parsed.

    Raises:
        ReleaseError: It is no wheel.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
            text = archive.read(name)
    except (zipfile.BadZipFile, ValueError) as error:
        raise ReleaseError(f"{path.name} is no wheel, or has no metadata: {error}") from error
    return text, BytesParser().parsebytes(text)


def split_extras(text: str) -> tuple[str, tuple[str, ...]]:
    """Return a source without its extras, and these: in brackets at its end, or after a name before a URL.

    >>> split_extras("/srv/shop[worker, aws]")
    ('/srv/shop', ('worker', 'aws'))
    >>> split_extras("shop[worker] @ git+https://example.org/shop.git")
    ('git+https://example.org/shop.git', ('worker',))
    >>> split_extras("shop[worker]==1.0"), split_extras("git@host:shop.git")
    (('shop[worker]==1.0', ()), ('git@host:shop.git', ()))
    """
    text = text.strip()
    names = []
    if named := NAMED.match(text):
        text = named["url"]
        names.append(named["names"] or "")
    if found := EXTRAS.search(text):
        text = text[: found.start()] + (found.group() if "#egg=" in text else "")
        names.append(found["names"])
    elif egg := EGG.search(parse_qs(text.partition("#")[2]).get("egg", [""])[0]):
        names.append(egg["names"])
    return text, tuple(name.strip() for name in ",".join(names).split(",") if name.strip())


def copy_history(repository: Path, tree: Path) -> None:
    """Give a copy of a tree the history of its repository, but none of its settings, hooks and credentials.

    Where that cannot be, a backend that wants the history says so itself; most do not.
    """
    clone = tree.parent / "history"
    env = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    quiet: dict[str, Any] = {"env": env, "capture_output": True, "stdin": subprocess.DEVNULL}
    try:
        options = ["--quiet", "--no-checkout", "--no-hardlinks"]
        command = ["git", "clone", *options, "--", str(repository), str(clone)]
        if subprocess.run(command, check=False, **quiet).returncode == 0:
            subprocess.run(["git", "-C", clone, "reset", "--quiet"], check=False, **quiet)
            shutil.move(clone / ".git", tree / ".git")
    except FileNotFoundError:  # there is no git
        return
    finally:
        shutil.rmtree(clone, ignore_errors=True)


def tree_files(
    root: Path, ignored: tuple[Path, ...] = (), *, plain: bool = False
) -> Iterator[tuple[Path, str]]:
    """Return the files below a directory that may shape an app: path and name relative to the root, sorted.

    Links are followed, because what they lead to is part of the app; those that lead nowhere, or back to a
    directory that holds them, are left out.

    Args:
        root: The directory.
        ignored: Directories that are left out.
        plain: Whether to leave out hidden files, and what running the app leaves.
    """
    ignored = tuple(path.resolve() for path in ignored)

    def walk(directory: Path, prefix: str, parents: tuple[Path, ...]) -> Iterator[tuple[Path, str]]:
        for path in sorted(directory.iterdir()):
            name = f"{prefix}{path.name}"
            if path.name in IGNORED_NAMES or path.name.endswith(IGNORED_SUFFIXES):
                continue
            if plain and (path.name.startswith((".", SCHEDULE)) or path.name.endswith(LEFT_BY_RUNS)):
                continue
            if path.is_file():
                yield path, name
            elif path.is_dir():
                real = path.resolve()
                package = prefix or (path / "__init__.py").exists()
                aside = path.name in IGNORED_AT_TOP and not package
                if not (aside or real in parents or real in ignored or (path / "pyvenv.cfg").exists()):
                    yield from walk(path, f"{name}/", (*parents, real))

    yield from walk(root, "", (root.resolve(),))


def tree_digest(
    root: Path, ignored: tuple[Path, ...] = (), *, plain: bool = False, only: tuple[str, ...] = ("",)
) -> str:
    """Return a digest of the names, the executable bits and the contents of a tree's files.

    Args:
        root: As of `tree_files`.
        ignored: As of `tree_files`.
        plain: As of `tree_files`.
        only: Ends of the names that count.
    """
    digest = hashlib.sha256()
    for path, name in tree_files(root, ignored, plain=plain):
        if not name.endswith(only):
            continue
        executable = "x" if os.access(path, os.X_OK) else "-"
        digest.update(f"{name}\0{executable}\0{file_digest(path)}\n".encode())
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_project(project: Path, failure: str) -> dict[str, Any]:
    """Return a project's pyproject.toml, empty if it has none.

    Raises:
        ReleaseError: It is no TOML.
    """
    file = project / "pyproject.toml"
    try:
        return tomllib.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except ValueError as error:
        raise ReleaseError(f"{failure}: its pyproject.toml cannot be read as TOML: {error}") from error


def is_static(table: Mapping[str, Any]) -> bool:
    """Return whether a pyproject.toml says itself what its project depends on."""
    own = table.get("project", {})
    return "name" in own and not {"dependencies", "optional-dependencies"} & {*own.get("dynamic", ())}


def is_package(project: Path) -> bool:
    """Return whether a source tree is to be built. If it is not, its files are shipped as they are.

    As with uv and Poetry, a project says so itself (`package = false`, `package-mode = false`), or by what it
    has: a build system, a setup.py, or commands that only an installed package has.
    """
    try:
        table = read_project(project, "")
    except ReleaseError:  # whoever builds it tells
        return True
    tool, own = table.get("tool", {}), table.get("project", {})
    for said in (tool.get("uv", {}).get("package"), tool.get("poetry", {}).get("package-mode")):
        if isinstance(said, bool):
            return said
    commands = {"scripts", "gui-scripts", "entry-points"}
    return "build-system" in table or (project / "setup.py").is_file() or bool(commands & {*own})


def run(argv: list[str], failure: str, *, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    """Run a command and return what it prints.

    Raises:
        ReleaseError: It failed; the message is `failure` with the end of the command's own words.
    """
    try:
        result = subprocess.run(
            argv,
            env=env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            start_new_session=True,  # without a terminal, nothing below can stop to ask for a password
        )
    except FileNotFoundError as error:
        raise ReleaseError(f"{failure}: there is no {argv[0]} on the controller.") from error
    if result.returncode:
        words = (result.stderr.strip() or result.stdout.strip()).splitlines()[-40:]
        raise ReleaseError("\n".join([f"{failure}:", *words]))
    return result.stdout


def _parse_git(url: str, ref: str) -> Git:
    """Return the git source of a URL, with its credentials, its @ref and its #subdirectory= taken out."""
    if SCP_LIKE.match(url):
        place, _separator, fragment = url.partition("#")
        host, _separator, path = place.partition(":")
        path, ref = _ref(path, ref)
        return Git(f"{host}:{path}", ref, _subdirectory(fragment))
    parts = urlsplit(url)
    if parts.path.endswith((".whl", ".tar.gz")):
        name = Path(parts.path).name
        raise ReleaseError(
            f"{name} is not downloaded from a URL: name a file, or a requirement of the index."
        )
    userinfo, _separator, host = parts.netloc.rpartition("@")
    if userinfo and ":" not in userinfo and not parts.scheme.startswith("http"):
        userinfo, host = "", parts.netloc  # the user of an SSH URL is no secret, and git needs it there
    path, ref = _ref(parts.path, ref)
    place = urlunsplit((parts.scheme, host, path, parts.query, ""))
    return Git(place, ref, _subdirectory(parts.fragment), userinfo)


def _ref(path: str, ref: str) -> tuple[str, str]:
    """Return the path of a git URL without the `@ref` that may end it, and the ref.

    Raises:
        ReleaseError: celery_app_git_ref names another one.
    """
    found = REF.search(path)
    own = found["ref"] if found else ""
    path = path.removesuffix(f"@{own}")
    if own and ref not in ("", own):
        raise ReleaseError(
            f"celery_app_source ends in @{own}, and celery_app_git_ref is {ref}. Name one of them."
        )
    return path, ref or own


def _subdirectory(fragment: str) -> str:
    """Return what `#subdirectory=` of a git URL names."""
    subdirectory = unquote("".join(parse_qs(fragment).get("subdirectory", [])))
    if Path(subdirectory).is_absolute() or ".." in Path(subdirectory).parts:
        raise ReleaseError(f"#subdirectory={subdirectory} leads out of the repository.")
    return subdirectory


def _parse_requirement(text: str) -> Pinned:
    """Return the requirement, refused unless it names one version and no more."""
    try:
        requirement = Requirement(text)
    except InvalidRequirement as error:
        raise ReleaseError(
            f"{text!r} is neither a path, nor a git URL, nor a requirement such as myapp==1.2.3."
        ) from error
    specifier = str(requirement.specifier)
    exact = specifier.startswith("==") and "," not in specifier and "*" not in specifier
    if not exact or requirement.marker:
        raise ReleaseError(
            f"{text!r} does not name exactly one version. Write {requirement.name}==1.2.3: "
            "otherwise hosts that are set up on different days run different code."
        )
    return Pinned(requirement)


def _require_file(path: Path) -> None:
    """Refuse a path that is not that of a file."""
    if not path.is_file():
        raise ReleaseError(f"There is no file {path} on the controller.")


def _require_project(path: Path, name: str) -> None:
    """Refuse a directory that does not say what an app in it depends on."""
    known = ("pyproject.toml", "setup.py", *LOCK_NAMES, *REQUIREMENT_NAMES)
    if not any((path / file).is_file() for file in known):
        raise ReleaseError(
            f"{name} has no pyproject.toml, no setup.py, no lock and no requirements.txt, so it is not known "
            "what the app depends on. Write a requirements.txt with celery and what else the app imports, a "
            "name a line; or, if the app is in a directory below, name that."
        )
