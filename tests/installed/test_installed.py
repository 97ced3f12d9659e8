# SPDX-License-Identifier: MIT
"""The collection as its users have it: from its archive, in a project elsewhere, beside only `ansible`.

Each step is what docs/collection.md, or the README of a role, says. This checkout gives only the archive, the
host, which is one of the lab, and the way to it.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tarfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tools import collection

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
ENV = "test-installed"
OVERLAY = ROOT / ".lab" / ENV / "inventory"
HOST = "celery1"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
CHANGED = re.compile(rf"^{HOST} .*?changed=(\d+)", re.MULTILINE)
# A certificate of an authority that is not the fleet's, as an operator may have one.
CERTIFY = """\
set -eu
groupadd --system fleet-tls
mkdir -p /etc/fleet/tls
cd /etc/fleet/tls
openssl req -x509 -newkey rsa:2048 -nodes -days 9 -keyout ca.key -out ca.crt -subj /CN=test
openssl req -newkey rsa:2048 -nodes -keyout host.key -out host.csr -subj /CN=host
printf 'subjectAltName=IP:127.0.0.1,IP:%s' "$1" >ext
openssl x509 -req -in host.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 9 -extfile ext -out host.crt
chgrp fleet-tls host.key
chmod 0640 host.key
"""
PING = """\
for address in 127.0.0.1 "$1"; do
  redis-cli --tls --cacert /etc/fleet/tls/ca.crt -h "$address" PING
  REDISCLI_AUTH=$2 redis-cli --tls --cacert /etc/fleet/tls/ca.crt -h "$address" --user health PING
done
"""


def blocks(page: Path, language: str) -> list[str]:
    """Return the texts of the blocks of code of a page that are in a language."""
    return [text for name, text in BLOCK.findall(page.read_text()) if name == language]


class Project:
    """An operator's project, and the environment in which that operator works."""

    def __init__(self, folder: Path, programs: Path, archive: Path) -> None:
        """Install the collection as docs/collection.md says, and write the settings of Ansible that it has.

        Args:
            folder: An empty folder.
            programs: The folder of the programs of a venv with Ansible.
            archive: The archive of the collection.
        """
        self.folder = folder / "project"
        self.inventory = self.folder / "inventory"
        self.collection = self.folder / "collections" / "ansible_collections" / "fleet" / "celery"
        for name in ("project", "home"):
            (folder / name).mkdir()
        (folder / "vault-password").write_text(secrets.token_urlsafe())
        self.env = {
            "PATH": f"{programs}:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(folder / "home"),
            "LC_ALL": "C.UTF-8",
            "ANSIBLE_VAULT_PASSWORD_FILE": str(folder / "vault-password"),
        }
        page = ROOT / "docs" / "collection.md"
        shutil.copy(archive, self.folder)
        install, self.deploy, self.day_2 = blocks(page, "sh")
        self.run("unshare", "--map-root-user", "--net", "sh", "-euc", install)  # without a network
        (settings,), (site,) = blocks(page, "ini"), blocks(page, "yaml")
        (self.folder / "ansible.cfg").write_text(settings)
        (self.folder / "site.yml").write_text(site)

    def tried(self, *words: str, script: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command in the project, with a text as its input."""
        return subprocess.run(
            words, cwd=self.folder, env=self.env, input=script, text=True, capture_output=True, check=False
        )

    def run(self, *words: str, script: str = "") -> str:
        """Run a command in the project, which must succeed, and return what it prints."""
        done = self.tried(*words, script=script)
        assert done.returncode == 0, f"{words}\n{done.stdout[-8000:]}\n{done.stderr[-2000:]}"
        return done.stdout

    def on_host(self, script: str, *arguments: str) -> str:
        """Run a script as root on the host, and return what it prints."""
        ssh = ("ssh", "-F", str(OVERLAY.parent / "ssh_config"), HOST)
        return self.run(*ssh, "sudo", "sh", "-s", "--", *arguments, script=script)


def changed(output: str) -> int:
    """Return how many tasks have changed something on the host, by what Ansible prints at the end."""
    (number,) = CHANGED.findall(output)
    return int(number)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the programs of a venv that has the pinned package `ansible`, and nothing else."""
    folder = tmp_path_factory.mktemp("venv")
    env = {**os.environ, "UV_SYSTEM_CERTS": "1", "VIRTUAL_ENV": str(folder)}
    if url := (ROOT / ".venv" / "index").read_text().strip():  # uv does not read pip's configuration
        env["UV_DEFAULT_INDEX"] = url
    uv = Path(sys.executable).with_name("uv")
    pins = ("--constraints", ROOT / "requirements" / "dev.txt")
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, folder], env=env, check=True)
    subprocess.run([uv, "pip", "install", "--quiet", *pins, "ansible"], env=env, check=True)
    return folder / "bin"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the archive of the commit that is checked out."""
    return collection.build(ROOT, tmp_path_factory.mktemp("archive"))


@contextmanager
def lab_host() -> Iterator[dict[str, Any]]:
    """Make a bare host; yield the variables by which Ansible reaches it."""

    def lab(command: str) -> None:
        variables = {"LAB_INVENTORY": "inventories/single", "LAB_SUITE": "bookworm", "LAB_ENV": ENV}
        subprocess.run([ROOT / "lab" / "lab.py", command, ENV], env=os.environ | variables, check=True)

    lab("destroy")
    try:
        lab("create")
        yield json.loads((OVERLAY / "host_vars" / f"{HOST}.json").read_text())
    finally:
        lab("destroy")


def test_each_playbook_is_found_by_its_name(tmp_path: Path, programs: Path, archive: Path) -> None:
    """So are the files that it imports, and the roles."""
    project = Project(tmp_path, programs, archive)
    names = {path.stem for path in project.collection.glob("playbooks/*.yml") if "-" not in path.stem}
    assert {"site", "secrets", "release", "rollback", "health", "upgrade_redis"} <= names
    for name in sorted(names):
        project.run("ansible-playbook", "-i", "inventory", "--syntax-check", f"fleet.celery.{name}")


def test_a_role_alone_works_as_its_readme_shows(tmp_path: Path, programs: Path, archive: Path) -> None:
    """The role redis, on a host with certificates of the operator's own."""
    project = Project(tmp_path, programs, archive)
    shutil.rmtree(project.inventory)
    project.inventory.mkdir()
    (project.folder / "play.yml").write_text(blocks(project.collection / "roles/redis/README.md", "yaml")[0])
    users = ("admin", "worker", "beat", "flower", "web", "ops", "health")
    passwords = {user: secrets.token_urlsafe(32) for user in users}
    with lab_host() as host:
        group = {"hosts": {HOST: host}, "vars": {"vault_redis_passwords": passwords}}
        (project.inventory / "hosts.json").write_text(json.dumps({"redis": group}))
        project.on_host(CERTIFY, host["ansible_host"])
        play = ("ansible-playbook", "-i", "inventory", "play.yml")
        assert changed(project.run(*play)) > 0
        assert changed(project.run(*play)) == 0
        said = project.on_host(PING, host["ansible_host"], passwords["health"]).split("\n")
        assert [line[:6] for line in said if line] == ["NOAUTH", "PONG", "NOAUTH", "PONG"]


@pytest.fixture(scope="class")
def project(tmp_path_factory: pytest.TempPathFactory, programs: Path, archive: Path) -> Iterator[Project]:
    """Return a project whose fleet runs."""
    project = Project(tmp_path_factory.mktemp("fleet"), programs, archive)
    shutil.copytree(project.collection / "app" / "demo", project.folder / "app")
    with lab_host() as host:
        (project.inventory / "host_vars").mkdir()
        (project.inventory / "host_vars" / f"{HOST}.json").write_text(json.dumps(host))
        variables = json.loads((OVERLAY / "group_vars" / "all" / "lab.json").read_text())
        del variables["fleet_local_dir"]
        variables["celery_app_source"] = "{{ inventory_dir }}/../app"
        (project.inventory / "group_vars" / "all" / "own.json").write_text(json.dumps(variables))
        project.run("sh", "-euc", project.deploy)
        yield project


class TestFleet:
    """The smallest fleet, `inventories/single`, from a project."""

    def test_a_second_run_changes_nothing(self, project: Project) -> None:
        """As in a clone."""
        assert changed(project.run("ansible-playbook", "-i", "inventory", "site.yml")) == 0

    def test_the_release_carries_the_wheel_of_the_collection(self, project: Project) -> None:
        """And the host runs that release."""
        (wheel,) = project.collection.glob("app/runtime/*.whl")
        (release,) = project.inventory.glob(".fleet/releases/*.tar")
        with tarfile.open(release) as contents:
            packed = contents.extractfile(wheel.name)
            assert packed
            assert packed.read() == wheel.read_bytes()
        about = json.loads(project.on_host("cat /opt/celery/demo/current/release.json"))
        assert about["id"] == release.stem

    def test_day_2(self, project: Project) -> None:
        """By the names that the page has, and by others."""
        before = project.on_host("systemctl show -P InvocationID celery-worker@default-1")
        project.run("sh", "-euc", project.day_2)
        assert project.on_host("systemctl show -P InvocationID celery-worker@default-1") != before
        project.run("ansible-playbook", "-i", "inventory", "fleet.celery.status")
        assert changed(project.run("ansible-playbook", "-i", "inventory", "fleet.celery.release")) == 0

    def test_a_lost_wheel_is_refused_before_anything_is_touched(self, project: Project) -> None:
        """Not even the lock is taken."""
        (wheel,) = project.collection.glob("app/runtime/*.whl")
        wheel.rename(project.folder / wheel.name)
        try:
            done = project.tried("ansible-playbook", "-i", "inventory", "site.yml")
        finally:
            (project.folder / wheel.name).rename(wheel)
        assert done.returncode
        assert f"celery_app_runtime_source is {wheel.parent}" in done.stdout
        assert changed(done.stdout) == 0
        assert "Lock the fleet" not in done.stdout
