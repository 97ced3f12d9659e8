# SPDX-License-Identifier: MIT
"""Locks: what is read, what is refused, and how the app's is completed with the runtime's."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from ansible_collections.fleet.celery.plugins.module_utils.app_release_lock import (
    find_lock,
    merge,
    parse_pylock,
    parse_requirements,
    read_lock,
    render,
)
from ansible_collections.fleet.celery.plugins.module_utils.app_release_source import ReleaseError

if TYPE_CHECKING:
    from pathlib import Path

EXPORTED = """\
# made by a tool
--index-url https://user:secret@example.org/simple
amqp==5.3.1 \\
    --hash=sha256:aa \\
    --hash=sha256:bb
    # via kombu
Typing_Extensions==4.1 ; python_version < '3.13' --hash=sha256:cc   # why
celery[redis]==5.7.0 --hash=sha256:dd
tool @ https://example.org/tool-1.0-py3-none-any.whl --hash=sha256:ee
"""

PYLOCK = """\
lock-version = "1.0"
[[packages]]
name = "amqp"
version = "5.3.1"
marker = "python_version >= '3.11'"
sdist = {url = "https://example.org/a.tar.gz", hashes = {sha256 = "aa"}}
wheels = [{url = "https://example.org/a.whl", hashes = {sha256 = "bb"}}]
[[packages]]
name = "tool"
archive = {url = "https://example.org/tool.tar.gz", hashes = {sha256 = "cc"}}
"""


def lines(*text: str) -> str:
    """Return a lock with a hash on each line."""
    return "".join(f"{line} --hash=sha256:{number}\n" for number, line in enumerate(text))


def merged(app: str, runtime: str) -> list[str]:
    """Return the merged lock, without hashes."""
    both = merge(parse_requirements(app, "app"), parse_requirements(runtime, "runtime"))
    return [str(line).split(" \\", maxsplit=1)[0] for line in both]


def test_requirements_are_read() -> None:
    """Comments, continuations, options, extras and the spelling of names do not matter; the rest is kept."""
    assert render(parse_requirements(EXPORTED, "x")).splitlines() == [
        "amqp==5.3.1 \\",
        "    --hash=sha256:aa \\",
        "    --hash=sha256:bb",
        "celery==5.7.0 \\",
        "    --hash=sha256:dd",
        "tool @ https://example.org/tool-1.0-py3-none-any.whl \\",
        "    --hash=sha256:ee",
        'typing-extensions==4.1 ; python_version < "3.13" \\',
        "    --hash=sha256:cc",
    ]


def test_what_is_written_is_read_again() -> None:
    """A rendered lock is a lock."""
    once = parse_requirements(EXPORTED, "x")
    assert parse_requirements(render(once), "x") == once


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("amqp==5.3.1\nvine==5.0\n", r"x has no hash for amqp==5\.3\.1, vine==5\.0"),
        ("amqp>=5 --hash=sha256:aa\n", "does not pin amqp to one version"),
        ("amqp==5.* --hash=sha256:aa\n", "does not pin amqp to one version"),
        ("tool @ git+https://example.org/tool@abc\n", r"no hash for tool @ git\+https"),
        ("./libs/tool --hash=sha256:aa\n", "a line that is no requirement: ./libs/tool"),
        ("-e ./libs/tool\n", "outside itself"),
        ("-r base.txt\n", "outside itself"),
    ],
)
def test_what_is_no_lock_is_refused(text: str, reason: str) -> None:
    """What another day or another host could read differently is refused, with the reason."""
    with pytest.raises(ReleaseError, match=reason):
        parse_requirements(text, "x")


def test_pylock_is_read() -> None:
    """The hashes of all files of a package count, and an archive keeps its address."""
    assert render(parse_pylock(PYLOCK, "x")).splitlines() == [
        'amqp==5.3.1 ; python_version >= "3.11" \\',
        "    --hash=sha256:aa \\",
        "    --hash=sha256:bb",
        "tool @ https://example.org/tool.tar.gz \\",
        "    --hash=sha256:cc",
    ]


@pytest.mark.parametrize(
    ("package", "reason"),
    [
        ('vcs = {type = "git", commit-id = "abc"}', "no hash for tool"),
        ("marker = \"'dev' in dependency_groups\"", "by extra or group"),
    ],
)
def test_pylock_refusals(package: str, reason: str) -> None:
    """A pylock.toml that a requirements file cannot express is refused."""
    with pytest.raises(ReleaseError, match=reason):
        parse_pylock(f'[[packages]]\nname = "tool"\nversion = "1"\n{package}\n', "x")


def test_broken_pylock_is_refused() -> None:
    """A file that is not TOML, or not a lock, is refused."""
    for text in ("[[", "[tool]\n"):
        with pytest.raises(ReleaseError, match="not a lock of PEP 751"):
            parse_pylock(text, "x")


def test_the_app_wins() -> None:
    """Where both lock a package, the app's version and hashes stay; the runtime adds what it alone needs."""
    both = merge(
        parse_requirements("kombu==5.7.1 --hash=sha256:app\n", "app"),
        parse_requirements("kombu==5.7.0 --hash=sha256:own\nflower==2.2.0 --hash=sha256:own\n", "runtime"),
    )
    assert [(line.name, line.pin, line.hashes) for line in both] == [
        ("flower", "==2.2.0", ("sha256:own",)),
        ("kombu", "==5.7.1", ("sha256:app",)),
    ]


def test_the_apps_marker_is_widened() -> None:
    """A package that the app needs only here or there is there as well where the runtime needs it."""
    app = lines("tzdata==2 ; sys_platform == 'win32'", "six==1", "pytz==1 ; os_name == 'nt'")
    runtime = lines("tzdata==1", "six==0 ; python_version < '3.12'", "pytz==1 ; os_name == 'nt'")
    assert merged(app, runtime) == ['pytz==1 ; os_name == "nt"', "six==1", "tzdata==2"]
    either = merged(lines("x==1 ; python_version < '3.12'"), lines("x==1 ; python_version > '3.12'"))
    assert either == ['x==1 ; python_version < "3.12" or python_version > "3.12"']


def test_a_version_for_each_platform_is_kept() -> None:
    """Several lines for one package are a choice by platform, which stays the app's."""
    app = lines("x==1 ; python_version < '3.12'", "x==2 ; python_version >= '3.12'")
    assert merged(app, lines("x==3")) == ['x==1 ; python_version < "3.12"', 'x==2 ; python_version >= "3.12"']


def test_which_lock_an_app_ships(tmp_path: Path) -> None:
    """The most specific lock is taken; a requirements.txt without hashes is none."""
    assert find_lock(tmp_path) is None
    (tmp_path / "requirements.txt").write_text("celery\n")
    assert find_lock(tmp_path) is None
    (tmp_path / "requirements.txt").write_text(lines("celery==5"))
    assert find_lock(tmp_path) == tmp_path / "requirements.txt"
    for name in ("requirements.lock", "pylock.toml", "uv.lock"):
        (tmp_path / name).touch()
        assert find_lock(tmp_path) == tmp_path / name


# What Poetry 1 writes: which package belongs to which group is not in the lock, and has to be followed.
POETRY_1 = """
[[package]]
name = "Celery"
version = "5.5.3"
optional = false
files = [{file = "celery.whl", hash = "AAA"}, {file = "celery.tar.gz", hash = "BBB"}]
[package.dependencies]
kombu = ">=5.5"
tzdata = {version = ">=2025", markers = "sys_platform == 'win32'"}
redis = {version = ">=5", optional = true, markers = "extra == 'redis'"}
boto3 = {version = ">=1", optional = true, markers = "extra == 'sqs'"}
backport = {version = "*", markers = "python_version < '3.12'"}
[package.extras]
redis = ["redis (>=5)"]
sqs = ["boto3 (>=1)"]
""".replace("AAA", "sha256:" + "a" * 64).replace("BBB", "sha256:" + "b" * 64) + "".join(
    f"""
[[package]]
name = "{name}"
version = "1.0"
optional = {optional}
files = [{{file = "x", hash = "sha256:{"c" * 64}"}}]
"""
    for name, optional in {
        "kombu": "false", "tzdata": "false", "redis": "true", "boto3": "true", "backport": "false",
        "pytest": "false", "pillow": "true",
    }.items()
)  # fmt: skip
POETRY_APP = """
[tool.poetry.dependencies]
python = "^3.11"
celery = {version = "^5.5", extras = ["redis"]}
pillow = {version = "*", optional = true}
[tool.poetry.extras]
images = ["pillow"]
[tool.poetry.group.dev.dependencies]
pytest = "*"
"""


@pytest.mark.parametrize(
    ("extras", "pythons", "more"),
    [((), ["3.13"], set()), (("images",), ["3.13"], {"pillow"}), ((), ["3.11", "3.13"], {"backport"})],
)
def test_a_lock_of_poetry_1(
    tmp_path: Path, extras: tuple[str, ...], pythons: list[str], more: set[str]
) -> None:
    """The dependencies of the app are followed, with the extras that they ask for, and for Linux."""
    (tmp_path / "poetry.lock").write_text(POETRY_1)
    (tmp_path / "pyproject.toml").write_text(POETRY_APP)
    lines = read_lock(tmp_path / "poetry.lock", extras, pythons)
    assert {line.name for line in lines} == {"celery", "kombu", "redis"} | more
    assert [line.hashes for line in lines if line.name == "celery"] == [
        ("sha256:" + "a" * 64, "sha256:" + "b" * 64)
    ]


def test_a_lock_of_poetry_2(tmp_path: Path) -> None:
    """It says the group, the marker and the extra of each package; one from git is refused."""
    text = "".join(
        f'[[package]]\nname = "{name}"\nversion = "1.0"\ngroups = {groups}\n{more}\n'
        f'files = [{{file = "x", hash = "{"sha256:" + "c" * 64}"}}]\n'
        for name, groups, more in (
            ("celery", '["main", "dev"]', ""),
            ("pytest", '["dev"]', ""),
            ("old", '["main"]', "markers = \"python_version < '3.12'\""),
            ("win", '["main"]', "markers = \"sys_platform == 'win32'\""),
            ("pillow", '["main"]', "optional = true\nmarkers = \"extra == 'images'\""),
        )
    )
    path = tmp_path / "poetry.lock"
    path.write_text(text)
    assert {line.name for line in read_lock(path, (), ["3.13"])} == {"celery"}
    assert {line.name for line in read_lock(path, ("images",), ["3.11"])} == {"celery", "old", "pillow"}
    path.write_text(text + '[[package]]\nname = "own"\ngroups = ["main"]\nsource = {type = "git"}\n')
    with pytest.raises(ReleaseError, match="takes own from git"):
        read_lock(path)


def test_a_lock_of_pipenv(tmp_path: Path) -> None:
    """What is for development stays away, and the app itself; one from git is refused."""
    default = {
        "celery": {
            "version": "==5.5.3",
            "hashes": ["sha256:" + "a" * 64],
            "markers": "python_version >= '3.8'",
        },
        "shop": {"path": ".", "editable": True},
    }
    path = tmp_path / "Pipfile.lock"
    path.write_text(json.dumps({"default": default, "develop": {"pytest": {"version": "==8"}}}))
    (line,) = read_lock(path)
    assert (line.name, line.pin, line.marker) == ("celery", "==5.5.3", 'python_version >= "3.8"')
    path.write_text(json.dumps({"default": {"own": {"git": "https://example.org/own.git", "ref": "1"}}}))
    with pytest.raises(ReleaseError, match="takes own from git"):
        read_lock(path)
    path.write_text("[]")
    with pytest.raises(ReleaseError, match="is no lock of Pipenv"):
        read_lock(path)
