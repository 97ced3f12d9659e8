# SPDX-License-Identifier: MIT
"""A package index on this machine, for tests: it has what a test puts there, and counts what it is asked."""

from __future__ import annotations

import base64
import functools
import hashlib
import http.server
import threading
import zipfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

NOWHERE = "http://127.0.0.1:9/simple"  # answers nothing


class PackageIndex:
    """The index: a directory, of which a page lists the files of a package with their hashes."""

    def __init__(self, root: Path, login: str = "") -> None:
        """Take its directory, and the login that may ask it, as `user:password`; any client if empty."""
        self.root = root
        self.login = login
        self.asked: list[str] = []  # the paths, as they come
        self.url = NOWHERE

    def add(self, name: str, version: str, metadata: str = "", files: dict[str, str] | None = None) -> None:
        """Put a wheel into the index.

        Args:
            name: Of the package.
            version: Of the package.
            metadata: More lines, such as `Requires-Dist: other`.
            files: What it installs; one module if that is not said.
        """
        stem = name.replace("-", "_")
        about, folder = f"{stem}-{version}.dist-info", self.folder(name)
        file = folder / f"{stem}-{version}-py3-none-any.whl"
        with zipfile.ZipFile(file, "w") as wheel:
            for path, text in (files or {f"{stem}_code.py": ""}).items():
                wheel.writestr(path, text)
            said = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{metadata}"
            wheel.writestr(f"{about}/METADATA", said)
            wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{about}/RECORD", "")
        self.list(file)

    def folder(self, name: str) -> Path:
        """Return the directory of a package."""
        folder = self.root / "simple" / name.replace("_", "-").lower()
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def list(self, file: Path) -> None:
        """Name a file on the page of its package."""
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        with (file.parent / "index.html").open("a") as page:
            page.write(f'<a href="{file.name}#sha256={digest}">{file.name}</a>\n')

    @contextmanager
    def served(self) -> Iterator[PackageIndex]:
        """Serve it while the block lasts; `url` is where."""
        handler = functools.partial(Handler, self)
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            self.url = f"http://127.0.0.1:{server.server_address[1]}/simple"
            yield self
            server.shutdown()

    def private_url(self) -> str:
        """Return the URL with the login in it."""
        return self.url.replace("://", f"://{self.login}@")


class Handler(http.server.SimpleHTTPRequestHandler):
    """A file server that keeps to itself."""

    def __init__(self, index: PackageIndex, *arguments: Any) -> None:
        """Take the index."""
        self.index = index
        super().__init__(*arguments, directory=str(index.root))

    def do_GET(self) -> None:
        """Answer, if the client may ask."""
        self.index.asked.append(self.path)
        wanted = f"Basic {base64.b64encode(self.index.login.encode()).decode()}"
        if self.index.login and self.headers.get("Authorization") != wanted:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="index"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        super().do_GET()

    def log_message(self, *_: object) -> None:
        """Log nothing."""
