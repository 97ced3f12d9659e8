# SPDX-License-Identifier: MIT
"""The version of the project: one in every place, and how a release changes it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from tools import release

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with the files that say a version, at 0.1.0."""
    for name in release.PLACES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    (tmp_path / release.WHEEL_CHANGES).write_text("# Changelog\n\n## 0.1.0\n\n- The first.\n")
    changes = tmp_path / "changelogs"
    (changes / "fragments").mkdir(parents=True)
    (changes / "fragments" / "some.yml").write_text("---\ntrivial:\n  - tests - one.\n")
    (changes / "changelog.yaml").write_text(yaml.safe_dump({"releases": {"0.1.0": {}, "0.0.9": {}}}))
    return tmp_path


def test_all_places_agree() -> None:
    found = release.versions(ROOT)
    assert {"galaxy.yml", "app/runtime/pyproject.toml", "changelogs/changelog.yaml"} <= set(found)
    assert len(set(found.values())) == 1, f"use `make release`: {found}"


def test_the_changelog_is_up_to_date(tmp_path: Path) -> None:
    file = tmp_path / "CHANGELOG.rst"
    subprocess.run(["antsibull-changelog", "generate", "--output", file], cwd=ROOT, check=True)
    assert (ROOT / "CHANGELOG.rst").read_text() == file.read_text(), "run `antsibull-changelog generate`"


def test_release_writes_every_place(project: Path) -> None:
    release.check(project, "0.10.0")
    release.write(project, "0.10.0")
    found = release.versions(project)
    assert found.pop("changelogs/changelog.yaml") == "0.1.0", "antsibull-changelog writes it"
    assert set(found.values()) == {"0.10.0"}
    assert (project / release.WHEEL_CHANGES).read_text().count("No change of the package.") == 1


def test_release_heads_what_is_unreleased(project: Path) -> None:
    file = project / release.WHEEL_CHANGES
    file.write_text(file.read_text().replace("## 0.1.0", "## Unreleased\n\n- One.\n\n## 0.1.0"))
    release.write(project, "0.2.0")
    assert "## 0.2.0\n\n- One.\n\n## 0.1.0" in file.read_text()
    assert "Unreleased" not in file.read_text()


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        ("0.1.0", "0.1.0 is not above 0.1.0"),
        ("0.0.10", "not above 0.1.0"),
        ("1.0", "no semantic version"),
        ("v0.2.0", "no semantic version"),
    ],
)
def test_release_refuses_a_version(project: Path, version: str, reason: str) -> None:
    with pytest.raises(release.RefusedError, match=reason):
        release.check(project, version)


def test_release_needs_a_fragment(project: Path) -> None:
    (project / "changelogs" / "fragments" / "some.yml").unlink()
    with pytest.raises(release.RefusedError, match="no fragment"):
        release.check(project, "0.2.0")


def test_a_file_without_a_version_is_named(project: Path) -> None:
    (project / "galaxy.yml").write_text("name: celery\n")
    with pytest.raises(release.RefusedError, match=r"galaxy\.yml"):
        release.versions(project)
