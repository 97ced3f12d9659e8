# SPDX-License-Identifier: MIT
"""The small apps in examples/ become releases, as they are and by the lines that their README has."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from ansible_collections.fleet.celery.plugins.module_utils.app_release import Builder, Uv
from ansible_collections.fleet.celery.plugins.module_utils.app_release_source import Directory

from tests.unit.package_index import PackageIndex

if TYPE_CHECKING:
    from collections.abc import Iterator


ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
NAMES = sorted(path.parent.name for path in EXAMPLES.glob("*/requirements.txt"))


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve packages with the names of those that the apps and the runtime require."""
    index = PackageIndex(tmp_path_factory.mktemp("index"))
    for line in (ROOT / "app/runtime/requirements.lock").read_text().splitlines():
        if pin := re.match(r"([\w.-]+)==([\w.]+)", line):
            index.add(pin[1], pin[2], "Provides-Extra: redis\n")
    for name, version in {"Flask": "3.1", "fastapi": "0.120", "uvicorn": "0.40", "Django": "5.2"}.items():
        index.add(name, version)
    with index.served():
        yield index.url


@pytest.mark.parametrize("name", NAMES)
def test_an_example_becomes_a_release(
    name: str, index: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its modules as they are, and what it requires; the README has its three lines."""
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    source, runtime = Directory(EXAMPLES / name), Directory(ROOT / "app" / "runtime")
    builder = Builder(source, runtime, tmp_path, python="p", lock="", uv=Uv(index), pythons=["3.11", "3.13"])
    requirements = builder._requirements(save=False)
    for line in (EXAMPLES / name / "requirements.txt").read_text().splitlines():
        wanted = re.match(r"[\w-]+", line)
        assert wanted
        assert re.search(rf"^{wanted[0].lower()}==", requirements, re.M)

    app = builder._app(tmp_path / "app")
    with zipfile.ZipFile(app.path) as wheel:
        files = wheel.namelist()
    (row,) = [row for row in (EXAMPLES / "README.md").read_text().splitlines() if f"({name})" in row]
    assert f'celery_app_source: "{{{{ inventory_dir }}}}/../../examples/{name}"' in row
    imported = re.search(r"celery_app_import: ([\w.]+):", row)
    assert imported
    place = f"data/source/{imported[1].replace('.', '/')}"
    assert [file for file in files if file.endswith((f"{place}.py", f"{place}/__init__.py"))]
