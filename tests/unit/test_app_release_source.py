# SPDX-License-Identifier: MIT
"""Sources of an app: what is recognised, what is refused, and what makes a release another one."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
from ansible_collections.fleet.celery.plugins.module_utils.app_release_source import (
    Directory,
    Git,
    Pinned,
    ReleaseError,
    Sdist,
    Wheel,
    is_package,
    parse_source,
    split_extras,
    tree_digest,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return the smallest thing that counts as an app."""
    path = tmp_path / "shop"
    (path / "src").mkdir(parents=True)
    (path / "pyproject.toml").write_text("[project]\nname = 'shop'\n")
    (path / "src" / "shop.py").write_text("answer = 42\n")
    return path


@pytest.fixture
def repository(project: Path) -> Path:
    """Return the app as a git repository with two commits, a branch `next` and an annotated tag `v1`."""
    git(project, "init", "--quiet", "--initial-branch=main")
    git(project, "add", ".")
    git(project, "commit", "--quiet", "-m", "one")
    git(project, "tag", "-a", "v1", "-m", "v1")
    git(project, "checkout", "--quiet", "-b", "next")
    (project / "src" / "shop.py").write_text("answer = 43\n")
    git(project, "commit", "--quiet", "-am", "two")
    git(project, "checkout", "--quiet", "main")
    return project


def git(path: Path, *arguments: str) -> str:
    """Run git in a repository, with an author."""
    author = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    result = subprocess.run(
        ["git", *author, *arguments], cwd=path, check=True, capture_output=True, text=True
    )
    return result.stdout.strip()


def test_kinds_of_source(project: Path, tmp_path: Path) -> None:
    """Each way to name an app gives the right kind of source."""
    for name in ("shop-1.0-py3-none-any.whl", "shop-1.0.tar.gz"):
        (tmp_path / name).touch()
    assert isinstance(parse_source(str(project), ""), Directory)
    assert isinstance(parse_source(f"{tmp_path}/shop-1.0-py3-none-any.whl", ""), Wheel)
    assert isinstance(parse_source(f"{tmp_path}/shop-1.0.tar.gz", ""), Sdist)
    assert isinstance(parse_source("shop==1.0", ""), Pinned)
    assert isinstance(parse_source("shop[redis]==1.0", ""), Pinned)
    assert parse_source("git@example.org:me/shop.git", "v1") == Git("git@example.org:me/shop.git", "v1")
    assert parse_source("git+https://example.org/shop.git", "") == Git("https://example.org/shop.git", "")
    assert parse_source("ssh://git@example.org/shop", "") == Git("ssh://git@example.org/shop", "")
    assert parse_source("https://example.org/mono#subdirectory=apps/shop", "") == Git(
        "https://example.org/mono", "", "apps/shop"
    )


@pytest.mark.parametrize(
    ("text", "ref", "reason"),
    [
        ("/nowhere/shop", "", "There is no directory /nowhere/shop on the controller"),
        ("../shop", "", "is relative"),
        ("/nowhere/shop-1.0-py3-none-any.whl", "", "There is no file"),
        ("/nowhere/shop-1.0.tar.gz", "", "There is no file"),
        ("shop", "", "Write shop==1.2.3"),
        ("shop>=1.0", "", "does not name exactly one version"),
        ("shop==1.*", "", "does not name exactly one version"),
        ("shop==1.0,<2", "", "does not name exactly one version"),
        ("shop @ https://example.org/shop.whl", "", "not downloaded from a URL"),
        ("https://example.org/shop-1.0.tar.gz", "", "not downloaded from a URL"),
        ("what is this", "", "neither a path, nor a git URL, nor a requirement"),
        ("", "", "neither a path, nor a git URL, nor a requirement"),
        ("shop==1.0", "main", "is not a git URL"),
        ("https://example.org/mono#subdirectory=../../etc", "", "leads out of the repository"),
    ],
)
def test_what_is_refused(text: str, ref: str, reason: str) -> None:
    """What cannot be a release is refused, with the reason."""
    with pytest.raises(ReleaseError, match=reason):
        parse_source(text, ref)


def test_directory_without_project_is_refused(tmp_path: Path) -> None:
    """A directory that no build tool knows what to do with is refused."""
    with pytest.raises(ReleaseError, match=r"no requirements\.txt"):
        parse_source(str(tmp_path), "")


def test_misnamed_files_are_refused(tmp_path: Path) -> None:
    """A file must be named as its format wants, because the installer reads the name."""
    for name in ("shop.whl", "shop.tar.gz"):
        (tmp_path / name).touch()
        with pytest.raises(ReleaseError, match="is not named like"):
            parse_source(str(tmp_path / name), "")


def test_digest_follows_what_shapes_the_app(project: Path) -> None:
    """Contents, names and executable bits change the digest."""
    seen = {tree_digest(project)}
    (project / "src" / "shop.py").write_text("answer = 43\n")
    seen.add(tree_digest(project))
    (project / "src" / "shop.py").rename(project / "src" / "store.py")
    seen.add(tree_digest(project))
    (project / "src" / "store.py").chmod(0o755)
    seen.add(tree_digest(project))
    assert len(seen) == 4


def test_digest_ignores_what_tools_leave(project: Path, tmp_path: Path) -> None:
    """Version control, caches, environments, build output, tests and the release cache change nothing."""
    before = tree_digest(project)
    litter = [
        ".git/HEAD",
        "src/__pycache__/shop.pyc",
        "env/pyvenv.cfg",
        "env/lib/x.py",
        "dist/x.whl",
        "tests/test_x.py",
    ]
    for name in [*litter, "src/shop.egg-info/PKG-INFO", ".fleet/releases/x.tar"]:
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("x")
    (project / "dangling").symlink_to("nowhere")
    (project / "src" / "loop").symlink_to(project)
    assert tree_digest(project, (project / ".fleet",)) == before


def test_digest_sees_packages_named_like_output_and_linked_code(project: Path, tmp_path: Path) -> None:
    """A package named `build`, and code behind a link, are part of the app."""
    seen = {tree_digest(project)}
    (project / "src" / "build").mkdir()
    (project / "src" / "build" / "x.py").touch()
    seen.add(tree_digest(project))
    (project / "docs").mkdir()
    (project / "docs" / "__init__.py").touch()
    seen.add(tree_digest(project))
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "x.py").write_text("1")
    (project / "src" / "shared").symlink_to(tmp_path / "shared")
    seen.add(tree_digest(project))
    (tmp_path / "shared" / "x.py").write_text("2")
    seen.add(tree_digest(project))
    assert len(seen) == 5


def test_fetch_copies_and_leaves_the_source_alone(project: Path, tmp_path: Path) -> None:
    """The copy has the app's files, links resolved; nothing is written to the source."""
    (project / "src" / "link.py").symlink_to("shop.py")
    copy = Directory(project).fetch(tmp_path / "work")
    assert (copy / "src" / "link.py").read_text() == "answer = 42\n"
    assert not (copy / "src" / "link.py").is_symlink()
    assert tree_digest(copy) == tree_digest(project)


def test_git_refs(repository: Path) -> None:
    """A branch, a tag, a commit and the default branch name the commits that git says they do."""
    url = f"file://{repository}"
    main, following = git(repository, "rev-parse", "main"), git(repository, "rev-parse", "next")
    refs = {"": main, "main": main, "v1": main, "next": following, "refs/heads/next": following, main: main}
    assert {ref: Git(url, ref).commit for ref in refs} == refs


def test_git_fetch(repository: Path, tmp_path: Path) -> None:
    """The checkout is of the commit that was asked for."""
    source = Git(f"file://{repository}", "next")
    assert (source.fetch(tmp_path / "work") / "src" / "shop.py").read_text() == "answer = 43\n"


def test_git_subdirectory(repository: Path, tmp_path: Path) -> None:
    """An app below the top of its repository is found, and refused where it is not."""
    (repository / "apps").mkdir()
    git(repository, "mv", "pyproject.toml", "src", "apps")
    git(repository, "commit", "--quiet", "-m", "move")
    source = parse_source(f"file://{repository}#subdirectory=apps", "")
    assert isinstance(source, Git)
    assert (source.fetch(tmp_path / "work") / "pyproject.toml").is_file()
    with pytest.raises(ReleaseError, match=r"no requirements\.txt"):
        Git(f"file://{repository}", "").fetch(tmp_path / "top")


def test_git_failures(repository: Path) -> None:
    """A ref or a repository that is not there is named in the message."""
    with pytest.raises(ReleaseError, match="no branch or tag 'v2'"):
        _ = Git(f"file://{repository}", "v2").commit
    with pytest.raises(ReleaseError, match="git cannot read file:///nowhere"):
        _ = Git("file:///nowhere", "").commit


def test_git_credentials_are_kept_out_of_sight(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Credentials are in no argument, no message and no description; git gets them by its environment."""
    fake = tmp_path / "git"
    fake.write_text('#!/bin/sh\necho "$GIT_CONFIG_KEY_0=$GIT_CONFIG_VALUE_0"; echo "args: $*" >&2; exit 1\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    source = parse_source("https://me:s3cret@example.org/shop.git", "main")
    assert isinstance(source, Git)
    assert "s3cret" not in f"{source} {source!r}"
    with pytest.raises(ReleaseError) as caught:
        _ = source.commit
    assert "args: ls-remote" in str(caught.value)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "ssh://git@git.example.org/team/mono.git#subdirectory=services/shop",
        "git@git.example.org:team/mono.git#subdirectory=services/shop",
        "git+git@git.example.org:team/mono.git#subdirectory=services/shop",
    ],
)
def test_a_subdirectory_of_a_git_url(text: str) -> None:
    """Whichever way the URL is written, git is asked for the repository alone."""
    source = parse_source(text, "v1")
    assert isinstance(source, Git)
    assert source.subdirectory == "services/shop"
    assert source.url.endswith("team/mono.git")


def test_a_subdirectory_stays_in_the_repository() -> None:
    """Of a URL in SSH's short form as well."""
    with pytest.raises(ReleaseError, match="leads out of the repository"):
        parse_source("git@git.example.org:team/mono.git#subdirectory=../../etc", "")


@pytest.mark.parametrize(
    ("text", "place", "extras"),
    [
        ("/srv/shop[worker, aws]", "/srv/shop", ("worker", "aws")),
        ("/srv/shop/[worker]", "/srv/shop/", ("worker",)),
        ("/srv/shop-1.0-py3-none-any.whl[worker]", "/srv/shop-1.0-py3-none-any.whl", ("worker",)),
        ("git@host:mono.git#subdirectory=shop[worker]", "git@host:mono.git#subdirectory=shop", ("worker",)),
        ("shop[worker]==1.0", "shop[worker]==1.0", ()),
        ("ssh://git@[::1]/shop.git", "ssh://git@[::1]/shop.git", ()),
        ("/srv/shop", "/srv/shop", ()),
    ],
)
def test_extras_of_a_source(text: str, place: str, extras: tuple[str, ...]) -> None:
    """They end it in brackets; those of a requirement are its own."""
    assert split_extras(text) == (place, extras)


@pytest.mark.parametrize(
    ("text", "url", "extras"),
    [
        ("git+https://example.org/shop.git@v2#subdirectory=app", "https://example.org/shop.git", ()),
        (
            "shop[s3, pg] @ git+https://git.example.org/shop.git@v2#subdirectory=app",
            "https://git.example.org/shop.git",
            ("s3", "pg"),
        ),
        (
            "git+ssh://git@git.example.org/shop.git@v2#egg=shop[s3]&subdirectory=app",
            "ssh://git@git.example.org/shop.git",
            ("s3",),
        ),
        (
            "git+https://git.example.org/shop.git@v2#subdirectory=app[s3]",
            "https://git.example.org/shop.git",
            ("s3",),
        ),
        ("git@git.example.org:team/shop.git@v2#subdirectory=app", "git@git.example.org:team/shop.git", ()),
    ],
)
def test_forms_of_a_git_url(text: str, url: str, extras: tuple[str, ...]) -> None:
    """Each form of pip's has a ref, a directory, and extras."""
    place, found = split_extras(text)
    assert found == extras
    assert parse_source(place, "") == Git(url, "v2", "app")
    assert parse_source(place, "v2") == Git(url, "v2", "app")
    with pytest.raises(ReleaseError, match=r"ends in @v2, and celery_app_git_ref is main"):
        parse_source(place, "main")


def test_a_scope_in_a_path_is_no_ref() -> None:
    """Only what follows the name of the repository is one."""
    assert parse_source("https://git.example.org/@team/shop.git", "v1") == Git(
        "https://git.example.org/@team/shop.git", "v1"
    )


def test_submodules_are_part_of_an_app(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the commits that the app names."""
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "protocol.file.allow")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "always")
    library = tmp_path / "library"
    library.mkdir()
    (library / "lib.py").write_text("one\n")
    git(library, "init", "--quiet")
    git(library, "add", ".")
    git(library, "commit", "--quiet", "-m", "one")
    git(repository, "submodule", "--quiet", "add", str(library), "src/library")
    git(repository, "commit", "--quiet", "-m", "with a library")
    (library / "lib.py").write_text("two\n")
    git(library, "commit", "--quiet", "-am", "two")
    assert (
        Git(f"file://{repository}", "").fetch(tmp_path / "work") / "src/library/lib.py"
    ).read_text() == "one\n"


@pytest.mark.parametrize(
    ("pyproject", "others", "expected"),
    [
        ("", (), False),
        ("", ("setup.py",), True),
        ("[project]\nname = 'shop'\n", (), False),
        ("[project]\nname = 'shop'\n[project.scripts]\nshop = 'shop:main'\n", (), True),
        ("[build-system]\nrequires = []\n", (), True),
        ("[build-system]\nrequires = []\n[tool.uv]\npackage = false\n", (), False),
        ("[build-system]\nrequires = []\n[tool.poetry]\npackage-mode = false\n", (), False),
        ("[broken", (), True),
    ],
)
def test_what_is_a_package(tmp_path: Path, pyproject: str, others: tuple[str, ...], expected: bool) -> None:
    """A build system or a setup.py makes one, unless the project says otherwise."""
    (tmp_path / "pyproject.toml").write_text(pyproject)
    for name in others:
        (tmp_path / name).touch()
    assert is_package(tmp_path) is expected
