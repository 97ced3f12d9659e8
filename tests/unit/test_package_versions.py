"""The module package_versions: which version a host has, and which it should get."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
from ansible.module_utils.debian_packages import Package, parse_madison
from modules.package_versions import VersionError, decide, news

pytestmark = pytest.mark.skipif(not shutil.which("dpkg"), reason="this is no Debian")

OLD, NEW = "5:7.0.15-1~deb12u7", "5:7.0.15-1~deb12u10"
NAMES = ("redis-server", "redis-tools")


def packages(
    installed: str = OLD, candidate: str = NEW, *, available: tuple[str, ...] = (NEW, OLD), whole: bool = True
) -> list[Package]:
    """Return the two packages, both as a test wants them."""
    return [Package(name, installed, whole, candidate, list(available)) for name in NAMES]


def test_a_newer_candidate_is_due() -> None:
    found = decide(packages(), "")
    assert (found["due"], found["installed"], found["wanted"], found["older"]) == (True, OLD, NEW, "no")
    assert found["targets"] == [f"redis-server={NEW}", f"redis-tools={NEW}"]
    assert found["returns"] == [f"redis-server={OLD}", f"redis-tools={OLD}"]


def test_a_security_update_is_named() -> None:
    """One that is held back is told of: nothing else would install it."""
    ordinary = decide(packages(), "")
    assert not ordinary["security"]
    assert "has version 5:7.0.15-1~deb12u10. playbooks/x.yml" in news(
        ordinary, "redis-server", "playbooks/x.yml"
    )
    urgent = decide([replace(one, security=(NEW,)) for one in packages()], "")
    assert urgent["security"]
    assert "has the security update 5:7" in news(urgent, "redis-server", "playbooks/x.yml")
    assert not decide([replace(one, security=(NEW,)) for one in packages(NEW)], "")["security"]


def test_the_archive_of_security_updates_is_known() -> None:
    """By its name, of what apt-cache prints on Debian and on Ubuntu."""
    text = """\
redis-server | 5:2 | http://security.debian.org/debian-security bookworm-security/main amd64 Packages
redis-server | 5:1 | http://deb.debian.org/debian bookworm/main amd64 Packages
redis-tools | 5:2 | http://security.ubuntu.com/ubuntu noble-security/universe amd64 Packages
redis-tools | 5:3 | http://archive.ubuntu.com/ubuntu noble-updates/universe amd64 Packages
"""
    assert parse_madison(text, "-security/") == {"redis-server": ["5:2"], "redis-tools": ["5:2"]}
    assert parse_madison(text) == {"redis-server": ["5:2", "5:1"], "redis-tools": ["5:2", "5:3"]}


def test_the_newest_is_not_due() -> None:
    assert not decide(packages(NEW), "")["due"]


def test_what_dpkg_was_interrupted_in_is_due() -> None:
    found = decide(packages(NEW, whole=False), "")
    assert (found["due"], found["unfinished"]) == (True, True)


def test_one_that_stayed_behind_is_due() -> None:
    mixed = [packages(NEW)[0], packages(OLD)[1]]
    assert decide(mixed, "")["due"]


def test_a_version_may_be_named() -> None:
    assert not decide(packages(), OLD)["due"]
    assert decide(packages(NEW), OLD)["older"] == "revision"
    assert decide(packages("5:8.0.2-3", available=(OLD,)), OLD)["older"] == "upstream"


def test_a_version_that_nobody_has_is_refused() -> None:
    with pytest.raises(VersionError, match=f"no redis-server 5:9.*It has: {NEW}"):
        decide(packages(), "5:9")


def test_a_host_without_the_package_is_refused() -> None:
    with pytest.raises(VersionError, match=r"Run site\.yml first"):
        decide(packages(""), "")


def test_what_the_archive_has_no_more_cannot_be_had_again() -> None:
    assert decide(packages(available=(NEW,)), "")["returns"] == []
