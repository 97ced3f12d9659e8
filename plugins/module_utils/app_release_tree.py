"""The releases of an app on a host: installed whole, switched by a rename, removed when nothing uses them.

    /opt/celery/shop/releases/<id>/     a virtual environment; `release.json`, written last, says it is whole
    /opt/celery/shop/current            -> releases/<id>
    /opt/celery/shop/previous           -> releases/<id>, where a rollback goes
    /opt/celery/shop/rollback           -> releases/<id>, where one goes that has begun and not ended

A release is built in its final place, because a virtual environment names its own path. One that was
interrupted has no `release.json`: it is never switched to, and the next run builds it again.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

from ansible.module_utils.fleet_kept import Kept

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

MARKER = "release.json"
# uv trusts what the machine trusts, as pip and apt do there: its own list lacks the authority of a company.
TRUST = {"UV_SYSTEM_CERTS": "1"}


class TreeError(Exception):
    """What was asked of the releases cannot be done; the message tells the operator why."""


class ReleaseTree:
    """The directory of one app."""

    def __init__(self, root: Path) -> None:
        """Take the app's directory, which need not exist."""
        self.root = root
        self.releases = root / "releases"
        self.cache = root.parent / "cache"  # on the same file system: equal files of releases are one, linked

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
        kept = (Path(Kept().target(self.root / name)).name for name in ("current", "previous"))
        links = (self.linked("current"), self.linked("previous"), *kept)
        linked = [release for release in links if release]
        stay = list(dict.fromkeys([*linked, *self.whole()]))[: max(keep, len(set(linked)))]
        candidates = sorted(entry.name for entry in self._entries() if entry.name not in stay)
        used = self._used(candidates) if candidates else set()
        return [name for name in candidates if name not in used]

    def install(self, release: str, archive: Path, python: Path, uv: Path, env: Mapping[str, str]) -> None:
        """Install a release from its archive.

        Args:
            release: Its id.
            archive: The archive that the controller built; removed when it is not needed any more.
            python: The interpreter to run it with.
            uv: The uv to install with.
            env: What uv needs to reach the index.

        Raises:
            TreeError: uv could not install it; nothing of it is left.
        """
        path = self.releases / release
        umask = os.umask(0o022)  # every user may read a release, and only root may change it
        try:
            self.cache.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.remove(release)
            self._uv(uv, env, "venv", "--quiet", "--no-project", "--python", python, path)
            with tarfile.open(archive) as tar:
                tar.extraction_filter = getattr(tarfile, "data_filter", None)  # from Python 3.11.4 on
                tar.extractall(path / "dist")  # noqa: S202 - the controller made it
            self._install(uv, env, path)
            (path / ".lock").unlink(missing_ok=True)  # uv's own, and writable by everyone
            about = json.loads((path / "dist" / MARKER).read_text(encoding="utf-8"))
            os.sync()  # what the marker vouches for must be on the disk before it is
            _write(path / MARKER, json.dumps({**about, "python": str(python.resolve())}, indent=2) + "\n")
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
            self._link("previous", before)
        self._link("current", release)

    def begin_rollback(self, release: str) -> None:
        """Note that a rollback to a release has begun: halfway, `previous` leads elsewhere on each host."""
        self._link("rollback", release)

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

    def _install(self, uv: Path, env: Mapping[str, str], path: Path) -> None:
        """Install what the requirements name: from the host's cache if all is there, else from the index."""
        options = ["--require-hashes", "--compile-bytecode", "--python", str(path / "bin" / "python")]
        command = ["pip", "install", *options, "--requirements", "requirements.txt"]
        try:
            self._uv(uv, env, *command, "--offline", cwd=path / "dist")
        except TreeError:
            self._uv(uv, env, *command, cwd=path / "dist")

    def _uv(self, uv: Path, env: Mapping[str, str], *arguments: str | Path, cwd: Path | None = None) -> None:
        """Run uv.

        Raises:
            TreeError: It failed; the message is uv's own.
        """
        own = {
            "UV_CACHE_DIR": str(self.cache),
            "UV_LINK_MODE": "hardlink",
            "UV_NO_PROGRESS": "1",
            "UV_PYTHON_DOWNLOADS": "never",
        }
        argv = [uv, *arguments]
        result = subprocess.run(
            argv, env={**TRUST, **os.environ, **own, **env}, cwd=cwd, capture_output=True, text=True
        )
        if result.returncode:
            raise TreeError(result.stderr.strip())

    def _link(self, name: str, release: str) -> None:
        """Make a link to a release, atomically: whoever follows it finds the old release or the new one."""
        new = self.root / f".{name}.new"
        new.unlink(missing_ok=True)
        new.symlink_to(f"releases/{release}")
        new.replace(self.root / name)

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


def _write(path: Path, text: str) -> None:
    """Write a small file whole or not at all."""
    new = path.with_name(f".{path.name}.new")
    with new.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    new.replace(path)
