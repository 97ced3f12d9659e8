"""The module package_versions: which version a host has, and which it should get."""

from __future__ import annotations

import shutil

import pytest
from ansible.module_utils.debian_packages import Package
from modules.package_versions import VersionError, decide

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
