# SPDX-License-Identifier: MIT
"""The module_util debian_packages: what dpkg has, and what the archive offers."""

from __future__ import annotations

import shutil

import pytest
from ansible_collections.fleet.celery.plugins.module_utils import debian_packages

needs_dpkg = pytest.mark.skipif(not shutil.which("dpkg-query"), reason="this is no Debian")

POLICY = """\
redis-server:
  Installed: 5:7.0.15-1~deb12u7
  Candidate: 5:7.0.15-1~deb12u10
  Version table:
     5:7.0.15-1~deb12u10 500
        500 http://deb.debian.org/debian-security bookworm-security/main amd64 Packages
 *** 5:7.0.15-1~deb12u7 500
        500 http://deb.debian.org/debian bookworm/main amd64 Packages
        100 /var/lib/dpkg/status
redis-sentinel:
  Installed: (none)
  Candidate: (none)
  Version table:
"""
MADISON = """\
redis-server | 5:7.0.15-1~deb12u10 | http://deb.debian.org/debian-security security/main amd64 Packages
redis-server | 5:7.0.15-1~deb12u7 | http://deb.debian.org/debian bookworm/main amd64 Packages
     redis | 5:7.0.15-1~deb12u7 | http://deb.debian.org/debian bookworm/main Sources
"""


@needs_dpkg
@pytest.mark.parametrize(
    ("packages", "missing"),
    [
        ([], []),
        (["dpkg"], []),
        (["dpkg", "no-such-package"], ["no-such-package"]),
        (["no-such-package"], ["no-such-package"]),
    ],
)
def test_what_dpkg_does_not_have_is_missing(packages: list[str], missing: list[str]) -> None:
    """Also if it does not know a package at all."""
    assert debian_packages.missing(packages) == missing


@needs_dpkg
def test_a_package_is_looked_at() -> None:
    there, absent = debian_packages.look(["dpkg", "no-such-package"])
    assert there.installed
    assert there.whole
    assert (absent.installed, absent.whole, absent.candidate, absent.available) == ("", False, "", [])


def test_what_dpkg_has_no_files_of_is_not_installed() -> None:
    told = "a\t1.0\tinstalled\nb\t\tnot-installed\nc\t2\thalf-configured\nd\t3\tconfig-files\n"
    assert debian_packages.parse_status(told) == {"a": ("1.0", "installed"), "c": ("2", "half-configured")}


def test_the_candidate_is_what_apt_would_install() -> None:
    assert debian_packages.parse_policy(POLICY) == {"redis-server": "5:7.0.15-1~deb12u10"}


def test_the_archive_tells_what_it_has() -> None:
    """And not what sources it has."""
    assert debian_packages.parse_madison(MADISON) == {
        "redis-server": ["5:7.0.15-1~deb12u10", "5:7.0.15-1~deb12u7"]
    }


@pytest.mark.parametrize(
    ("version", "upstream"),
    [("5:7.0.15-1~deb12u7", "7.0.15"), ("8.0", "8.0"), ("8.0.2-3", "8.0.2"), ("1:2-rc1-3", "2-rc1")],
)
def test_the_program_has_a_version_of_its_own(version: str, upstream: str) -> None:
    assert debian_packages.upstream(version) == upstream


@needs_dpkg
@pytest.mark.parametrize(
    ("one", "other", "older"),
    [("7.0.15-1~deb12u7", "7.0.15-1~deb12u10", True), ("1:1", "2", False), ("2", "2", False)],
)
def test_dpkg_tells_which_version_is_older(one: str, other: str, older: bool) -> None:
    assert debian_packages.is_older(one, other) is older
