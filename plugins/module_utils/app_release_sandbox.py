# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A sandbox on the controller for code that belongs to an app: its build hooks, and what it is built with.

Such code must not see what the controller holds: the inventory, the vault's password, SSH keys, the fleet's
authority. It gets a file system of its own, made of the few paths that it needs; no network, but for a gate
to the package index where it is given one; no privileges; and processes, of which none outlives it. Linux's
namespaces do that, for root and, where the kernel lets them, for every user. `unshare`, `mount`, `pivot_root`
and `setpriv` are util-linux's.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ansible_collections.fleet.celery.plugins.module_utils.app_release_source import ReleaseError, run

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ansible_collections.fleet.celery.plugins.module_utils.index_gate import IndexGate

# The interpreter that builds, and what it needs besides /usr: not the environment that Ansible is in.
PYTHON = [Path(sys.executable).resolve(), Path(sys.base_prefix)]
NOBODY = 65534
PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
TOP = ("/bin", "/lib", "/lib32", "/lib64", "/libx32", "/sbin")
# Of /etc, what programs need to start, to know names, and to trust the index.
ETC = (
    "alternatives", "ca-certificates.conf", "gitattributes", "group", "hosts", "ld.so.cache", "ld.so.conf",
    "ld.so.conf.d", "localtime", "mime.types", "nsswitch.conf", "passwd", "pki/tls/certs", "ssl/certs",
    "ssl/openssl.cnf",
)  # fmt: skip
# Brings the loopback of a new network up: an ioctl, since a controller may lack `ip`.
LOOPBACK = (
    "import fcntl, socket, struct;"
    "fcntl.ioctl(socket.socket(), 0x8914, struct.pack('16sh', b'lo', 1))"  # SIOCSIFFLAGS, IFF_UP
)

# Makes the new root, and leaves the old one behind for good: a mount that only hid it could be taken away.
SCRIPT = """
set -eu
root=$1 drop=$2 python=$3 loopback=$4; shift 4
[ -z "$python" ] || "$python" -I -S -c "$loopback"
mount -t tmpfs -o mode=0755 sandbox "$root"
show() {
  if [ -d "$1" ]; then mkdir -p "$root$1"; else mkdir -p "$root${1%/*}"; : >"$root$1"; fi
  mount --rbind "$1" "$root$1"
}
protect() {
  mount -o remount,bind,ro,nosuid,nodev "$root$1" 2>/dev/null ||
    mount -o remount,bind,ro,nosuid,nodev,noexec "$root$1"
}
while [ "$1" != -- ]; do
  case $1 in
    link) ln -s "$(readlink "$2")" "$root$2" ;;
    device) show "$2" ;;
    write) show "$2" ;;
    read) show "$2"; protect "$2" ;;
  esac
  shift 2
done
shift
mkdir -p "$root/tmp" "$root/dev/shm" "$root/proc" "$root/old"
chmod 1777 "$root/tmp" "$root/dev/shm"
mount -t proc proc "$root/proc" 2>/dev/null || :   # a container may forbid it; most programs need none
ln -s /proc/self/fd "$root/dev/fd"
pivot_root "$root" "$root/old"
cd /
umount -n -l /old
rmdir /old
cd "$1"; shift
exec setpriv $drop --inh-caps=-all --ambient-caps=-all --bounding-set=-all --no-new-privs -- "$@"
"""


class Sandbox:
    """Runs commands in the sandbox, or without it where the operator has accepted that."""

    def __init__(self, *, unconfined: bool = False) -> None:
        """Take whether the operator accepts that there is none."""
        self.unconfined = unconfined
        self.root = os.getuid() == 0
        # As whom the command runs, if that is another than this process's own user.
        self.group = NOBODY if self.root else None

    def run(
        self,
        argv: list[str],
        failure: str,
        *,
        env: Mapping[str, str],
        cwd: Path,
        work: Path,
        readable: Iterable[Path] = (),
        gate: IndexGate | None = None,
    ) -> str:
        """Run a command and return what it prints.

        Args:
            argv: The command.
            failure: What to say if it fails, before its own words.
            env: Its environment, besides HOME, PATH and the language. Nothing of the operator's.
            cwd: Where to run it.
            work: A directory of the caller's, the only one that the command may write to, besides a /tmp.
            readable: What it must see otherwise.
            gate: Where it has to reach the package index.

        Raises:
            ReleaseError: It failed, or there can be no sandbox here.
        """
        clean = {"HOME": "/tmp", "LANG": "C.UTF-8", "PATH": PATH, **env}
        if self.unconfined:
            output: str = run(argv, failure, env={**clean, "HOME": str(work)}, cwd=cwd)
            return output
        if self._fault:
            raise ReleaseError(
                "Code of the app, or of what it is built with, runs on the controller only in a sandbox, and "
                f"none can be made here: {self._fault}\nLet the kernel make user namespaces "
                "(kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns), or use "
                "another controller. With celery_app_build_unconfined: true there is none, and that code "
                "can read all that you can: the inventory, the vault's password, your SSH keys."
            )
        self._give(work)
        try:
            output = run(self._wrap(argv, cwd, work, readable, gate), failure, env=clean)
        except ReleaseError as error:
            raise ReleaseError(f"{error}{gate.advice if gate else ''}") from error
        finally:
            self._take_back(work)
        return output

    @cached_property
    def _fault(self) -> str:
        """Return why there can be no sandbox here, or nothing."""
        with tempfile.TemporaryDirectory(prefix="celery-release-") as work:
            path = Path(work, "work")
            path.mkdir()
            argv = self._wrap(["true"], path, path, [], None)
            try:
                done = subprocess.run(
                    argv,
                    env={"PATH": PATH},
                    capture_output=True,
                    text=True,
                    check=False,
                    stdin=subprocess.DEVNULL,
                )
            except FileNotFoundError:
                return "there is no unshare, which is util-linux's."
        return (done.stderr.strip() or f"exit status {done.returncode}") if done.returncode else ""

    def _wrap(
        self, argv: list[str], cwd: Path, work: Path, readable: Iterable[Path], gate: IndexGate | None
    ) -> list[str]:
        """Return the command that runs another one in the sandbox."""
        user = [] if self.root else ["--user", "--map-current-user", "--keep-caps"]
        apart = ["--mount", "--net", "--ipc", "--uts", "--pid", "--fork", "--kill-child=KILL"]
        drop = f"--reuid={NOBODY} --regid={NOBODY} --clear-groups" if self.root else ""
        root = work.parent / f".{work.name}.root"
        root.mkdir(exist_ok=True)
        shown = [("link" if Path(path).is_symlink() else "read", path) for path in TOP if Path(path).exists()]
        names = [*ETC, *(["uv"] if gate else [])]
        shown += [
            ("read", path) for path in ("/usr", *(f"/etc/{name}" for name in names)) if Path(path).exists()
        ]
        shown += [("device", f"/dev/{name}") for name in ("null", "zero", "full", "random", "urandom")]
        if gate:
            readable = [*readable, *PYTHON, gate.socket.parent]
            argv = gate.command(PYTHON[0], argv)
        for path in readable:
            if not any(path.is_relative_to(place) for _unused, place in shown):
                shown.append(("read", str(path)))
        shown += [("write", str(work))]
        plan = [word for pair in shown for word in pair]
        loopback = [str(PYTHON[0]) if gate else "", LOOPBACK]
        command = ["sh", "-c", SCRIPT, "sandbox", str(root), drop, *loopback, *plan, "--", str(cwd), *argv]
        return ["unshare", *user, *apart, *command]

    def _give(self, work: Path) -> None:
        """Let the command, which root runs as nobody, write to its directory."""
        if self.root:
            for path in (work, *below(work)):
                os.chown(path, NOBODY, NOBODY, follow_symlinks=False)

    def _take_back(self, work: Path) -> None:
        """Make what the command has left root's again."""
        if self.root:
            for path in (work, *below(work)):
                os.chown(path, 0, 0, follow_symlinks=False)


def below(path: Path) -> Iterable[Path]:
    """Return all that is below a directory; links are not followed."""
    for directory, names, files in os.walk(path):
        for name in (*names, *files):
            yield Path(directory) / name


def own_file(path: Path, work: Path) -> Path:
    """Return a file that a command in the sandbox has made, refused if it leads out of what was its own.

    A link to the vault's password would otherwise be read here, with the operator's rights, and shipped.

    Raises:
        ReleaseError: It is no regular file below the directory.
    """
    if path.is_symlink() or not path.is_file() or not path.resolve().is_relative_to(work.resolve()):
        raise ReleaseError(f"The build hook has left {path.name}, which is not a file of its own.")
    return path
