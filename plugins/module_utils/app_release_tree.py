# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The releases of an app on a host: installed whole, switched by a rename, removed when nothing uses them.

    /opt/celery/shop/releases/<id>/     a virtual environment; `release.json`, written last, says it is whole
    /opt/celery/shop/current            -> releases/<id>
    /opt/celery/shop/previous           -> releases/<id>, where a rollback goes
    /opt/celery/shop/rollback           -> releases/<id>, where one goes that has begun and not ended

A release is built in its final place, because a virtual environment names its own path. One that was
interrupted has no `release.json`: it is never switched to, and the next run builds it again.
"""

from __future__ import annotations

import filecmp
import json
import os
import pwd
import re
import shutil
import stat
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

from ansible_collections.fleet.celery.plugins.module_utils.files import replace_file, replace_link
from ansible_collections.fleet.celery.plugins.module_utils.fleet_backup import all_backups
from ansible_collections.fleet.celery.plugins.module_utils.index_gate import open_gate, without_proxies
from ansible_collections.fleet.celery.plugins.module_utils.paths import CONFIG_DIR, STATE_DIR

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from ansible_collections.fleet.celery.plugins.module_utils.confined import Confined

MARKER = "release.json"
COMPILED = ("lib", "source")  # the second of an app that is no package
RUN = "/run"  # where a sandbox sees sockets
# Services that look up names: what a package runs could tell something by the names that it asks for.
RESOLVERS = ("/run/systemd/resolve", "/run/nscd", "/run/dbus", "/run/avahi-daemon")
# Passwords are in these, or were; no package has any business there.
HIDDEN = (CONFIG_DIR, "/etc/redis", "/var/lib/redis", STATE_DIR)
# uv trusts what the machine trusts, as pip and apt do there: its own list lacks the authority of a company.
TRUST = {"UV_SYSTEM_CERTS": "1"}
UV_VARIABLES = ("UV_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_")
NO_WHEEL = re.compile(
    r"no usable wheels|building from source is disabled|source distributions for .* is disabled", re.I
)


class TreeError(Exception):
    """What was asked of the releases cannot be done; the message tells the operator why."""


class Installer:
    """Runs uv and the compiler for a release, in a sandbox, as a user who owns nothing but that release."""

    UNIT = "celery-release-install.service"

    def __init__(self, uv: Path, python: Path, cache: Path, run: Confined, env: Mapping[str, str]) -> None:
        """Take what to install with.

        Args:
            uv: The uv to install with.
            python: The interpreter to run the release with.
            cache: uv's cache.
            run: How commands are run.
            env: What uv needs to reach the index.
        """
        self.uv = uv
        self.python = python
        self.cache = cache
        self.run = run
        self.env = env
        self.build: tuple[str, ...] = ()  # packages that may be built from their source
        self.index_hosts: tuple[str, ...] = ()  # others than its own, from which the index gives files
        self.uid, self.gid = user_ids(run.user)

    def give(self, path: Path) -> None:
        """Give a directory to the user who installs."""
        os.chown(path, self.uid, self.gid)

    def fetch_python(self, version: str, place: Path) -> Path:
        """Return the interpreter of a version that uv has, fetched unless it is there.

        Args:
            version: Such as 3.12.
            place: A directory for it alone.

        Raises:
            TreeError: uv has none, or cannot fetch it.
        """
        done = place / ".whole"
        if not done.exists():
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True, mode=0o755)
            self.give(place)
            words: list[str | Path] = ["python", "install", "--no-bin", "--install-dir", place, version]
            try:
                self._uv(place, *words, network=True, fetches=True)
            except TreeError as error:
                raise TreeError(
                    f"Python {version} (celery_app_python) cannot be fetched. Let celery_app_python be the "
                    "path of one that the host has, or name a mirror: UV_PYTHON_INSTALL_MIRROR in "
                    f"celery_app_index_environment.\n{error}"
                ) from error
            seal(place)
            done.touch(mode=0o644)
        found = sorted(path.resolve() for path in place.glob("*/bin/python3") if path.exists())
        if not found:
            raise TreeError(f"uv has fetched Python {version}, and there is none in {place}.")
        return found[-1]

    def make_venv(self, path: Path) -> None:
        """Make an empty virtual environment in an empty directory."""
        self._uv(path, "venv", "--quiet", "--no-project", "--allow-existing", "--python", self.python, path)

    def install(self, path: Path, requirements: Path) -> None:
        """Install what the requirements name: from the host's cache if all is there, else from the index.

        Wheels are unpacked, and nothing of them is run: it is not compiled here, because uv would start the
        release's own interpreter for that, which runs what packages put into `.pth` files.
        """
        options: list[str | Path] = [
            "--require-hashes",
            "--only-binary",
            ":all:",
            "--python",
            path / "bin" / "python",
        ]
        options += [word for name in self.build for word in ("--no-binary", name)]
        command: list[str | Path] = ["pip", "install", *options, "--requirements", requirements]
        try:
            self._uv(path, *command, "--offline", cwd=requirements.parent)
        except TreeError:
            self._uv(path, *command, cwd=requirements.parent, network=True)

    def compile(self, path: Path) -> None:
        """Compile all modules of a release, with the standard library of the interpreter and nothing else."""
        script = (
            "import compileall, sys\n"
            "for path in sys.argv[1:]: compileall.compile_dir(path, quiet=2, workers=0)"
        )
        there = [directory for name in COMPILED if (directory := path / name).is_dir()]
        self._call(path, [self.python, "-I", "-S", "-c", script, *there], {})

    def _uv(
        self,
        path: Path,
        *arguments: str | Path,
        cwd: Path | None = None,
        network: bool = False,
        fetches: bool = False,
    ) -> None:
        """Run uv. Where it may build a package, which runs code of that, it reaches the index only.

        Args:
            path: As of `_call`.
            arguments: Of uv.
            cwd: As of `_call`.
            network: As of `_call`.
            fetches: Whether it fetches an interpreter, and builds nothing.
        """
        own = {
            "UV_CACHE_DIR": str(self.cache),
            "UV_LINK_MODE": "copy",
            "UV_NO_PROGRESS": "1",
            "UV_PYTHON_DOWNLOADS": "manual" if fetches else "never",
        }
        env = {**TRUST, **inherited(os.environ), **self.env, **own}
        argv = [self.uv, *arguments]
        if fetches or not (network and self.build):
            try:
                self._call(path, argv, env, cwd=cwd, network=network)
            except TreeError as error:
                raise TreeError(explained(str(error))) from error
            return
        with open_gate(env, self.index_hosts, within=RUN, group=self.gid) as gate:
            try:
                self._call(path, gate.command(self.python, argv), without_proxies(env), cwd=cwd, names=False)
            except TreeError as error:
                raise TreeError(f"{explained(str(error))}{gate.advice}") from error

    def _call(
        self,
        path: Path,
        argv: Sequence[str | Path],
        env: Mapping[str, str],
        *,
        cwd: Path | None = None,
        network: bool = False,
        names: bool = True,
    ) -> None:
        """Run a command that may write to the release and to the cache.

        Args:
            path: The release.
            argv: The command.
            env: Its environment.
            cwd: Where to run it.
            network: Whether it has the host's network.
            names: Whether it sees the host's services, of which some look up names for whoever asks.

        Raises:
            TreeError: It failed; the message is its own.
        """
        result = self.run.run(
            self.UNIT,
            argv,
            environment={"HOME": "/tmp", **env},
            cwd=cwd,
            writable=[path, self.cache],
            network=network,
            properties=[
                "UMask=0022",
                *(f"InaccessiblePaths=-{hidden}" for hidden in (*HIDDEN, *(() if names else RESOLVERS))),
            ],
        )
        if result.returncode:
            raise TreeError(result.stderr.strip() or f"{argv[0]}: exit status {result.returncode}")


class ReleaseTree:
    """The directory of one app."""

    def __init__(self, root: Path) -> None:
        """Take the app's directory, which need not exist."""
        self.root = root
        self.releases = root / "releases"
        self.cache = root.parent / "cache"

    def about(self, release: str) -> dict[str, Any] | None:
        """Return what a release says of itself, or None where it is not whole."""
        try:
            about: dict[str, Any] = json.loads((self.releases / release / MARKER).read_text(encoding="utf-8"))
            python = Path(about["python"])
        except (FileNotFoundError, NotADirectoryError, ValueError, KeyError):
            return None
        return about if python.exists() else None  # an upgrade of the host takes its old Python away

    def linked(self, name: str) -> str | None:
        """Return the release that the link `current` or `previous` leads to."""
        link = self.root / name
        return link.readlink().name if link.is_symlink() else None

    def scripted(self) -> list[str]:
        """Return the releases whose runtime loads scripts into Redis, and calls none of its functions."""
        package = "lib/python*/site-packages/fleet_runtime"
        calls = (f"{package}/broker/functions.py", f"{package}/functions.py")  # the second in older releases
        return [
            one
            for one in self.whole()
            if not any(found for path in calls for found in (self.releases / one).glob(path))
        ]

    def whole(self) -> list[str]:
        """Return the releases that can be switched to, the newest first."""
        found = [entry.name for entry in self._entries() if self.about(entry.name)]
        return sorted(
            found, key=lambda release: (self.releases / release / MARKER).stat().st_mtime, reverse=True
        )

    def surplus(self, keep: int) -> list[str]:
        """Return what may be removed: all but the newest, the current, the previous, and what those were.

        What a process still runs from stays as well: a node that was not restarted yet loads modules from
        there for as long as it lives.
        """
        links = [self.root / name for name in ("current", "previous")]
        saved = (Path(of_role.target(link)).name for of_role in all_backups() for link in links)
        linked = [name for name in (self.linked("current"), self.linked("previous"), *saved) if name]
        stay = list(dict.fromkeys([*linked, *self.whole()]))[: max(keep, len(set(linked)))]
        candidates = sorted(entry.name for entry in self._entries() if entry.name not in stay)
        used = self._used(candidates) if candidates else set()
        return [name for name in candidates if name not in used]

    def install(self, release: str, archive: Path, installer: Installer) -> None:
        """Install a release from its archive.

        Nothing that the release brings is run with this process's privileges. What the installer may write to
        is its own directory, which is root's when it has done.

        Args:
            release: Its id.
            archive: The archive that the controller built; removed when it is not needed any more.
            installer: What runs uv and the compiler.

        Raises:
            TreeError: It could not be installed; nothing of it is left.
        """
        path = self.releases / release
        umask = os.umask(0o022)  # every user may read a release, and only root may change it
        try:
            self.make_cache(installer)
            self.remove(release)
            for directory in (self.releases, path):
                directory.mkdir(parents=True, exist_ok=True)
            installer.give(path)
            installer.make_venv(path)
            about = _unpack(archive, path / "dist")
            installer.install(path, path / "dist" / "requirements.txt")
            self._share(path)
            installer.compile(path)
            (path / ".lock").unlink(missing_ok=True)  # uv's own, and writable by everyone
            seal(path)
            os.sync()  # what the marker vouches for must be on the disk before it is
            python = str(installer.python.resolve())
            marker = json.dumps({**about, "python": python}, indent=2) + "\n"
            replace_file(path / MARKER, marker, mode=0o644)
        except BaseException:
            self.remove(release)
            raise
        finally:
            os.umask(umask)
        archive.unlink()

    def switch(self, release: str) -> None:
        """Let `current` lead to a release, and `previous` to the one before it.

        Raises:
            TreeError: The release is not whole.
        """
        if not self.about(release):
            raise TreeError(
                f"Release {release} is not installed in {self.releases}, so current stays as it is."
            )
        before = self.linked("current")
        if before and before != release:
            replace_link(self.root / "previous", f"releases/{before}")
        replace_link(self.root / "current", f"releases/{release}")

    def begin_rollback(self, release: str) -> None:
        """Note that a rollback to a release has begun: halfway, `previous` leads elsewhere on each host."""
        replace_link(self.root / "rollback", f"releases/{release}")

    def end_rollback(self) -> bool:
        """Note that it has ended, and return whether one had begun."""
        begun = bool(self.linked("rollback"))
        (self.root / "rollback").unlink(missing_ok=True)
        return begun

    def remove(self, release: str) -> None:
        """Remove a release, or what is left of one. The marker goes first: what remains is not whole."""
        path = self.releases / release
        if path.is_dir():
            (path / MARKER).unlink(missing_ok=True)
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def trim_cache(self, limit: int) -> bool:
        """Empty the cache of packages if it has outgrown its limit, and return whether it had.

        Args:
            limit: In bytes. What an update replaced stays in the cache, and uv cannot tell it from the rest.
        """
        sizes = (path.lstat().st_size for path in self.cache.rglob("*"))
        too_big = self.cache.is_dir() and sum(sizes) > limit
        if too_big:
            shutil.rmtree(self.cache)
        return too_big

    def _entries(self) -> list[Path]:
        """Return what is in the directory of releases."""
        return list(self.releases.iterdir()) if self.releases.is_dir() else []

    def make_cache(self, installer: Installer) -> None:
        """Have a cache of packages that is the installer's, and shares no file with a release."""
        if self.cache.is_dir() and self.cache.stat().st_uid != installer.uid:
            shutil.rmtree(self.cache)  # an older version of this linked releases to it, as root
        self.cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        installer.give(self.cache)

    def _share(self, path: Path) -> None:
        """Let files that the newest whole release has as well be one with its own, on the disk and in memory.

        Before they are compiled: compiled code names the time of its source.
        """
        others = [self.releases / name for name in self.whole()[:1]]
        for other in others:
            for directory, _unused, names in os.walk(path):
                twins = other / Path(directory).relative_to(path)
                if twins.resolve() != other.resolve() / Path(directory).relative_to(path):
                    continue  # it is not there, or behind a link
                for name in names:
                    if _same(Path(directory) / name, twins / name):
                        new = path / ".twin"
                        os.link(twins / name, new)
                        new.replace(Path(directory) / name)

    def _used(self, releases: list[str]) -> set[str]:
        """Return those of the releases that a running process has files of in its memory."""
        used = set()
        prefixes = {f" {self.releases}/{release}/": release for release in releases}
        for maps in Path("/proc").glob("[0-9]*/maps"):
            try:
                text = maps.read_text(errors="replace")
            except OSError:  # it ended meanwhile, or is none of this user's business
                continue
            used |= {release for prefix, release in prefixes.items() if prefix in text}
        return used


def user_ids(name: str) -> tuple[int, int]:
    """Return the ids of a user and of its group; those of this process where no user is named."""
    if not name:
        return os.getuid(), os.getgid()
    try:
        entry = pwd.getpwnam(name)
    except KeyError as error:
        raise TreeError(f"The host has no user {name}, who is to install the release.") from error
    return entry.pw_uid, entry.pw_gid


def inherited(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of an environment by which uv reaches an index: all of its own, proxies, trust."""
    return {name: value for name, value in environ.items() if name.upper().startswith(UV_VARIABLES)}


def explained(words: str) -> str:
    """Return what uv says, with what to do if a package has no wheel."""
    if not NO_WHEEL.search(words):
        return words
    return (
        f"{words}\nTo build a package runs its code, so hosts do that only for those that "
        "celery_app_build_packages names. Name it there, and what it needs to compile in "
        "celery_app_packages, or choose a version that has a wheel for the hosts' Python."
    )


def seal(path: Path) -> None:
    """Make all below a directory this process's own, readable by everyone and writable by nobody else.

    Whoever could write there must be gone: links are not followed, but names could be moved meanwhile.

    Raises:
        TreeError: Something is there that is no file, directory or link.
    """
    uid, gid = os.getuid(), os.getgid()
    for directory, names, files in os.walk(path):
        for entry in (Path(directory), *(Path(directory) / name for name in (*names, *files))):
            status = entry.lstat()
            if (status.st_uid, status.st_gid) != (uid, gid):
                os.chown(entry, uid, gid, follow_symlinks=False)
            if stat.S_ISLNK(status.st_mode):
                continue
            if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
                raise TreeError(f"A package has made {entry}, which is neither a file nor a directory.")
            for name in os.listxattr(entry):
                if name.startswith("system.posix_acl"):  # by which its maker could let itself in again
                    os.removexattr(entry, name)
            runs = stat.S_ISDIR(status.st_mode) or status.st_mode & stat.S_IXUSR
            entry.chmod(0o755 if runs else 0o644)


def _same(one: Path, other: Path) -> bool:
    """Whether two paths are files of this process's with the same contents, equally executable."""
    try:
        a, b = one.lstat(), other.lstat()
    except OSError:
        return False
    alike = (a.st_size, a.st_mode & stat.S_IXUSR) == (b.st_size, b.st_mode & stat.S_IXUSR)
    files = stat.S_ISREG(a.st_mode) and stat.S_ISREG(b.st_mode)
    return alike and files and b.st_uid == os.getuid() and filecmp.cmp(one, other, shallow=False)


def _unpack(archive: Path, target: Path) -> dict[str, Any]:
    """Unpack an archive of the controller's, and return what the release says of itself."""
    with tarfile.open(archive) as tar:
        tar.extraction_filter = getattr(tarfile, "data_filter", None)  # from Python 3.11.4 on
        tar.extractall(target)  # noqa: S202 - the controller made it
        marker = tar.extractfile(MARKER)
        about: dict[str, Any] = json.loads(marker.read()) if marker else {}
    return about
