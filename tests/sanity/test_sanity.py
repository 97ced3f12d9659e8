# SPDX-License-Identifier: MIT
"""The collection passes Ansible's own checks: `ansible-test sanity`, antsibull-docs, and Galaxy's importer.

They run on a copy of the files that git has, in a folder such as Ansible wants, with `.cache/sanity` as their
home: nothing of the user's is read or changed. They need the package index, and no other network.

`ignore-*.txt` beside this file names each finding that is none, with the reason. `ansible-test` reads it, and
fails on an entry that is no longer needed.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools import collection

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / ".cache" / "sanity"
REPORT = ROOT / ".cache" / "test" / "sanity" / "left-out.md"
PROGRAMS = Path(sys.executable).parent
# What is not checked here, and why; lab/test.py prints it.
LEFT_OUT = """\
Not checked by the stage sanity:
- galaxy-importer: `repository` of galaxy.yml. The project has no public address; the copy has a placeholder.
- galaxy-importer: its own runs of ansible-test, which needs an image from a registry, and of ansible-lint.
  The former runs by itself here, the latter in `make lint`.
- ansible-test, pylint: what is neither a plugin nor a part of a role. `make lint` has ruff and mypy for it.
- ansible-test, import and compile: other versions of Python than this one. The workflow has a job for each.
- ansible-test, pslint: nothing here is PowerShell.
"""


def run(*words: str | Path, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end with a clean environment; `stdout` of the result has all its output."""
    env = {"HOME": str(HOME), "LC_ALL": "C.UTF-8", "PATH": f"{PROGRAMS}:{os.environ['PATH']}", **variables}
    return subprocess.run(
        words, cwd=cwd, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )


def require(done: subprocess.CompletedProcess[str]) -> str:
    """Return what a command printed, which must have succeeded."""
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a clone of the files here, as they are on disk, where Ansible looks for the collection."""
    folder = tmp_path_factory.mktemp("sanity") / "ansible_collections" / "fleet" / "celery"
    for name in collection.git("ls-files", "-co", "--exclude-standard", "-z").decode().split("\0"):
        if name and os.path.lexists(ROOT / name):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    with (folder / "galaxy.yml").open("a") as file:
        file.write("repository: https://example.invalid/fleet/celery\n")
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(LEFT_OUT)
    who = ("-c", "user.name=copy", "-c", "user.email=copy@example.invalid")
    for words in (["init", "--quiet"], ["add", "--all"], [*who, "commit", "--quiet", "--message=copy"]):
        require(run("git", *words, cwd=folder))
    return folder


@pytest.fixture(scope="module")
def tools() -> Path:
    """Return the folder of programs of a venv with requirements/sanity.txt."""
    venv, pins = HOME / "tools", ROOT / "requirements" / "sanity.txt"
    index = ROOT / ".venv" / "index"  # uv does not read pip's configuration
    url = index.read_text().strip() if index.exists() else ""
    settings = {"UV_SYSTEM_CERTS": "1", "VIRTUAL_ENV": str(venv)} | ({"UV_DEFAULT_INDEX": url} if url else {})
    require(run("uv", "venv", "--clear", "--quiet", "--python", sys.executable, venv, cwd=ROOT, **settings))
    require(run("uv", "pip", "sync", "--quiet", "--require-hashes", pins, cwd=ROOT, **settings))
    return venv / "bin"


def prepare_home() -> None:
    """Give ansible-test, which makes venvs for its tools, what it would take from elsewhere.

    It knows no variables of pip, so pip's settings are in a file; and it would fetch a program that installs
    pip, which the standard library can do as well.
    """
    listed = require(run(sys.executable, "-m", "pip", "config", "list", cwd=ROOT, **os.environ))
    settings = [
        f"{match[1]} = {ast.literal_eval(match[2])}\n"
        for match in re.finditer(r"^(?:global|:env:)\.([\w-]+)=('.*')$", listed, re.MULTILINE)
    ]
    config = HOME / ".config" / "pip" / "pip.conf"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text("".join(["[global]\n", *dict.fromkeys(settings)]))

    found = importlib.util.find_spec("ansible_test")
    assert found and found.origin
    source = Path(found.origin).parent / "_internal" / "python_requirements.py"
    (version,) = re.findall(r"^ +pip='([\d.]+)',$", source.read_text(), re.MULTILINE)
    installer = HOME / ".ansible" / "test" / "cache" / f"get_pip_{version.replace('.', '_')}.py"
    installer.parent.mkdir(parents=True, exist_ok=True)
    installer.write_text("import ensurepip\n\nensurepip.bootstrap()\n")


@pytest.mark.parametrize(
    "what", [("--skip-test", "pylint"), ("--test", "pylint", "plugins/", "roles/")], ids=" ".join
)
def test_ansible_test(copy: Path, what: tuple[str, ...]) -> None:
    """Each kind of `ansible-test sanity` runs, and finds nothing."""
    prepare_home()
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    said = require(run("ansible-test", "sanity", "--color", "no", "--python", version, *what, cwd=copy))
    assert "Skipping" not in said, said


def test_antsibull_docs(copy: Path, tools: Path) -> None:
    """The documentation of each plugin and role is whole, and names what there is."""
    words = ("lint-collection-docs", "--plugin-docs", ".")
    path = f"{tools}:/usr/bin:/bin"
    assert require(run(tools / "antsibull-docs", *words, cwd=copy, PATH=path)) == ""


def test_galaxy_importer(copy: Path, tools: Path, tmp_path: Path) -> None:
    """Galaxy would take the archive that `make collection` builds."""
    archive = collection.build(copy, tmp_path)
    command = (tools / "python", "-m", "galaxy_importer.main", archive)
    settings = {"PATH": f"{tools}:/usr/bin:/bin", "GALAXY_IMPORTER_RUN_ANSIBLE_LINT": "no"}
    said = require(run(*command, cwd=tmp_path, **settings))
    assert "Importer processing completed successfully" in said
    assert not re.findall(r"^(?:ERROR|WARNING|.*\[WARNING\]).*", said, re.MULTILINE), said
