# SPDX-License-Identifier: MIT
"""An app keeps the versions that it pins, whatever the fleet's own programs need."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ansible_collections.fleet.celery.plugins.module_utils.app_release import Builder, Uv
from ansible_collections.fleet.celery.plugins.module_utils.app_release_source import (
    parse_runtime,
    parse_source,
)

ROOT = Path(__file__).resolve().parents[2]
PYTHON = f"3.{sys.version_info.minor}"
# Each is older than what the fleet's own venv has; Celery 5.7 takes no older click.
PINS = {"rich": "10.16.2", "pydantic": "1.10.24", "click": "8.3.1", "flower": "2.0.1"}
VERSIONS = """
import importlib.metadata, json
print(json.dumps({one.name: one.version for one in importlib.metadata.distributions()}))
"""
APP = """
import click, flower, pydantic, rich
from celery import Celery

class Order(pydantic.BaseModel):
    class Config:
        orm_mode = True  # of pydantic 1

app = Celery("shop")

@app.task
def add(x, y):
    return x + y
"""


@pytest.fixture(scope="module")
def uv() -> Uv:
    """Return uv with the index of this checkout."""
    index = ROOT / ".venv" / "index"  # uv does not read pip's configuration
    return Uv(index.read_text().strip() if index.exists() else "")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an app with old pins."""
    folder = tmp_path_factory.mktemp("app") / "shop"
    (folder / "src" / "shop").mkdir(parents=True)
    (folder / "src" / "shop" / "__init__.py").write_text(APP)
    pins = ", ".join(f'"{name}=={version}"' for name, version in PINS.items())
    (folder / "pyproject.toml").write_text(
        f"""[build-system]
requires = ["uv_build"]
build-backend = "uv_build"
[project]
name = "shop"
version = "1.0"
requires-python = ">=3.11"
dependencies = ["celery", {pins}]
"""
    )
    return folder


@pytest.fixture(scope="module")
def release(project: Path, uv: Uv, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the venv of a release of it, as a host installs it, with what a pool and Beat need."""
    folder = tmp_path_factory.mktemp("release")
    builder = Builder(
        parse_source(str(project), ""),
        parse_runtime(ROOT / "app" / "runtime"),
        folder / "cache",
        python=sys.executable,
        pythons=[PYTHON],
        lock="",
        uv=uv,
        needs=["gevent", "redbeat"],
    )
    identity = builder.identify(save=True)
    builder.build(identity)
    (folder / "dist").mkdir()
    subprocess.run(["tar", "-xf", builder.archive(identity), "-C", folder / "dist"], check=True)
    venv = folder / "venv"
    env = {**uv.env, "VIRTUAL_ENV": str(venv), "UV_LINK_MODE": "copy"}
    for words in (
        ["venv", "--quiet", "--python", sys.executable, str(venv)],
        ["pip", "install", "--quiet", "--require-hashes", "--only-binary=:all:", "-r", "requirements.txt"],
        ["pip", "check", "--quiet"],
    ):
        done = subprocess.run(
            [uv.path, *words], cwd=folder / "dist", env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    return venv


def run(release: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a program of the release, with nothing of this checkout."""
    env = {"PATH": f"{release}/bin:/usr/bin:/bin", "HOME": os.devnull, **variables}
    return subprocess.run(words, cwd=release, env=env, capture_output=True, text=True, check=False)


def test_the_release_has_what_the_app_pins(release: Path) -> None:
    """And of the fleet's own only the core, with gevent and RedBeat."""
    found = json.loads(run(release, "python", "-c", VERSIONS).stdout)
    assert {name: found[name] for name in PINS} == PINS
    assert {"celery-fleet-runtime", "gevent", "celery-redbeat", "hiredis"} <= found.keys()
    assert "msgpack" not in found


def test_the_app_is_checked_and_described(release: Path) -> None:
    """By commands that need no other click than Celery does."""
    url = "rediss://ops:pw@127.0.0.1:1/0?ssl_cert_reqs=required"
    variables = {"FLEET_APP": "shop:app", "FLEET_COMPONENT": "ops", "CELERY_BROKER_URL": url}
    variables |= {"CELERY_RESULT_BACKEND": url, "CHECK_BEAT_SCHEDULER": "redbeat", "CHECK_POOLS": "gevent"}
    done = run(release, "celery", "-A", "fleet_runtime.app", "fleet", "check", "--json", **variables)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["level"], found["faults"]) == ("full", [])
    assert "shop.add" in found["app"]["tasks"]
