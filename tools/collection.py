# SPDX-License-Identifier: MIT
"""Build the collection of the checked out commit, with the runtime's wheel in place of its source.

Usage: tools/collection.py [FOLDER]     (`make collection` does it; FOLDER is dist if it is not said)

Builds of one commit have the same bytes, on every day and in every clone: `ansible-galaxy collection build`
stamps the time and takes files in the order of the disk, so its archive is packed anew.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RUNTIME = Path("app/runtime")
# Where an installed collection has the wheel, nothing builds one.
SOURCE = ("src", "tests", "pyproject.toml", ".gitignore")


def git(*arguments: str, root: Path = ROOT) -> bytes:
    """Return what git prints about a clone."""
    return subprocess.check_output(["git", *arguments], cwd=root)


def check_out(root: Path, folder: Path) -> None:
    """Write the files of the commit that is checked out into a folder, and no file that git does not have."""
    folder.mkdir(parents=True, exist_ok=True)
    # Debian 12's tarfile has no filters yet.
    subprocess.run(["tar", "-x", "-C", folder], input=git("archive", "HEAD", root=root), check=True)


def put_wheel(runtime: Path) -> Path:
    """Build the runtime's wheel, put it in the place of the source, and return its path.

    Its bytes depend on the source alone, and not on the commit: they are part of what a release of the fleet
    is, and nodes restart for another one.

    Args:
        runtime: The source. It is changed.
    """
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(runtime)]
    environment = {name: value for name, value in os.environ.items() if name != "SOURCE_DATE_EPOCH"}
    subprocess.run(command, cwd=runtime, env=environment, check=True, capture_output=True)
    for name in SOURCE:
        path = runtime / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    (wheel,) = runtime.glob("*.whl")
    return wheel


def to_json(value: object) -> bytes:
    """Return a value as JSON, as ansible-galaxy writes it."""
    return json.dumps(value, indent=True).encode()


def repack(built: Path, target: Path, epoch: int) -> None:
    """Write an archive of ansible-galaxy anew: its files sorted, with one time, and its manifests to match.

    Args:
        built: What `ansible-galaxy collection build` has made.
        target: The archive to write.
        epoch: The time of all files, in seconds since 1970.
    """
    with tarfile.open(built) as archive:
        members = {
            member.name: (member, file.read() if (file := archive.extractfile(member)) else b"")
            for member in archive
        }
    listed = json.loads(members["FILES.json"][1])
    listed["files"].sort(key=lambda entry: entry["name"])
    manifest = json.loads(members["MANIFEST.json"][1])
    files = to_json(listed)
    manifest["file_manifest_file"]["chksum_sha256"] = hashlib.sha256(files).hexdigest()
    written = {"FILES.json": files, "MANIFEST.json": to_json(manifest)}

    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as archive:
        # ansible-galaxy looks for the manifests first
        for name in sorted(members, key=lambda name: (name not in written, name)):
            member, data = members[name]
            data = written.get(name, data)
            member.size, member.mtime, member.pax_headers = len(data), epoch, {}
            archive.addfile(member, io.BytesIO(data))
    with target.open("wb") as stream, gzip.GzipFile("", "wb", 9, stream, mtime=epoch) as packed:
        packed.write(plain.getvalue())


def build(root: Path, folder: Path) -> Path:
    """Build the collection of the commit that a clone has checked out.

    Args:
        root: The clone. It is not changed.
        folder: Where the archive is written.

    Returns:
        The path of the archive.
    """
    epoch = int(git("log", "-1", "--format=%ct", root=root))
    with tempfile.TemporaryDirectory(prefix="collection-") as directory:
        stage, out = Path(directory, "stage"), Path(directory, "out")
        check_out(root, stage)
        put_wheel(stage / RUNTIME)
        command = ["ansible-galaxy", "collection", "build", "--output-path", str(out)]
        subprocess.run(command, cwd=stage, check=True, capture_output=True)
        (built,) = out.glob("*.tar.gz")
        folder.mkdir(parents=True, exist_ok=True)
        repack(built, folder / built.name, epoch)
        return folder / built.name


def main() -> None:
    """Build the collection, and print its path, its size and its digest."""
    if len(sys.argv) > 2:
        sys.exit(__doc__)
    if git("status", "--porcelain"):
        print("Changes that are not committed are not in the collection.", file=sys.stderr)
    try:
        built = build(ROOT, Path(sys.argv[1]) if len(sys.argv) == 2 else ROOT / "dist")
    except subprocess.CalledProcessError as error:
        sys.exit(f"{(error.stderr or b'').decode()}{error}")
    data = built.read_bytes()
    print(f"{built}\n{len(data)} bytes, sha256 {hashlib.sha256(data).hexdigest()}")


if __name__ == "__main__":
    main()
